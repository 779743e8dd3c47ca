"""INT4 "pack-quantized" matrices, as Kimi-K2-Thinking and K2.5 store their routed experts.

A matrix [rows, cols] becomes

    packed  int32  [rows, ceil(cols / 8)]   column c in bits 4*(c % 8) of word c // 8, stored as code + 8
    scale   bf16   [rows, ceil(cols / 32)]  one per row and group of 32 columns

and value = code * scale. Here scales are float32 arrays; those that `encode` returns fit bf16 exactly.
On a little-endian machine byte k of a row therefore holds column 2k (low half) and column 2k + 1
(high half). Nibbles past the last column are 0. There is no zero point.

Encoding uses 15 of the 16 codes, -7..7 with scale = absmax / 7, so that nothing clips and encoding a
decoded float32 matrix gives back the same bits; decoding accepts -8 as well.
"""

import numpy as np
from numpy.typing import NDArray

from moonlet.quant import bf16

GROUP = 32
MAX_CODE = 7
MIN_SCALE = 1e-5  # an all-zero group still needs a scale to divide by
CHUNK_VALUES = 1 << 20  # temporaries stay at some MiB, however large the matrix


def packed_shape(rows: int, cols: int) -> tuple[int, int]:
    """Shape of `packed` for a matrix [rows, cols]."""
    return rows, -(-cols // 8)


def scale_shape(rows: int, cols: int) -> tuple[int, int]:
    """Shape of `scale` for a matrix [rows, cols]."""
    return rows, -(-cols // GROUP)


def encode(weight: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Quantize a matrix [rows, cols] to (packed, scale).

    Raises ValueError when a value is not finite.
    """
    rows, cols = weight.shape
    packed = np.zeros(packed_shape(rows, cols), np.int32)
    scale = np.empty(scale_shape(rows, cols), np.float32)
    for part in _row_chunks(rows, cols):
        codes, scale[part] = _quantize(np.asarray(weight[part], np.float32))
        packed[part] = _pack(codes)
    return packed, scale


def decode(
    packed: NDArray[np.int32],
    scale: NDArray[np.float32],
    cols: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The float32 matrix [rows, cols] behind (packed, scale), exact; written into `out` if given."""
    rows = packed.shape[0]
    if out is None:
        out = np.empty((rows, cols), np.float32)
    for part in _row_chunks(rows, cols):
        # One look-up turns a byte into its two columns, already in order.
        nibble_bytes = np.ascontiguousarray(packed[part]).view(np.uint8)
        codes = _CODES_OF_BYTE[nibble_bytes].view(np.float32)
        columns_scale = np.repeat(scale[part], GROUP, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale is not our warning
            np.multiply(codes[:, :cols], columns_scale[:, :cols], out=out[part])
    return out


def _quantize(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    if not np.isfinite(weight).all():
        raise ValueError("a NaN or an infinity cannot be stored as INT4")
    rows, cols = weight.shape
    groups = np.zeros((rows, -(-cols // GROUP) * GROUP), np.float32)
    groups[:, :cols] = weight
    groups = groups.reshape(rows, -1, GROUP)
    absmax = np.abs(groups).max(axis=2)
    # The scale is rounded first, so that the codes are the best for the scale that is stored.
    scale = bf16.rounded(np.maximum(absmax / MAX_CODE, MIN_SCALE).astype(np.float32))
    codes = np.rint(groups / scale[:, :, None]).clip(-MAX_CODE, MAX_CODE)
    return codes.reshape(rows, -1)[:, :cols].astype(np.int8), scale


def _pack(codes: NDArray[np.int8]) -> NDArray[np.int32]:
    rows, cols = codes.shape
    nibbles = np.zeros((rows, -(-cols // 8) * 8), np.uint8)
    nibbles[:, :cols] = codes + 8
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).view(np.int32)


def _row_chunks(rows: int, cols: int) -> list[slice]:
    step = max(1, CHUNK_VALUES // max(cols, 1))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _codes_of_byte() -> NDArray[np.uint64]:
    """Table [256]: a byte -> its two codes as a pair of float32, held together as one 8-byte item."""
    byte = np.arange(256)
    pairs = np.stack([(byte & 15) - 8, (byte >> 4) - 8], axis=1).astype(np.float32)
    return pairs.view(np.uint64)[:, 0]


_CODES_OF_BYTE = _codes_of_byte()
