"""Types of the extension that csrc/bindings.cpp defines."""

import numpy as np
from numpy.typing import NDArray

def supported_isas() -> list[str]: ...
def peak(isa: str, operation: str, all_threads: bool) -> float | None: ...

class ReadBuffer:
    def __init__(self, bytes: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def read(self, all_threads: bool) -> float: ...

def code_row_bytes(columns: int) -> int:
    """Bytes of a cached row of 8 bits: int8 codes and then a float32 scale for every 64 of them."""

def append_latent(
    pages: NDArray[np.uint16] | NDArray[np.uint8],
    table: NDArray[np.int32],
    latent: NDArray[np.float32],
    sequence: NDArray[np.int32],
    position: NDArray[np.int32],
    isa: str | None = None,
) -> None:
    """Writes `latent` [T, L] into the cache of a layer.

    pages: uint16 [P, page_size, L], bits of bfloat16; or uint8 [P, page_size, code_row_bytes(L)].
    table [S, max_pages]: position p of sequence s is row p % page_size of page
    table[s, p // page_size]. sequence, position [T]: where token t belongs. Raises ValueError when
    shapes disagree or a place lies outside the table or the pages.
    """

def latent_attention(
    q: NDArray[np.float32],
    pages: NDArray[np.uint16] | NDArray[np.uint8],
    table: NDArray[np.int32],
    sequence: NDArray[np.int32],
    position: NDArray[np.int32],
    values: int,
    scale: float,
    isa: str | None = None,
) -> NDArray[np.float32]:
    """softmax(scale q . rows) rows[:, :values] for the absorbed queries q [T, H, L]: [T, H, values].

    Token t sees positions 0 .. position[t] of sequence[t], which must have been appended: any
    mixture of decoding and prefill of several sequences is one call. Queries and softmax weights
    are rounded to bfloat16, sums are float32. The bits of a token's result depend on its query and
    its rows alone, not on other tokens or on the number of threads. Raises as append_latent does.
    """

def rotate(
    x: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    out: NDArray[np.float32] | None = None,
) -> None:
    """Turns the last 2 R columns of x [T, N, width] in adjacent pairs by the angles of token t.

    cos, sin [T, R]. The result goes to the last 2 R columns of `out` [T, N, any width], or into x;
    other columns stay as they are.
    """

def route(
    logits: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    top_k: int,
    sigmoid: bool,
    normalize: bool,
    scaling: float,
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 2,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Experts and their weights [T, top_k] for logits [T, E], best first; see moonlet.model.moe.Router.

    Equal scores go to the lower index; NaN is chosen first, so that it shows. `group_best`: a group
    is judged by the sum of that many of its best experts.
    """
