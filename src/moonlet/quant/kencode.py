"""Encoding of the K formats: scales of sub-blocks, then scales of those scales, then the codes.

Every step makes the weighted squared error of the values smaller (see `search`):

    1. a real scale (and minimum) for each sub-block, by trial scales
    2. d (and dmin) so that the integers times d are near those, each weighed by what its error costs
    3. d (and dmin) by least squares for these integers and the codes that they give
    4. in the affine types, each integer one up or down where that is better for its sub-block, and
       step 3 again
    5. the codes for the scales as they will be decoded

Within a step sub-blocks lie in columns: values [per sub-block, n * subs], integers [subs, n], d [n].
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from moonlet.quant.bits import as_half
from moonlet.quant.kquants import AFFINE, SYMMETRIC, Affine, Symmetric
from moonlet.quant.rounding import inverse
from moonlet.quant.search import (
    Rounder,
    Values,
    fit_affine,
    fit_scale,
    integers,
    safe_divide,
    total,
)

# Where the largest value is tried, relative to the top code of the affine types and as a code of the
# others. Widths and steps are where the error on normal and heavy-tailed data stopped falling.
_OFFSETS = {
    "Q2_K": np.linspace(-0.9, 0.9, 19),
    "Q4_K": np.linspace(-2, 2, 19),
    "Q5_K": np.linspace(-3, 3, 19),
}
_TARGETS = {
    "Q3_K": np.concatenate([np.linspace(-5.5, -2.5, 11), np.linspace(2.5, 5, 9)]),
    "Q6_K": np.linspace(-39, -17, 23),
}
# The same for the integer scales, as a share of the largest.
_SCALE_TARGETS = np.linspace(0.8, 1.1, 19)


def encode_affine(name: str, values: Values, weight: Values | None) -> NDArray[np.uint8]:
    """Values [n, 256] and their weights, if any, to blocks uint8 [n, bytes] of Q2_K, Q4_K or Q5_K."""
    layout, n = AFFINE[name], len(values)
    x, w = _columns(values, layout.subs), _column_weights(values, weight, layout.subs)
    rounder, limit = integers(0, layout.max_code), integers(0, layout.max_scale)
    scale, minimum, curvature = fit_affine(x, w, layout.max_code, _OFFSETS[name])
    scales, d = _integers(scale, curvature, n, limit, layout.max_scale)
    mins, dmin = _integers(minimum, total(w), n, limit, layout.max_scale)
    d, dmin = _refit_affine(x, w, rounder, scales, mins, d, dmin)
    scales, mins = _nudge(x, w, rounder, limit, scales, mins, d, dmin)
    d, dmin = _refit_affine(x, w, rounder, scales, mins, d, dmin)
    codes, _, _ = _affine_codes(x, rounder, scales, mins, d, dmin)
    return layout.pack(
        Affine(
            codes=_rows(codes, n).astype(np.uint8),
            scales=scales.T.astype(np.uint8),
            mins=mins.T.astype(np.uint8),
            d=d[:, None],
            dmin=dmin[:, None],
        )
    )


def encode_symmetric(name: str, values: Values, weight: Values | None) -> NDArray[np.uint8]:
    """Values [n, 256] and their weights, if any, to blocks uint8 [n, bytes] of Q3_K or Q6_K."""
    layout, n = SYMMETRIC[name], len(values)
    x, w = _columns(values, 16), _column_weights(values, weight, 16)
    rounder = integers(layout.min_code, -layout.min_code - 1)
    limit = integers(layout.min_scale, -layout.min_scale - 1)
    scale, curvature = fit_scale(x, w, rounder, _TARGETS[name])
    scales, d = _integers(scale, curvature, n, limit, layout.min_scale)
    d = _refit_symmetric(x, w, rounder, scales, d)
    codes = _symmetric_codes(x, rounder, scales, d)
    return layout.pack(
        Symmetric(
            codes=_rows(codes, n).astype(np.int8),
            scales=scales.T.astype(np.int8),
            d=d[:, None],
        )
    )


def _integers(
    real: Values, cost: Values, n: int, limit: Rounder, edge: int
) -> tuple[Values, Values]:
    """Integers [subs, n] and the half d [n] with d * integers near `real` [n * subs]."""
    real, cost = _per_block(real, n), _per_block(cost, n)
    d, _ = fit_scale(real, cost, limit, edge * _SCALE_TARGETS)
    d = _half(d)
    return limit(real * inverse(d)), d


def _nudge(
    x: Values,
    w: Values,
    rounder: Rounder,
    limit: Rounder,
    scales: Values,
    mins: Values,
    d: Values,
    dmin: Values,
) -> tuple[Values, Values]:
    """The integers, each of every sub-block one lower, equal or one higher, whichever loses least."""
    best = np.full(scales.shape, np.inf, np.float32)
    best_scales, best_mins = scales, mins
    for scale_move, min_move in product((0, -1, 1), repeat=2):
        moved, moved_mins = limit(scales + scale_move), limit(mins + min_move)
        error, step, offset = _affine_codes(x, rounder, moved, moved_mins, d, dmin)
        error *= step
        error -= offset
        error -= x
        loss = _per_block(total(error, error, w), len(d))
        better = loss < best
        best = np.where(better, loss, best)
        best_scales = np.where(better, moved, best_scales)
        best_mins = np.where(better, moved_mins, best_mins)
    return best_scales, best_mins


def _affine_codes(
    x: Values, rounder: Rounder, scales: Values, mins: Values, d: Values, dmin: Values
) -> tuple[Values, Values, Values]:
    """Codes for these scales, and the steps and offsets of the columns."""
    step, offset = _per_column(d * scales), _per_column(dmin * mins)
    return rounder((x + offset) * inverse(step)), step, offset


def _refit_affine(
    x: Values, w: Values, rounder: Rounder, scales: Values, mins: Values, d: Values, dmin: Values
) -> tuple[Values, Values]:
    """d and dmin of the least squares for the codes that the given ones lead to."""
    n = len(d)
    codes, _, _ = _affine_codes(x, rounder, scales, mins, d, dmin)
    l1 = _per_block(total(codes, w), n)
    ll = _per_block(total(codes, codes, w), n)
    xl = _per_block(total(codes, x, w), n)
    x1 = _per_block(total(x, w), n)
    w1 = _per_block(total(w), n)
    # value = d (scale code) - dmin min: the two normal equations of a block
    aa, ab = total(scales, scales, ll), total(scales, mins, l1)
    bb = total(mins, mins, w1)
    ax, bx = total(scales, xl), total(mins, x1)
    det = aa * bb - ab * ab
    # Nearly dependent equations (say, only one code in use) say nothing in float32: keep what is.
    det = np.where(det > 1e-3 * aa * bb, det, 0)
    return (
        _half(np.where(det > 0, safe_divide(ax * bb - ab * bx, det), d)),
        _half(np.where(det > 0, safe_divide(ab * ax - aa * bx, det), dmin)),
    )


def _symmetric_codes(x: Values, rounder: Rounder, scales: Values, d: Values) -> Values:
    return rounder(x * inverse(_per_column(d * scales)))


def _refit_symmetric(x: Values, w: Values, rounder: Rounder, scales: Values, d: Values) -> Values:
    codes = _symmetric_codes(x, rounder, scales, d)
    lx = _per_block(total(codes, x, w), len(d))
    ll = _per_block(total(codes, codes, w), len(d))
    return _half(safe_divide(total(scales, lx), total(scales, scales, ll)))


def _half(scale: Values) -> Values:
    return as_half(scale[:, None])[:, 0]


def _columns(blocks: Values, subs: int) -> Values:
    """[n, 256] to [256 / subs, n * subs]."""
    return np.ascontiguousarray(blocks.reshape(len(blocks) * subs, -1).T)


def _column_weights(values: Values, weight: Values | None, subs: int) -> Values:
    return _columns(np.ones_like(values) if weight is None else weight, subs)


def _rows(columns: Values, n: int) -> Values:
    """[256 / subs, n * subs] to [n, 256]."""
    return columns.T.reshape(n, -1)


def _per_block(of_columns: Values, n: int) -> Values:
    """[n * subs] to [subs, n]."""
    return np.ascontiguousarray(of_columns.reshape(n, -1).T)


def _per_column(of_subs: Values) -> Values:
    """[subs, n] to [n * subs]."""
    return of_subs.T.reshape(-1)
