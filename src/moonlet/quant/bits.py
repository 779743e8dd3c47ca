"""Small codes and half floats inside blocks: one rule covers nearly every field of every GGUF format.

Codes of 1, 2 or 4 bits lie in planes: a run of bytes holds `run` codes in its lowest bits, the next `run`
codes in the bits above, and so on; then the next run of bytes follows. With run = 1 this is the plain
little-endian order. Here blocks are uint8 [blocks, bytes], and fields are their column slices.
"""

import numpy as np
from numpy.typing import NDArray

HALF_MAX = 65504.0  # the largest finite half float
_HALF_OVERFLOW = 65520.0  # the smallest float32 that rounds to infinity in a half float


def unpack(field: NDArray[np.uint8], bits: int, run: int) -> NDArray[np.uint8]:
    """Codes uint8 [blocks, bytes * 8 / bits] behind a field [blocks, bytes]; run divides bytes."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    planes = field.reshape(len(field), field.shape[1] // run, 1, run) >> shifts
    planes &= np.uint8((1 << bits) - 1)
    return planes.reshape(len(field), -1)


def pack(codes: NDArray[np.integer], bits: int, run: int) -> NDArray[np.uint8]:
    """The field [blocks, bytes] that `unpack` turns into these codes [blocks, values]."""
    field = np.zeros((len(codes), codes.shape[1] * bits // 8 // run, run), np.uint8)
    planes = codes.reshape(*field.shape[:2], 8 // bits, run)
    for plane in range(8 // bits):
        field |= planes[:, :, plane] << np.uint8(plane * bits)
    return field.reshape(len(codes), -1)


def from_half(field: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [blocks, n] behind n half floats of two bytes each."""
    return field.view("<f2").astype(np.float32)


def to_half(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes [blocks, 2 n] of values [blocks, n] as half floats.

    Raises ValueError where the nearest half float would be an infinity: a block of infinities must not
    come out of finite weights.
    """
    largest = np.abs(values).max(initial=0)
    if largest >= _HALF_OVERFLOW:
        raise ValueError(
            f"a scale of {largest:.3g} does not fit a half float, which ends at {HALF_MAX:.0f}: "
            "store a tensor with values this large as F32 or BF16"
        )
    return np.ascontiguousarray(values, np.float32).astype("<f2").view(np.uint8)


def as_half(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each value rounded to the nearest half float, still held as float32; raises as `to_half`."""
    return from_half(to_half(values))
