"""Scales that make the weighted squared error of rounding small: the searches behind the encoders.

For a group of values x with weights w and codes l from a few integers, the best scale of given codes is a
least-squares fit, and the best codes of a given scale are found by rounding; both together are not a
smooth problem. So codes are rounded with a row of trial scales, the best scale fitted to each, and the fit
with the smallest error kept, after one more round of the same from there. The idea is that of llama.cpp's
reference encoders; here the squared error itself is what is minimised.

Groups lie in columns: x and w are float32 [values, groups], so that every sum runs over the first axis and
every operation over all groups at once.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from moonlet.quant.rounding import inverse

Values = NDArray[np.float32]
# Turns values divided by a scale into the nearest allowed codes, as float32, in place or not.
Rounder = Callable[[Values], Values]

_TINY = np.float32(1e-15)  # groups smaller than this vanish in any half-float scale


def total(*factors: NDArray[np.floating]) -> Values:
    """Sums [groups] over the first axis of the product of the factors, all [values, groups].

    Always added value by value, so that a group gets the same bits whatever stands beside it: einsum
    rounds the last groups differently, and numpy sums a single column in another order.
    """
    product = factors[0]
    if len(factors) > 1:
        product = np.multiply(factors[0], factors[1])
    for factor in factors[2:]:
        product *= factor
    if product.shape[1] == 1:
        return np.add.accumulate(product, axis=0)[-1]
    return np.add.reduce(product, axis=0)


def safe_divide(over: NDArray[np.floating], under: Values) -> Values:
    """over / under, and 0 where the divisor is 0 or next to it."""
    over, under = np.broadcast_arrays(over, under)
    usable = np.abs(under) > np.float32(1e-30)
    return np.divide(over, under, out=np.zeros(over.shape, np.float32), where=usable)


def integers(low: int, high: int) -> Rounder:
    """The rounder to whole numbers within low..high; it overwrites its argument."""

    def rounder(codes: Values) -> Values:
        return np.clip(np.rint(codes, out=codes), low, high, out=codes)

    return rounder


def fit_scale(
    x: Values, w: Values, rounder: Rounder, targets: Iterable[float]
) -> tuple[Values, Values]:
    """Scales s [groups] and curvatures sum(w l^2) [groups] with small sum(w (x - s l)^2), l from `rounder`.

    `targets` are the codes, fractions allowed, that the value of largest magnitude is tried at.
    """
    at = np.abs(x).argmax(axis=0)
    peak = np.take_along_axis(x, at[None], axis=0)[0]
    per_target = inverse(np.where(np.abs(peak) > _TINY, peak, 0))
    best = np.zeros_like(peak)
    scale, curvature = np.zeros_like(peak), np.zeros_like(peak)
    wx = w * x

    def consider(scaled: Values) -> None:
        codes = rounder(scaled)
        lx = total(codes, wx)
        ll = total(codes, codes, w)
        fitted = safe_divide(lx, ll)
        gain = fitted * lx
        better = gain > best
        for kept, new in ((best, gain), (scale, fitted), (curvature, ll)):
            np.copyto(kept, new, where=better)

    trial = np.empty_like(x)
    for target in targets:
        consider(np.multiply(x, per_target * np.float32(target), out=trial))
    consider(np.multiply(x, inverse(scale), out=trial))
    return scale, curvature


def fit_affine(
    x: Values, w: Values, top: int, offsets: Iterable[float]
) -> tuple[Values, Values, Values]:
    """Scales s, minima m and curvatures, each [groups], with small sum(w (x - (s l - m))^2), l in 0..top.

    m is never negative: the formats cannot hold a group that starts above 0. `offsets` are added to `top`
    to give the code, fractions allowed, that the largest value is tried at.
    """
    low = np.minimum(x.min(axis=0), np.float32(0))
    span = x.max(axis=0) - low
    per_code = inverse(np.where(span > _TINY, span, 0))
    w1 = total(w)
    mean = total(w, x) / w1
    wx = w * (x - mean)
    best = np.full_like(mean, np.inf)
    scale, minimum, curvature = np.zeros_like(mean), -low, np.zeros_like(mean)

    def consider(scaled: Values) -> None:
        codes = np.clip(np.rint(scaled, out=scaled), 0, top, out=scaled)
        l1 = total(codes, w)
        ll = total(codes, codes, w)
        lx = total(codes, wx)
        fitted, lowest, loss = solve_affine(w1, mean, l1, ll, lx)
        better = loss < best
        news = ((best, loss), (scale, fitted), (minimum, lowest), (curvature, ll))
        for kept, new in news:
            np.copyto(kept, new, where=better)

    above, trial = x - low, np.empty_like(x)
    for offset in offsets:
        consider(np.multiply(above, per_code * np.float32(top + offset), out=trial))
    np.add(x, minimum, out=trial)
    consider(np.multiply(trial, inverse(scale), out=trial))
    return scale, minimum, curvature


def solve_affine(
    w1: Values, mean: Values, l1: Values, ll: Values, lx: Values
) -> tuple[Values, Values, Values]:
    """Least-squares s and m >= 0 of x = s l - m, with the loss up to a constant of the group.

    The sums are weighted: w1 = sum w, l1 = sum w l, ll = sum w l^2, lx = sum w l (x - mean), where
    mean is that of x; subtracting it first is what keeps float32 exact enough.
    """
    spread = ll - l1 * l1 / w1
    scale = safe_divide(lx, np.where(spread > 1e-6 * ll, spread, np.float32(0)))
    loss = -scale * lx
    minimum = scale * l1 / w1 - mean
    # Where the minimum would be negative it is 0, and the scale is that of a line through the origin.
    full = lx + mean * l1
    through_origin = safe_divide(full, ll)
    origin_loss = w1 * mean * mean - through_origin * full
    clipped = minimum < 0
    return (
        np.where(clipped, through_origin, scale),
        np.maximum(minimum, np.float32(0)),
        np.where(clipped, origin_loss, loss),
    )
