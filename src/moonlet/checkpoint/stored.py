"""A matrix as a file holds it: quantized bytes and what is needed to read them, nothing decoded."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix [rows, cols] in one of the block formats of `moonlet.quant.types`, or as "INT4".

    `data` [rows, row_bytes] is C-contiguous and usually a view of the memory map: treat it as read-only.
    "INT4" is compressed-tensors' form (`moonlet.quant.int4`): `data` holds the packed words as bytes,
    [rows, 4 * ceil(cols / 8)], and `scale` [rows, ceil(cols / 32)] the bits of the bfloat16 scales.
    Every other type keeps its scales in its blocks, and `scale` is None.
    """

    type: str
    rows: int
    cols: int
    data: NDArray[np.uint8]
    scale: NDArray[np.uint16] | None = None
