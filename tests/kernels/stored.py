"""Random matrices as files store them, for the tests of packed kernels."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moonlet import kernels
from moonlet.quant import bf16, decode, int4
from moonlet.quant.types import TYPES

FLOATS = ("F32", "F16", "BF16")
QUANTIZED = (*(name for name in TYPES if name not in FLOATS), "INT4")
ALL = (*FLOATS, *QUANTIZED)


class Stored(NamedTuple):
    """Rows of a type, their INT4 scales, and the values float32 [rows, cols] that they stand for."""

    type: str
    data: NDArray[np.uint8]
    scale: NDArray[np.uint16] | None
    values: NDArray[np.float32]

    def packed(self, keep: str | None = None) -> kernels.Matrix:
        """In panels of their own kind, or of the kind `keep`."""
        matrix = kernels.Matrix(keep or kernels.panel_type(self.type), *self.values.shape)
        matrix.pack(self.type, self.data, self.scale)
        return matrix


def random_floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_rows(type_name: str, rows: int, cols: int, seed: int = 0) -> Stored:
    """All bytes are random, so that every code and every scale occurs, of either sign.

    Blocks that hold NaN, infinities or values beyond 1e4 are replaced by zeros: there is nothing to compare in them.
    """
    rng = np.random.default_rng(seed)
    values = random_floats(rows, cols, seed=seed)
    if type_name == "INT4":
        words, steps = int4.encode(values)
        scale = bf16.from_float32(steps)
        return Stored(
            "INT4", words.view(np.uint8), scale, int4.decode(words, bf16.to_float32(scale), cols)
        )
    if type_name in FLOATS:
        data = {
            "F32": values,
            "F16": values.astype(np.float16),
            "BF16": bf16.from_float32(values),
        }[type_name].view(np.uint8)
        return Stored(type_name, data, None, decode(type_name, data))
    kind = TYPES[type_name]
    blocks = rng.integers(0, 256, (rows * cols // kind.values, kind.bytes), np.uint8)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(decode(type_name, blocks)).max(axis=1) < 1e4)
    blocks[wrong] = 0
    data = blocks.reshape(rows, kind.row_bytes(cols))
    return Stored(type_name, data, None, decode(type_name, data))
