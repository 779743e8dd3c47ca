"""Every kernel against its reference, for every instruction set that this CPU runs.

Inputs are small, random and the same each time; sizes are odd on purpose, so that tails are met as well.
What an instruction set computes must lie within `limit` of the reference and, but for attention, have the very
bits of the baseline.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moonlet.kernels import _kernels, reference
from moonlet.quant import bf16, decode, encode, int4
from moonlet.quant.codec import ENCODERS
from moonlet.quant.types import TYPES, type_of

Floats = NDArray[np.float32]
Run = Callable[[str | None], NDArray[np.float32]]
FLOATS = ("F32", "F16", "BF16")

SUMS = 1e-5  # float32 sums in another order
ROUNDINGS = 2e-3  # a hidden value near the middle of two 8-bit codes may fall to either
BFLOATS = 3e-3  # weights of the softmax rounded to bfloat16


@dataclass(frozen=True)
class Check:
    """`error`: root mean square of the difference, relative to the reference's; None if it did not run.

    `problem` is None, or one sentence that says what is wrong.
    """

    kernel: str
    isa: str
    error: float | None
    limit: float
    problem: str | None


@dataclass(frozen=True)
class _Case:
    kernel: str
    run: Run
    expected: NDArray[np.float64]
    limit: float
    same_bits: bool = True


def self_test() -> Iterator[Check]:
    """All checks, one after the other; a few seconds in all."""
    isas = _kernels.supported_isas()
    for case in _cases():
        baseline: NDArray[np.float32] | None = None
        for isa in isas:
            check, found = _check(case, isa, baseline if case.same_bits else None)
            baseline = found if isa == "baseline" else baseline
            yield check


def types_without_kernel() -> list[str]:
    """Block types that can be read and converted, but not be computed with."""
    return [name for name in TYPES if not _has_kernel(name)]


def _check(
    case: _Case, isa: str, baseline: NDArray[np.float32] | None
) -> tuple[Check, NDArray[np.float32] | None]:
    try:
        found = case.run(isa)
    except (ValueError, RuntimeError, MemoryError) as error:
        return Check(case.kernel, isa, None, case.limit, f"it refuses to run: {error}"), None
    error = relative_error(found, case.expected)
    problem = None
    if not error <= case.limit:  # not a NaN either
        problem = f"it is {error:.1e} from its reference, and {case.limit:.0e} is allowed"
    elif baseline is not None and not np.array_equal(found, baseline):
        problem = "its bits are not those of the baseline"
    return Check(case.kernel, isa, error, case.limit, problem), found


def relative_error(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """||found - expected|| / ||expected||."""
    difference = np.linalg.norm((found - expected).ravel())
    return float(difference / max(float(np.linalg.norm(expected.ravel())), 1e-30))


def _cases() -> Iterator[_Case]:
    for name in (*TYPES, "INT4"):
        if _has_kernel(name):
            yield from _products(name)
    yield _norm()
    yield _rotation()
    yield from _routers()
    yield _attention(eight_bits=False)
    yield _attention(eight_bits=True)


def _has_kernel(name: str) -> bool:
    try:
        _kernels.Matrix(name, 16, 256)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Rows:
    """A random matrix as it is stored, with the values that the bytes stand for."""

    type: str
    data: NDArray[np.uint8]
    scale: NDArray[np.uint16] | None
    values: Floats


def random_rows(type_name: str, rows: int, cols: int, seed: int) -> Rows:
    """Normal values, encoded; of types that are only read, random bytes that are finite numbers."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, cols), np.float32)
    if type_name == "INT4":
        words, steps = int4.encode(values)
        scale = bf16.from_float32(steps)
        return Rows(
            "INT4", words.view(np.uint8), scale, int4.decode(words, bf16.to_float32(scale), cols)
        )
    if type_name in ENCODERS:
        data = encode(type_name, values)
    else:
        # Without these bits no half-precision scale, wherever in the block it is, is above 2^-7.
        data = rng.integers(
            0, 256, (rows, type_of(type_name).row_bytes(cols)), np.uint8
        ) & np.uint8(0x9F)
    return Rows(type_name, data, None, decode(type_name, data))


def _products(name: str) -> Iterator[_Case]:
    rows = random_rows(name, 40, 512, seed=1)
    matrix = _kernels.Matrix(name, 40, 512)
    matrix.pack(name, rows.data, rows.scale)
    quantized = name not in FLOATS
    for tokens in (1, 3, 29):
        x = _normal(tokens, 512)
        run = partial(_multiply, matrix, x)
        expected = reference.linear(rows.values, x, quantized)
        yield _Case(f"linear {name}, {_count(tokens)}", run, expected, SUMS)
    if quantized:
        yield _routed(name)


def _multiply(matrix: _kernels.Matrix, x: Floats, isa: str | None) -> Floats:
    return matrix(x, isa=isa)


def _routed(name: str) -> _Case:
    """Eight experts of which one takes all tokens and one none, and a shared one."""
    hidden, width, count = 256, 512, 8
    experts = _kernels.Experts(count, hidden, width, name, name, name)
    values = [_fill(experts, expert, name, hidden, width) for expert in range(count)]
    shared, shared_values = _shared(name, hidden, width)
    x = _normal(13, hidden)
    ids = np.stack([np.zeros(13), np.arange(13) % (count - 2) + 1], axis=1).astype(np.int32)
    weights = np.abs(_normal(13, 2))
    expected = reference.routed_ffn(x, values, ids, weights) + reference.ffn(x, *shared_values)
    run = partial(_kernels.ffn, experts, shared, x, ids, weights)
    return _Case(f"routed feed-forward {name}", run, expected, ROUNDINGS)


def _fill(
    experts: "_kernels.Experts", expert: int, name: str, hidden: int, width: int
) -> tuple[Floats, Floats, Floats]:
    values = []
    for i, which in enumerate(("gate", "up", "down")):
        shape = (hidden, width) if which == "down" else (width, hidden)
        rows = random_rows(name, *shape, seed=3 * expert + i)
        experts.pack(expert, which, name, rows.data, rows.scale)
        values.append(rows.values)
    return values[0], values[1], values[2]


def _shared(
    name: str, hidden: int, width: int
) -> tuple["_kernels.Ffn", tuple[Floats, Floats, Floats]]:
    gate, up = (random_rows(name, width, hidden, seed) for seed in (101, 102))
    down = random_rows(name, hidden, width, 103)
    packed = [_kernels.Matrix(name, *rows.values.shape) for rows in (gate, up, down)]
    for matrix, rows in zip(packed, (gate, up, down), strict=True):
        matrix.pack(name, rows.data, rows.scale)
    return _kernels.Ffn(*packed), (gate.values, up.values, down.values)


def _norm() -> _Case:
    x, weight = _normal(5, 77), _normal(1, 70)[0]
    expected = reference.rms_norm(x, weight, 1e-5)
    return _Case("norm", partial(_kernels.rms_norm, x, weight, 1e-5), expected, SUMS)


def _rotation() -> _Case:
    x, angles = _normal(5, 3 * 24).reshape(5, 3, 24), _normal(5, 8)
    cos, sin = np.cos(angles), np.sin(angles)

    def run(isa: str | None) -> NDArray[np.float32]:
        out = x.copy()
        _kernels.rotate(out, cos, sin)
        return out

    return _Case("rotary", run, reference.rotate(x, cos, sin), SUMS)


def _routers() -> Iterator[_Case]:
    logits, bias = _normal(9, 24), _normal(1, 24)[0] / 8
    for label, groups, top_groups in (("one group", 1, 1), ("groups", 4, 2)):
        ids, weights = reference.route(logits, bias, 6, True, True, 2.5, groups, top_groups, 2)

        def run(
            isa: str | None, groups: int = groups, top: int = top_groups
        ) -> NDArray[np.float32]:
            found = _kernels.route(logits, bias, 6, True, True, 2.5, groups, top, 2)
            return np.concatenate([found[0].astype(np.float32), found[1]], axis=1)

        expected = np.concatenate([ids.astype(np.float64), weights], axis=1)
        yield _Case(f"router, {label}", run, expected, SUMS)


def _attention(eight_bits: bool) -> _Case:
    """Two sequences over shuffled pages; one prompt in pieces and one token far behind it."""
    columns, values, pages, page_size, heads = 96, 64, 40, 16, 5
    rng = np.random.default_rng(7)
    table = rng.permutation(pages).astype(np.int32).reshape(2, -1)
    rows = _normal(2 * 300, columns).reshape(2, 300, columns)
    row_bytes = _kernels.code_row_bytes(columns)
    cache = (
        np.zeros((pages, page_size, row_bytes), np.uint8)
        if eight_bits
        else np.zeros((pages, page_size, columns), np.uint16)
    )
    for sequence in range(2):
        at = np.full(300, sequence, np.int32), np.arange(300, dtype=np.int32)
        _kernels.append_latent(cache, table, rows[sequence], *at)
    sequence = np.array([0] * 70 + [1], np.int32)
    position = np.array([*range(70), 299], np.int32)
    q = _normal(71, heads * columns).reshape(71, heads, columns)
    held = _in_codes(rows) if eight_bits else rows
    expected = reference.latent_attention(q, held, sequence, position, values, 0.1)
    run = partial(_kernels.latent_attention, q, cache, table, sequence, position, values, 0.1)
    label = "8 bits" if eight_bits else "bfloat16"
    return _Case(f"latent attention, {label}", run, expected, BFLOATS, same_bits=False)


def _in_codes(rows_SPL: Floats) -> Floats:
    """What a cache of 8 bits keeps: 64 columns share a scale, the largest magnitude is 127 steps."""
    out = np.empty_like(rows_SPL)
    for start in range(0, rows_SPL.shape[-1], 64):
        part = rows_SPL[..., start : start + 64]
        step = np.abs(part).max(-1, keepdims=True) / np.float32(127)
        out[..., start : start + 64] = np.rint(part / step) * step
    return out


def _normal(rows: int, cols: int) -> Floats:
    return np.random.default_rng(rows * 1000 + cols).standard_normal((rows, cols), np.float32)


def _count(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens} tokens"
