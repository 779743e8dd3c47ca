"""The two pieces of float32 arithmetic that byte-exact encoders share with ggml's reference rules."""

import numpy as np
from numpy.typing import NDArray


def inverse(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale in float32, and 0 where the scale is 0 or so small that 1 / scale overflows."""
    usable = np.abs(scale) >= np.finfo(np.float32).tiny
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=usable)


def round_half_away(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each value rounded to the nearest integer, halves away from zero, as C's roundf does."""
    size = np.abs(values)
    whole = np.floor(size)
    # Adding 0.5 first would round 0.49999997 up; the difference is exact.
    whole += size - whole >= np.float32(0.5)
    return np.copysign(whole, values)
