"""Encoding of the K formats: scales of sub-blocks, then scales of those scales, then the codes.

Every step minimises the weighted squared error of the values (see `search`):

    1. a real scale (and minimum) for each sub-block, by trial scales
    2. d (and dmin) so that the integers times d are near those scales, each weighed by what its error costs
    3. codes for the scales as they will be decoded
    4. d (and dmin) once more by least squares for those integers and codes, and the codes for them
"""

import numpy as np
from numpy.typing import NDArray

from moonlet.quant.bits import as_half
from moonlet.quant.kquants import (
    AFFINE,
    SYMMETRIC,
    Affine,
    AffineLayout,
    Symmetric,
)
from moonlet.quant.search import Values, fit_affine, fit_scale, integers, safe_divide


def encode_affine(name: str, values: Values, weight: Values | None) -> NDArray[np.uint8]:
    """Values [n, 256] and their weights, if any, to blocks uint8 [n, bytes] of Q2_K, Q4_K or Q5_K."""
    layout = AFFINE[name]
    n, subs = len(values), layout.subs
    x = _columns(values, subs)
    w = np.ones_like(x) if weight is None else _columns(weight, subs)
    scale, minimum, curvature = fit_affine(x, w, layout.max_code, _OFFSETS[name])
    scales, d = _integers(scale, curvature, n, 0, layout.max_scale)
    mins, dmin = _integers(minimum, w.sum(axis=0), n, 0, layout.max_scale)
    for _ in range(2):
        codes = _affine_codes(x, scales, mins, d, dmin, layout)
        d, dmin = _refit_affine(x, w, codes, scales, mins, d, dmin)
    codes = _affine_codes(x, scales, mins, d, dmin, layout)
    return layout.pack(
        Affine(
            _rows(codes.astype(np.uint8), n),
            scales.T.astype(np.uint8),
            mins.T.astype(np.uint8),
            d[:, None],
            dmin[:, None],
        )
    )


def encode_symmetric(name: str, values: Values, weight: Values | None) -> NDArray[np.uint8]:
    """Values [n, 256] and their weights, if any, to blocks uint8 [n, bytes] of Q3_K or Q6_K."""
    layout = SYMMETRIC[name]
    n, low = len(values), layout.min_code
    x = _columns(values, 16)
    w = np.ones_like(x) if weight is None else _columns(weight, 16)

    rounder = integers(low, -low - 1)
    scale, curvature = fit_scale(x, w, rounder, _TARGETS[name])
    scales, d = _integers(scale, curvature, n, layout.min_scale, -layout.min_scale - 1)
    for _ in range(2):
        step = (d * scales).T.reshape(-1)
        codes = rounder(x * safe_divide(np.float32(1), step))
        lx = _per_block(np.einsum("vg,vg,vg->g", codes, x, w), n)
        ll = _per_block(np.einsum("vg,vg,vg->g", codes, codes, w), n)
        fitted = safe_divide((scales * lx).sum(axis=0), (scales * scales * ll).sum(axis=0))
        d = as_half(fitted[:, None])[:, 0]
    step = (d * scales).T.reshape(-1)
    codes = rounder(x * safe_divide(np.float32(1), step))
    return layout.pack(
        Symmetric(_rows(codes.astype(np.int8), n), scales.T.astype(np.int8), d[:, None])
    )


_OFFSETS = {
    "Q2_K": np.linspace(-0.9, 0.9, 19),
    "Q4_K": np.linspace(-0.9, 0.9, 19),
    "Q5_K": np.linspace(-0.9, 0.9, 19),
}
_TARGETS = {
    "Q3_K": np.linspace(-4.9, -3.1, 19),
    "Q6_K": np.linspace(-32.9, -31.1, 19),
}


def _columns(blocks: Values, subs: int) -> Values:
    """[n, 256] to [256 / subs, n * subs]: sub-blocks in columns."""
    return np.ascontiguousarray(blocks.reshape(len(blocks) * subs, -1).T)


def _rows(columns: NDArray, n: int) -> NDArray:
    return np.ascontiguousarray(columns.T).reshape(n, -1)


def _per_block(of_subs: Values, n: int) -> Values:
    """[n * subs] to [subs, n]."""
    return of_subs.reshape(n, -1).T


def _integers(real: Values, cost: Values, n: int, low: int, high: int) -> tuple[Values, Values]:
    """Integers [subs, n] within low..high and the half d [n] with d * integers near `real` [n * subs]."""
    real, cost = np.ascontiguousarray(_per_block(real, n)), _per_block(cost, n)
    rounder = integers(low, high)
    edge = low if low else high
    d, _ = fit_scale(real, np.ascontiguousarray(cost), rounder, edge + np.linspace(-0.9, 0.9, 19))
    d = as_half(d[:, None])[:, 0]
    return rounder(real * safe_divide(np.float32(1), d)), d


def _affine_codes(
    x: Values, scales: Values, mins: Values, d: Values, dmin: Values, layout: AffineLayout
) -> Values:
    step = (d * scales).T.reshape(-1)
    codes = (x + (dmin * mins).T.reshape(-1)) * safe_divide(np.float32(1), step)
    return np.clip(np.rint(codes, out=codes), 0, layout.max_code, out=codes)


def _refit_affine(
    x: Values, w: Values, codes: Values, scales: Values, mins: Values, d: Values, dmin: Values
) -> tuple[Values, Values]:
    n = len(d)
    l1 = _per_block(np.einsum("vg,vg->g", codes, w), n)
    ll = _per_block(np.einsum("vg,vg,vg->g", codes, codes, w), n)
    xl = _per_block(np.einsum("vg,vg,vg->g", codes, x, w), n)
    x1 = _per_block(np.einsum("vg,vg->g", x, w), n)
    w1 = _per_block(w.sum(axis=0), n)
    # value = d (scale l) - dmin min: the normal equations over a block
    aa, ab = (scales**2 * ll).sum(axis=0), (scales * mins * l1).sum(axis=0)
    bb = (mins**2 * w1).sum(axis=0)
    ax, bx = (scales * xl).sum(axis=0), (mins * x1).sum(axis=0)
    det = aa * bb - ab * ab
    good = det > 1e-4 * aa * bb
    safe = np.where(good, det, 1)
    new_d = np.where(good, (ax * bb - ab * bx) / safe, d)
    new_dmin = np.where(good, (ab * ax - aa * bx) / safe, dmin)
    return as_half(new_d[:, None])[:, 0], as_half(new_dmin[:, None])[:, 0]
