"""How long single operations take here: matrices of every type, and attention.

Times are those of all threads together.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from moonlet import kernels
from moonlet.kernels.limits import available_bytes
from moonlet.model.attention import attend
from moonlet.model.moe import grouped_linear
from moonlet.model.slices import Pool
from moonlet.plan.calibration import Curve
from moonlet.quant.types import TYPES

TOKENS = (1, 2, 4, 8, 16, 64, 256)
MATRIX_BYTES = 128 << 20  # beyond the caches, or nothing would be read from memory
COLUMNS = 2048
HEADS = (4, 16, 64, 128)
DEPTH, PROMPT, LATENT, VALUES = 2048, 768, 576, 512
BUDGET_S = 0.1  # for one timing
LEAST, MOST = 3, 20  # runs of it


def timed(run: Callable[[], Any], budget_s: float = BUDGET_S) -> float:
    """Seconds of a run: the best but for the first quarter, as what disturbs one only ever makes it slower."""
    times = in_turn([run], budget_s)[0]
    return sorted(times)[len(times) // 4]


def timed_in_turn(runs: Sequence[Callable[[], Any]], budget_s: float) -> list[float]:
    """Seconds of each, medians as in `moonlet bench`, which takes its cases in turn as well."""
    return [median(times) for times in in_turn(runs, budget_s)]


def in_turn(runs: Sequence[Callable[[], Any]], budget_s: float) -> list[list[float]]:
    """Seconds of each, run one after the other again and again, after one round that nobody counts."""
    for run in runs:
        run()
    found: list[list[float]] = [[] for _ in runs]
    end, rounds = time.perf_counter() + budget_s, 0
    while rounds < LEAST or (time.perf_counter() < end and rounds < MOST):
        for run, times in zip(runs, found, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        rounds += 1
    return found


def kernel_types() -> dict[str, list[str]]:
    """Types whose panels are the same, by the first of them: one measurement does for all."""
    found: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    kinds = (kind for kind in TYPES if kind not in ("F16", "BF16"))  # which become Q8_0
    for kind in (*kinds, "INT4"):
        found.setdefault(first.setdefault(kernels.panel_type(kind), kind), []).append(kind)
    return found


def matrix_curve(pool: Pool, kind: str) -> Curve:
    """Seconds per weight of a matrix of that type that so many tokens meet."""
    bits = TYPES[kind].bits_per_value if kind in TYPES else 4.5
    num_bytes = min(MATRIX_BYTES, available_bytes() // 16)
    rows = max(16, int(num_bytes * 8 / bits / COLUMNS) // 16 * 16)
    matrix = pool.matrix(kind, rows, COLUMNS)
    return tuple((n, timed(_product(matrix, n)) / (rows * COLUMNS)) for n in TOKENS)


def _product(matrix: kernels.Matrix, tokens: int) -> Callable[[], Any]:
    x = np.ones((tokens, COLUMNS), np.float32)
    out = np.empty((tokens, matrix.rows), np.float32)
    return lambda: matrix(x, out)


def decode_attention() -> Curve:
    """Seconds per visible position and cached number, over heads; every layer has a cache of its own."""
    layers = max(1, min(MATRIX_BYTES, available_bytes() // 16) // (2 * DEPTH * LATENT))
    pages = np.zeros((layers, 1, DEPTH, LATENT), np.uint16)
    pages[:] = (
        np.random.default_rng(0).standard_normal(LATENT).astype(np.float32).view(np.uint32) >> 16
    )
    table, sequence = np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
    position = np.array([DEPTH - 1], np.int32)

    def run(q: np.ndarray) -> None:
        for layer in pages:
            kernels.latent_attention(q, layer, table, sequence, position, VALUES, 0.1)

    found = []
    for heads in HEADS:
        q = np.ones((1, heads, LATENT), np.float32)
        found.append((heads, timed(lambda q=q: run(q)) / (layers * DEPTH * LATENT)))
    return tuple(found)


def prefill_attention(heads: int = 16) -> float:
    """Seconds per multiplication of a prompt's absorbed attention."""
    pages = np.zeros((1, PROMPT, LATENT), np.uint16)
    table, sequence = np.zeros((1, 1), np.int32), np.zeros(PROMPT, np.int32)
    position = np.arange(PROMPT, dtype=np.int32)
    q = np.ones((PROMPT, heads, LATENT), np.float32)
    seconds = timed(
        lambda: kernels.latent_attention(q, pages, table, sequence, position, VALUES, 0.1)
    )
    return seconds / (PROMPT * (PROMPT + 1) / 2 * heads * (LATENT + VALUES))


def torch_matrix_curve(dtype: torch.dtype) -> Curve:
    num_bytes = min(MATRIX_BYTES, available_bytes() // 16)
    weight = torch.ones(max(16, num_bytes // dtype.itemsize // COLUMNS), COLUMNS, dtype=dtype)
    return _torch_curve(weight, lambda x: F.linear(x, weight))


def torch_experts_curve(dtype: torch.dtype) -> Curve:
    """Over the tokens of each expert."""
    experts, width = (
        16,
        min(MATRIX_BYTES, available_bytes() // 16) // dtype.itemsize // COLUMNS // 16,
    )
    weight = torch.ones(experts, max(16, width // 16 * 16), COLUMNS, dtype=dtype)

    def run(x: torch.Tensor) -> None:
        counts = torch.full((experts,), len(x))
        grouped_linear(x.repeat(experts, 1), weight, counts)

    return _torch_curve(weight, run)


def _torch_curve(weight: torch.Tensor, run: Callable[[torch.Tensor], Any]) -> Curve:
    points = []
    with torch.inference_mode():
        for tokens in TOKENS:
            x = torch.ones(tokens, COLUMNS, dtype=weight.dtype)
            points.append((tokens, timed(lambda x=x: run(x)) / weight.numel()))
    return tuple(points)


def torch_decode_attention() -> Curve:
    latents = torch.ones(1, 1, DEPTH, LATENT)
    points = []
    with torch.inference_mode():
        for heads in HEADS:
            q = torch.ones(1, 1, heads, LATENT)
            seconds = timed(lambda q=q: attend(q, latents, latents, None, 0.1, causal=False))
            points.append((heads, seconds / (DEPTH * LATENT)))
    return tuple(points)


def torch_prefill_attention(heads: int = 4, width: int = 64) -> float:
    q, k, v = (torch.ones(1, heads, PROMPT, width) for _ in range(3))
    with torch.inference_mode():
        seconds = timed(lambda: attend(q, k, v, None, 0.1))
    return seconds / (PROMPT * (PROMPT + 1) / 2 * heads * 2 * width)
