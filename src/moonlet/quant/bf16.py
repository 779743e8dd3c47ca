"""bfloat16 in numpy, which has no such type: the upper 16 bits of a float32."""

import numpy as np
from numpy.typing import NDArray


def to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The exact value of each bfloat16, given as its 16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_float32(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The 16 bits of the nearest bfloat16, ties to even; infinities stay, NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    # Adding just under half of the dropped part, plus the last kept bit, rounds ties to even.
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each value rounded to the nearest bfloat16, still held as float32."""
    return to_float32(from_float32(values))
