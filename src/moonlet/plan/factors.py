"""What was fitted to measurements, by engine: `factors.toml` beside this file, made by benchmarks/planner.py."""

import math
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from moonlet.plan.predict import FACTOR_NAMES, Factors

PATH = Path(__file__).with_name("factors.toml")
# Of Student's distribution: between 5 and 95 % lie so many standard deviations, by degrees of freedom.
_NINETY_PERCENT = {
    3: 2.35,
    4: 2.13,
    5: 2.02,
    6: 1.94,
    7: 1.89,
    8: 1.86,
    10: 1.81,
    15: 1.75,
    30: 1.70,
}


@dataclass(frozen=True)
class Fitted:
    """An engine's factors, one standard deviation of a speed's logarithm by regime, and the rows behind them."""

    factors: Factors
    spread: dict[str, float] = field(hash=False)
    rows: tuple[int, ...]

    def interval(self, regime: str, value: float) -> tuple[float, float]:
        """Where nine of ten measurements should lie."""
        freedom = max(key for key in _NINETY_PERCENT if key <= max(len(self.rows), 3))
        width = math.exp(_NINETY_PERCENT[freedom] * self.spread[regime])
        return value / width, value * width


@cache
def all_factors() -> dict[str, Fitted]:
    """By engine."""
    table = tomllib.loads(PATH.read_text("utf-8"))
    return {
        name: Fitted(
            Factors(**{factor: entry[factor] for factor in FACTOR_NAMES}),
            entry["spread"],
            tuple(entry["rows"]),
        )
        for name, entry in table.items()
    }
