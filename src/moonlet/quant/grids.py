"""The code books of the IQ formats: rows of 8 or 4 values that a weight group may take.

The rows are facts of the file format, chosen by the authors of ggml (MIT licence,
https://github.com/ggml-org/ggml) and stored beside this file as grids.npz: per grid an array uint8
[rows, width] of indices into the few levels below.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEVELS: dict[str, tuple[int, ...]] = {
    "iq1": (-1, 0, 1),  # IQ1_S and IQ1_M, 2048 rows of 8
    "iq2_xxs": (8, 25, 43),  # 256 rows of 8
    "iq2_xs": (8, 25, 43),  # 512 rows of 8
    "iq2_s": (8, 25, 43),  # 1024 rows of 8
    "iq3_xxs": (4, 12, 20, 28, 36, 44, 52, 62),  # 256 rows of 4
    "iq3_s": (1, 3, 5, 7, 9, 11, 13, 15),  # 512 rows of 4
}


@cache
def grid(name: str) -> NDArray[np.float32]:
    """The values [rows, width] of the grid `name`, a key of LEVELS."""
    with np.load(Path(__file__).with_name("grids.npz")) as indices:
        return np.array(LEVELS[name], np.float32)[indices[name]]


@cache
def signs_of_7_bits() -> NDArray[np.float32]:
    """Eight signs, 1 or -1, for each of 128 indices [128, 8].

    Bit k of the index set makes value k negative; the eighth sign makes the number of minus signs even.
    """
    bits = np.arange(128)[:, None] >> np.arange(8) & 1
    bits[:, 7] = bits.sum(axis=1) & 1
    return (1 - 2 * bits).astype(np.float32)


@cache
def signs_of_8_bits() -> NDArray[np.float32]:
    """Eight signs, 1 or -1, for each byte [256, 8]: bit k set makes value k negative."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    return (1 - 2 * bits).astype(np.float32)
