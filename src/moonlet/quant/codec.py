"""`decode` and `encode` of every GGUF block type: checks, chunks, and the table of who does which type."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moonlet.quant import iq, kencode, kquants, nonlinear, simple, ternary
from moonlet.quant.types import type_of

Decoder = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Encoder = Callable[[NDArray[np.float32], NDArray[np.float32] | None], NDArray[np.uint8]]

IMPORTANCE_FLOOR = 0.25  # of the mean importance
# No type with half-float scales reaches this far, and squares of what is below it do not overflow.
HALF_SCALE_LIMIT = 2.0**29
CHUNK_VALUES = 1 << 17  # some MiB with all temporaries: small, and near the processor


def decode(type_name: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The exact float32 values [..., cols] behind rows of blocks uint8 [..., row_bytes].

    A scale that is NaN or infinite gives values that are; nothing is checked but the size. Raises
    ValueError for an unknown type or rows that are not whole blocks.
    """
    kind = type_of(type_name)
    if data.dtype != np.uint8 or data.ndim == 0 or data.shape[-1] % kind.bytes:
        raise ValueError(
            f"{kind.name} rows are whole blocks of {kind.bytes} bytes (uint8), "
            f"not {data.dtype} of shape {data.shape}"
        )
    blocks = data.reshape(-1, kind.bytes)
    out = np.empty((len(blocks), kind.values), np.float32)
    step = CHUNK_VALUES // kind.values
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale is not our warning
        for start in range(0, len(blocks), step):
            part = slice(start, start + step)
            out[part] = DECODERS[kind.name](np.ascontiguousarray(blocks[part]))
    return out.reshape(*data.shape[:-1], data.shape[-1] // kind.bytes * kind.values)


def encode(
    type_name: str,
    values: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Rows of blocks uint8 [rows, row_bytes] near the matrix `values` [rows, cols].

    `importance` [cols] is how much the squared error of each column counts, usually the mean square of
    what it is multiplied with; only proportions matter. Raises ValueError for a type that moonlet does
    not write, rows that do not fill blocks, values that are not finite or that the type cannot reach, and
    importance that is negative, not finite or of another length.
    """
    kind = type_of(type_name)
    if kind.name not in ENCODERS:
        raise ValueError(f"moonlet reads {kind.name} but writes only: {', '.join(ENCODERS)}")
    values = np.asarray(values, np.float32)
    if values.ndim != 2:
        raise ValueError(f"encode takes a matrix [rows, cols], not shape {values.shape}")
    rows, cols = values.shape
    out = np.empty((rows, kind.row_bytes(cols)), np.uint8)
    if importance is not None:
        importance = _weights(importance, cols).reshape(-1, kind.values)
    source, target = values.reshape(-1, kind.values), out.reshape(-1, kind.bytes)
    step = CHUNK_VALUES // kind.values
    for start in range(0, len(source), step):
        part = source[start : start + step]
        _check_values(part, kind.name)
        weight = None
        if importance is not None:
            weight = importance[np.arange(start, start + len(part)) % len(importance)]
        target[start : start + step] = ENCODERS[kind.name](part, weight)
    return out


def _check_values(values: NDArray[np.float32], name: str) -> None:
    largest = np.abs(values).max(initial=0)
    if not np.isfinite(largest):
        raise ValueError(f"a NaN or an infinity cannot be stored as {name}")
    if largest > HALF_SCALE_LIMIT and name not in ("F32", "BF16", "MXFP4"):
        raise ValueError(
            f"a value of magnitude {largest:.3g} is beyond what {name} can hold: "
            "store the tensor as F32 or BF16"
        )


def _weights(importance: NDArray[np.float32], cols: int) -> NDArray[np.float32]:
    """Importance as weights around 1, none of them near 0."""
    exact = np.asarray(importance, np.float64)
    if exact.shape != (cols,):
        raise ValueError(
            f"importance has shape {exact.shape}, and a matrix with {cols} columns needs ({cols},)"
        )
    if not np.isfinite(exact).all() or (exact < 0).any():
        raise ValueError("importance must be finite and not negative in every column")
    mean = exact.mean() if exact.any() else 1.0
    # Importance is estimated from a sample of text. Adding a part of its mean keeps columns that the
    # sample left idle: the plain error then stays near that of encoding without importance.
    return (exact / mean + IMPORTANCE_FLOOR).astype(np.float32)


DECODERS: dict[str, Decoder] = {
    "F32": simple.decode_f32,
    "F16": simple.decode_f16,
    "BF16": simple.decode_bf16,
    "Q4_0": simple.decode_q4_0,
    "Q4_1": simple.decode_q4_1,
    "Q5_0": simple.decode_q5_0,
    "Q5_1": simple.decode_q5_1,
    "Q8_0": simple.decode_q8_0,
    "MXFP4": simple.decode_mxfp4,
    "Q2_K": partial(kquants.decode, "Q2_K"),
    "Q3_K": partial(kquants.decode, "Q3_K"),
    "Q4_K": partial(kquants.decode, "Q4_K"),
    "Q5_K": partial(kquants.decode, "Q5_K"),
    "Q6_K": partial(kquants.decode, "Q6_K"),
    "IQ2_XXS": iq.decode_iq2_xxs,
    "IQ2_XS": iq.decode_iq2_xs,
    "IQ2_S": iq.decode_iq2_s,
    "IQ3_XXS": iq.decode_iq3_xxs,
    "IQ3_S": iq.decode_iq3_s,
    "IQ1_S": iq.decode_iq1_s,
    "IQ1_M": iq.decode_iq1_m,
    "IQ4_NL": nonlinear.decode_iq4_nl,
    "IQ4_XS": nonlinear.decode_iq4_xs,
    "TQ1_0": ternary.decode_tq1_0,
    "TQ2_0": ternary.decode_tq2_0,
}

ENCODERS: dict[str, Encoder] = {
    "F32": simple.encode_f32,
    "F16": simple.encode_f16,
    "BF16": simple.encode_bf16,
    "Q4_0": simple.encode_q4_0,
    "Q4_1": simple.encode_q4_1,
    "Q5_0": simple.encode_q5_0,
    "Q5_1": simple.encode_q5_1,
    "Q8_0": simple.encode_q8_0,
    "MXFP4": simple.encode_mxfp4,
    "Q2_K": partial(kencode.encode_affine, "Q2_K"),
    "Q3_K": partial(kencode.encode_symmetric, "Q3_K"),
    "Q4_K": partial(kencode.encode_affine, "Q4_K"),
    "Q5_K": partial(kencode.encode_affine, "Q5_K"),
    "Q6_K": partial(kencode.encode_symmetric, "Q6_K"),
    "IQ4_NL": nonlinear.encode_iq4_nl,
    "IQ4_XS": nonlinear.encode_iq4_xs,
    "TQ1_0": ternary.encode_tq1_0,
    "TQ2_0": ternary.encode_tq2_0,
}
