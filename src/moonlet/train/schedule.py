"""Warm-up, stable, decay: the learning rate of Kimi K2 (arXiv 2507.20534, section 2.5)."""

import math


def wsd(step: int, steps: int, peak: float, warmup: int, decay: int, floor: float = 0.05) -> float:
    """Learning rate of `step` (from 0): linear up, constant, then over the last `decay` steps a
    half cosine down to `floor` times the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    left = steps - step
    if left >= decay:
        return peak
    return peak * (floor + (1 - floor) * 0.5 * (1 - math.cos(math.pi * left / decay)))
