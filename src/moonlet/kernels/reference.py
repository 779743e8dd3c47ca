"""Each kernel again, in a few lines of numpy that say what it computes. The kernels are held against these.

Sums are taken in float64, so that what differs is the kernel's own rounding. What is no rounding but part of
the definition is here as well: products with quantized weights see activations in 8 bits (`eight_bits`),
attention sees its queries and its cache in bfloat16.

Shapes: N tokens, D hidden_size, R rows of a matrix, E experts, K experts per token, F their width, H heads,
L columns of a cached row, C of which are values.
"""

import numpy as np
from numpy.typing import NDArray

from moonlet.quant import bf16

Floats = NDArray[np.float32]
Exact = NDArray[np.float64]
Ints = NDArray[np.int32]
GROUP = 32  # columns of an activation that share a scale


def eight_bits(x_ND: Floats | Exact) -> Exact:
    """Activations as int8 products see them: in groups of 32, the largest magnitude is 127 steps."""
    n, width = x_ND.shape
    groups = np.zeros((n, -(-width // GROUP) * GROUP), np.float32)
    groups[:, :width] = x_ND
    groups = groups.reshape(n, -1, GROUP)
    absmax = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), absmax, out=np.zeros_like(absmax), where=absmax >= 1e-35)
    codes = np.rint(groups * inverse).astype(np.float64)
    return (codes * (absmax / np.float32(127))).reshape(n, -1)[:, :width]


def linear(weight_RD: Floats, x_ND: Floats | Exact, quantized: bool = True) -> Exact:
    """weight x for every token: [N, R]. `quantized` is whether the weights, decoded here, are."""
    x = eight_bits(x_ND) if quantized else x_ND.astype(np.float64)
    return x @ weight_RD.astype(np.float64).T


def swiglu(gate: Exact, up: Exact) -> Exact:
    """silu(gate) * up (arXiv 2002.05202)."""
    return gate / (1 + np.exp(-gate)) * up


def ffn(x_ND: Floats | Exact, gate_FD: Floats, up_FD: Floats, down_DF: Floats) -> Exact:
    """down(swiglu(gate x, up x)) of quantized matrices: [N, D]."""
    return linear(down_DF, swiglu(linear(gate_FD, x_ND), linear(up_FD, x_ND)))


def routed_ffn(
    x_ND: Floats,
    experts: list[tuple[Floats, Floats, Floats]],
    ids_NK: Ints,
    weights_NK: Floats,
) -> Exact:
    """Sum over each token's experts, weighted; `experts` holds gate, up and down of each."""
    out = np.zeros(x_ND.shape, np.float64)
    for token, choice in np.ndindex(ids_NK.shape):
        y_1D = ffn(x_ND[token : token + 1], *experts[ids_NK[token, choice]])
        out[token] += weights_NK[token, choice] * y_1D[0]
    return out


def rms_norm(x_NW: Floats, weight: Floats, eps: float) -> Exact:
    """x / rms(x) * weight (arXiv 1910.07467) over the first columns, as many as weights; others stay."""
    out = x_NW.astype(np.float64)
    head = out[:, : len(weight)]
    out[:, : len(weight)] = head / np.sqrt((head**2).mean(-1, keepdims=True) + eps) * weight
    return out


def rotate(x_NHW: Floats, cos_NP: Floats, sin_NP: Floats) -> Exact:
    """Turns the last 2 P columns in adjacent pairs by the angles of the token; the others stay."""
    out = x_NHW.astype(np.float64)
    tail = out[..., -2 * cos_NP.shape[1] :]
    even, odd = tail[..., 0::2].copy(), tail[..., 1::2].copy()
    cos, sin = cos_NP[:, None].astype(np.float64), sin_NP[:, None].astype(np.float64)
    tail[..., 0::2], tail[..., 1::2] = even * cos - odd * sin, odd * cos + even * sin
    return out


def route(
    logits_NE: Floats,
    bias_E: Floats | None,
    top_k: int,
    sigmoid: bool = True,
    normalize: bool = True,
    scaling: float = 1.0,
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 2,
) -> tuple[Ints, Exact]:
    """The experts of each token, best first, and their weights (DeepSeek-V3, arXiv 2412.19437, 2.1.2).

    The bias steers the choice only. Of several groups those stay whose `group_best` best experts sum
    up highest. Equal scores go to the lower index.
    """
    logits = logits_NE.astype(np.float64)
    if sigmoid:
        scores = 1 / (1 + np.exp(-logits))
    else:
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        scores = shifted / shifted.sum(-1, keepdims=True)
    steered = scores if bias_E is None else scores + bias_E
    if groups > 1:
        members = steered.reshape(len(logits), groups, -1)
        worth = -np.sort(-members, axis=-1)[..., :group_best].sum(-1)
        kept = np.argsort(-worth, axis=-1, kind="stable")[:, :top_groups]
        allowed = np.zeros(worth.shape, bool)
        np.put_along_axis(allowed, kept, True, axis=-1)
        steered = np.where(allowed[..., None], members, -np.inf).reshape(steered.shape)
    ids = np.argsort(-steered, axis=-1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores, ids, axis=-1)
    if normalize:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return ids.astype(np.int32), weights * scaling


def reach(weights_V: Floats, goal: float) -> tuple[float, int]:
    """The smallest head of the tokens sorted by weight, ties by id, whose mass reaches `goal`: mass and last token.

    Weights are whole numbers whose sum float64 holds exactly; zeros are in no head.
    """
    order = np.argsort(-weights_V, kind="stable")
    masses = np.cumsum(weights_V[order], dtype=np.float64)
    last = int(masses.searchsorted(goal))
    return float(masses[last]), int(order[last])


def latent_attention(
    q_NHL: Floats, rows_SPL: Floats, sequence_N: Ints, position_N: Ints, values: int, scale: float
) -> Exact:
    """softmax(scale q . rows) rows[:values], where token n of its sequence sees rows 0 .. position.

    rows_SPL: what the cache holds of each sequence and position. Returns [N, H, C].
    """
    q, rows = bf16.rounded(q_NHL).astype(np.float64), bf16.rounded(rows_SPL).astype(np.float64)
    out = np.empty((*q.shape[:2], values))
    for token, (sequence, position) in enumerate(zip(sequence_N, position_N, strict=True)):
        seen_PL = rows[sequence, : position + 1]
        scores_HP = scale * q[token] @ seen_PL.T
        weights_HP = np.exp(scores_HP - scores_HP.max(-1, keepdims=True))
        out[token] = weights_HP @ seen_PL[:, :values] / weights_HP.sum(-1, keepdims=True)
    return out
