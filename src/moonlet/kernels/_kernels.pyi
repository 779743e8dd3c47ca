"""Types of the extension that csrc/bindings.cpp defines."""

import numpy as np
from numpy.typing import NDArray

def supported_isas() -> list[str]: ...
def isa() -> str:
    """The instruction set in use: the widest, or what MOONLET_ISA forces.

    Raises ValueError when MOONLET_ISA names one that this CPU does not run.
    """

def num_threads() -> int:
    """Threads of the pool, the caller's included; by default one for each physical core."""

def set_num_threads(count: int) -> None:
    """From the next operation on; 0 is the default. Results do not depend on it.

    Fewer where the system allows no more. Raises ValueError above 1024.
    """

def panel_type(stored: str) -> str:
    """The type of panels that keep rows stored as `stored` without loss; ValueError for an unknown type.

    Most types are kept as what they are. TQ1_0 becomes TQ2_0, the types with code books (IQ1, IQ2, IQ3)
    become LEVELS16: four bits and a third.
    """

class Matrix:
    """`count` packed matrices [rows, columns] of one type, one behind the other.

    A stored type stands for the panels that keep it (`panel_type`). With `data` (uint8, aligned to
    64 bytes) the panels are used where they lie, for as long as this lives. Raises ValueError for an
    unknown type and for data of another length than the panels have.
    """

    def __init__(
        self,
        type: str,
        rows: int,
        columns: int,
        count: int = 1,
        data: NDArray[np.uint8] | None = None,
    ) -> None: ...
    def pack(
        self,
        type: str,
        rows: NDArray[np.uint8],
        scale: NDArray[np.uint16] | None = None,
        index: int = 0,
    ) -> None:
        """Fills matrix `index` with rows as a file stores them, [rows, row_bytes] of a block type.

        "INT4" comes with its scales [rows, ceil(columns / 32)], bits of bfloat16. The matrix must be of the
        type's own kind (`panel_type`), or Q8_0 for floats. Raises ValueError.
        """

    def __call__(
        self,
        x: NDArray[np.float32],
        out: NDArray[np.float32] | None = None,
        isa: str | None = None,
    ) -> NDArray[np.float32]:
        """x [T, columns] -> [T, rows]; of a stack x [T, count, columns] -> [T, count, rows].

        Rows of x and `out` may be wider: their first columns are read, or written. Quantized matrices
        round x to int8 in groups of 32 columns. Raises ValueError when shapes disagree.
        """

    @property
    def type(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The panels, as a view."""

class Ffn:
    """down(silu(gate(x)) * up(x)) of three quantized matrices."""

    def __init__(self, gate: Matrix, up: Matrix, down: Matrix) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Experts:
    """The routed experts of a layer: gate and up [width, hidden], down [hidden, width] of each.

    One expert is contiguous, `expert_bytes` long, a multiple of 4096. `data` as for Matrix.
    """

    def __init__(
        self,
        count: int,
        hidden: int,
        width: int,
        gate: str,
        up: str,
        down: str,
        data: NDArray[np.uint8] | None = None,
    ) -> None: ...
    def pack(
        self,
        expert: int,
        which: str,
        type: str,
        rows: NDArray[np.uint8],
        scale: NDArray[np.uint16] | None = None,
    ) -> None:
        """As Matrix.pack; `which` is "gate", "up" or "down"."""

    @property
    def nbytes(self) -> int: ...
    @property
    def expert_bytes(self) -> int: ...
    @property
    def bytes(self) -> NDArray[np.uint8]: ...

class Attention:
    """x + attention(norm(x)), absorbed: LatentAttention of `moonlet.model.attention` with its norm.

    q_a, q_norm: None without a query latent. k_b, v_b: stacks of H matrices [C, N] and [O, C].
    """

    def __init__(
        self,
        norm: NDArray[np.float32],
        norm_eps: float,
        q_a: Matrix | None,
        q_norm: NDArray[np.float32] | None,
        q: Matrix,
        kv_a: Matrix,
        kv_norm: NDArray[np.float32],
        k_b: Matrix,
        v_b: Matrix,
        output: Matrix,
        rope: int,
        eps: float,
        scale: float,
    ) -> None: ...
    def __call__(
        self,
        x: NDArray[np.float32],
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
        pages: NDArray[np.uint16] | NDArray[np.uint8],
        table: NDArray[np.int32],
        sequence: NDArray[np.int32],
        position: NDArray[np.int32],
        isa: str | None = None,
    ) -> NDArray[np.float32]:
        """x [T, D] -> [T, D]; cos, sin [T, R / 2]; the cache as in append_latent, which this calls."""

class Dense:
    """x + ffn(norm(x))"""

    def __init__(self, norm: NDArray[np.float32], eps: float, ffn: Ffn) -> None: ...
    def __call__(self, x: NDArray[np.float32], isa: str | None = None) -> NDArray[np.float32]:
        """x [T, D] -> [T, D]"""

class Moe:
    """x + moe(norm(x)): router, routed experts and shared expert, MoE of `moonlet.model.moe`."""

    def __init__(
        self,
        norm: NDArray[np.float32],
        eps: float,
        gate: Matrix,
        bias: NDArray[np.float32] | None,
        experts: Experts,
        shared: Ffn | None,
        top_k: int,
        sigmoid: bool,
        normalize: bool,
        scaling: float,
        groups: int = 1,
        top_groups: int = 1,
        group_best: int = 2,
    ) -> None: ...
    def __call__(self, x: NDArray[np.float32], isa: str | None = None) -> NDArray[np.float32]:
        """x [T, D] -> [T, D]"""

class Layers:
    """Decoder layers one after the other in one call."""

    def __init__(self, layers: list[tuple[Attention, Dense | Moe]]) -> None: ...
    def __call__(
        self,
        x: NDArray[np.float32],
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
        pages: NDArray[np.uint16] | NDArray[np.uint8],
        table: NDArray[np.int32],
        sequence: NDArray[np.int32],
        position: NDArray[np.int32],
        isa: str | None = None,
    ) -> NDArray[np.float32]:
        """x [T, D] -> [T, D]; pages [L, P, page_size, row], the rest as for Attention."""

def ffn(
    experts: Experts | None,
    shared: Ffn | None,
    x: NDArray[np.float32],
    ids: NDArray[np.int32] | None = None,
    weights: NDArray[np.float32] | None = None,
    isa: str | None = None,
) -> NDArray[np.float32]:
    """sum_k weights[t, k] * expert ids[t, k] of x[t], plus shared(x[t]): [T, D]."""

def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float, isa: str | None = None
) -> NDArray[np.float32]:
    """x / rms(x) * weight over the first columns of x [T, W], as many as there are weights.

    The other columns are copied.
    """

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

def reach(weights: NDArray[np.float32], goal: float) -> tuple[float, int]:
    """The smallest head of the tokens sorted by weight [V], ties by id, whose mass reaches `goal` (above 0).

    Returns its mass and its last token. Weights are whole numbers whose sum float64 holds exactly, so that
    no order of adding matters. Raises ValueError when all together do not reach `goal`.
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
