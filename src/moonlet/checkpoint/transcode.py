"""Rows of a stored matrix in another type: byte for byte where that is possible, else decoded and encoded.

INT4 and Q4_0 share their grid, a scale times -8..7 in groups of 32, so that going from one to the other moves
nibbles and copies scales. A bfloat16 scale of ordinary size is also a float16 one; the other way round the
three last bits of the scale have to be 0. Scales that cannot be copied are rounded and counted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moonlet.checkpoint.stored import StoredMatrix
from moonlet.quant import bf16, decode, encode, int4

GROUP = int4.GROUP
FLOATS = ("F32", "F16", "BF16")
Encode = Callable[[str, NDArray[np.float32], NDArray[np.float32] | None], NDArray[np.uint8]]
_HALF = 2  # bytes of a Q4_0 block's scale


@dataclass(frozen=True)
class Coded:
    """Encoded rows. `rounded` counts groups of 32 whose scale the type could not hold exactly."""

    matrix: StoredMatrix
    rounded: int = 0


def rows_of(matrix: StoredMatrix, rows: slice) -> StoredMatrix:
    """Some rows of a matrix; nothing is copied."""
    data, scale = matrix.data[rows], None if matrix.scale is None else matrix.scale[rows]
    return StoredMatrix(matrix.type, len(data), matrix.cols, data, scale)


def values_of(matrix: StoredMatrix) -> NDArray[np.float32]:
    """The exact float32 values [rows, cols]."""
    if matrix.scale is None:
        return decode(matrix.type, matrix.data)
    words = np.ascontiguousarray(matrix.data).view(np.int32)
    return int4.decode(words, bf16.to_float32(matrix.scale), matrix.cols)


def transcode(
    matrix: StoredMatrix,
    target: str,
    importance: NDArray[np.float32] | None = None,
    encode: Encode = encode,
) -> Coded:
    """`matrix` as `target`: a name in `quant.types`, or "INT4".

    `importance` [cols] weighs the squared errors of the columns where something has to be encoded. Raises
    ValueError for values that the type cannot hold, and rows that do not fill its blocks.
    """
    if matrix.type == target:
        return Coded(matrix)
    if matrix.type == "INT4" and target == "Q4_0":
        return _q4_0_from_int4(matrix)
    if matrix.type == "Q4_0" and target == "INT4":
        return _int4_from_q4_0(matrix)
    return Coded(from_values(values_of(matrix), target, importance, encode))


def from_values(
    values: NDArray[np.float32],
    target: str,
    importance: NDArray[np.float32] | None = None,
    encode: Encode = encode,
) -> StoredMatrix:
    """`values` [rows, cols] as `target`; raises as `transcode` does."""
    rows, cols = values.shape
    if target != "INT4":
        return StoredMatrix(target, rows, cols, encode(target, values, importance))
    packed, scale = int4.encode(values)
    return StoredMatrix("INT4", rows, cols, packed.view(np.uint8), bf16.from_float32(scale))


def _q4_0_from_int4(matrix: StoredMatrix) -> Coded:
    """A Q4_0 block keeps column c beside column c + 16, INT4 keeps column 2c beside 2c + 1."""
    assert matrix.scale is not None
    if matrix.cols % GROUP:
        raise ValueError(f"rows of {matrix.cols} values do not fill Q4_0 blocks of {GROUP}")
    exact = bf16.to_float32(matrix.scale)
    with np.errstate(over="ignore"):
        scale = exact.astype(np.float16)
    if not np.isfinite(scale).all():
        raise ValueError("an INT4 scale is beyond what Q4_0 can hold: take bf16, f32 or q8_0")
    pairs = matrix.data.reshape(matrix.rows, -1, GROUP // 2)
    blocks = np.empty((*pairs.shape[:2], _HALF + GROUP // 2), np.uint8)
    blocks[..., :_HALF] = scale[..., None].view(np.uint8)
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:2], GROUP)
    blocks[..., _HALF:] = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << 4
    data = blocks.reshape(matrix.rows, -1)
    coded = StoredMatrix("Q4_0", matrix.rows, matrix.cols, data)
    return Coded(coded, int((scale.astype(np.float32) != exact).sum()))


def _int4_from_q4_0(matrix: StoredMatrix) -> Coded:
    blocks = matrix.data.reshape(matrix.rows, -1, _HALF + GROUP // 2)
    exact = np.ascontiguousarray(blocks[..., :_HALF]).view(np.float16)[..., 0].astype(np.float32)
    if not np.isfinite(exact).all():
        raise ValueError("a NaN or an infinity cannot be stored as INT4")
    scale = bf16.from_float32(exact)
    halves = blocks[..., _HALF:]
    codes = np.concatenate([halves & 15, halves >> 4], axis=-1)
    data = np.asarray(codes[..., 0::2] | codes[..., 1::2] << 4, np.uint8).reshape(matrix.rows, -1)
    coded = StoredMatrix("INT4", matrix.rows, matrix.cols, data, scale)
    return Coded(coded, int((bf16.to_float32(scale) != exact).sum()))
