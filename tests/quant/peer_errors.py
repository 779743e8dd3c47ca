"""How well llama.cpp's encoders do on the samples below: made once, held by test_search.py.

    python -m tests.quant.peer_errors path/to/libggml-base.so

writes golden/peer_errors.json beside this file: per type and sample the root mean square error as a share
of the root mean square of the sample, "plain" without importance; with importance, "weighted" by it and
"unweighted" all the same. Shares, so that retraining the embedded model does not make them stale.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from moonlet.quant import decode
from moonlet.quant.types import TYPES

GOLDEN = Path(__file__).parent / "golden" / "peer_errors.json"
NAMES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"),
)
COLS = 1280  # five blocks of 256


def samples() -> dict[str, np.ndarray]:
    """Matrices float32 [rows, COLS]: normal, heavy-tailed, and weights of the embedded model."""
    rng = np.random.default_rng(31)
    return {
        "normal": rng.normal(size=(48, COLS)).astype(np.float32),
        "heavy": (rng.standard_t(3, size=(48, COLS)) * 0.02).astype(np.float32),
        "nano": nano_weights(),
    }


def importance() -> np.ndarray:
    """Importance [COLS] that spreads over some powers of ten."""
    return (np.random.default_rng(32).gamma(0.5, size=COLS) + 0.01).astype(np.float32)


def nano_weights() -> np.ndarray:
    """An eighth of the text matrices of the embedded model, cut into rows of COLS."""
    import torch

    import moonlet.nano
    from moonlet.checkpoint.reader import open_checkpoint

    model = open_checkpoint(Path(moonlet.nano.__file__).parent / "weights")
    parts = []
    for name, tensor in model.tensors(torch.float32):
        if tensor.ndim > 1 and name.startswith("language_model."):
            flat = tensor.numpy().reshape(-1)
            parts.append(flat[: len(flat) // COLS * COLS].reshape(-1, COLS)[::8])
    return np.concatenate(parts)


def relative_error(
    value: np.ndarray, sample: np.ndarray, weight: np.ndarray | float = 1.0
) -> float:
    """Root of the weighted square error over the weighted square of the sample."""
    exact = sample.astype(np.float64)
    lost = (weight * (value - exact) ** 2).sum()
    return float(np.sqrt(lost / (weight * exact**2).sum()))


def errors(encoder, name: str, sample: np.ndarray) -> dict[str, float]:
    """The three figures of an encoder (name, values, importance) -> blocks for one sample."""
    plain = decode(name, encoder(name, sample, None))
    weighted = decode(name, encoder(name, sample, importance()))
    return {
        "plain": relative_error(plain, sample),
        "weighted": relative_error(weighted, sample, importance()),
        "unweighted": relative_error(weighted, sample),
    }


def main(library: str) -> None:
    ggml = ctypes.CDLL(library)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    int64, pointer = ctypes.c_int64, ctypes.c_void_p
    ggml.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, pointer, pointer, int64, int64, int64, pointer)
    ]

    def encoder(name: str, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        kind, (rows, cols) = TYPES[name], values.shape
        out = np.empty((rows, kind.row_bytes(cols)), np.uint8)
        ggml.ggml_quantize_init(kind.id)
        matrix = None if weights is None else weights.ctypes.data
        done = ggml.ggml_quantize_chunk(
            kind.id, values.ctypes.data, out.ctypes.data, 0, rows, cols, matrix
        )
        assert done == out.nbytes
        return out

    found = {
        name: {key: errors(encoder, name, sample) for key, sample in samples().items()}
        for name in NAMES
    }
    rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 7))
    GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
