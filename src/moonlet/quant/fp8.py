"""FP8 e4m3fn matrices with one float32 scale per 128 x 128 block, as DeepSeek-V3 and Kimi-K2 ship.

A matrix [rows, cols] becomes codes uint8 [rows, cols] and `scale_inv` float32 [ceil(rows / 128),
ceil(cols / 128)]; value = e4m3fn(code) * scale_inv of its block. (The published name says inverse, the
operation is a product.) Blocks at the edges are partial.

e4m3fn: sign, 4 exponent bits with bias 7, 3 mantissa bits; no infinity; 0x7F and 0xFF are NaN; the
largest value is 448 and the smallest subnormal 2^-9.
"""

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
MAX = 448.0


def scale_shape(rows: int, cols: int) -> tuple[int, int]:
    """Shape of `scale_inv` for a matrix [rows, cols]."""
    return -(-rows // BLOCK), -(-cols // BLOCK)


def encode(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize a matrix [rows, cols] to (codes, scale_inv), with scale_inv = block absmax / 448.

    Raises ValueError when a value is not finite.
    """
    rows, cols = weight.shape
    codes = np.empty((rows, cols), np.uint8)
    scale_inv = np.empty(scale_shape(rows, cols), np.float32)
    column_blocks = np.arange(0, cols, BLOCK)
    for block, start in enumerate(range(0, rows, BLOCK)):
        part = np.asarray(weight[start : start + BLOCK], np.float32)
        if not np.isfinite(part).all():
            raise ValueError("a NaN or an infinity cannot be stored as FP8")
        absmax = np.maximum.reduceat(np.abs(part).max(axis=0), column_blocks)
        # A block of zeros, or of values too small for a normal scale, keeps a scale to divide by.
        scale_inv[block] = np.maximum(absmax / np.float32(MAX), np.finfo(np.float32).tiny)
        codes[start : start + BLOCK] = to_e4m3(part / _columns(scale_inv[block], cols))
    return codes, scale_inv


def decode(
    codes: NDArray[np.uint8],
    scale_inv: NDArray[np.float32],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The float32 matrix [rows, cols] behind (codes, scale_inv); written into `out` if given."""
    rows, cols = codes.shape
    if out is None:
        out = np.empty((rows, cols), np.float32)
    for block, start in enumerate(range(0, rows, BLOCK)):
        part = slice(start, start + BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale is not our warning
            np.multiply(E4M3_VALUES[codes[part]], _columns(scale_inv[block], cols), out=out[part])
    return out


def to_e4m3(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest e4m3fn code of each finite float32, ties to even, saturating at +-448."""
    size = np.minimum(np.abs(values), np.float32(MAX))
    # Normal numbers: round the float32 bits to 3 mantissa bits, then move the exponent bias 127 to 7.
    bits = size.view(np.uint32)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # Below 2^-6 the codes count steps of 2^-9; step 8 is the code of the smallest normal number.
    subnormal = np.rint(size * np.float32(512))
    code = np.where(size < 2.0**-6, subnormal, normal).astype(np.uint8)
    return code | np.where(np.signbit(values), np.uint8(0x80), np.uint8(0))


def _columns(scales: NDArray[np.float32], cols: int) -> NDArray[np.float32]:
    return np.repeat(scales, BLOCK)[:cols]


def _e4m3_values() -> NDArray[np.float32]:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(
        exponent == 0,
        np.ldexp(mantissa / 8, -6),
        np.ldexp(1 + mantissa / 8, exponent - 7),
    )
    size[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -size, size).astype(np.float32)


E4M3_VALUES = _e4m3_values()
