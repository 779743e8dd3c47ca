"""How well does the planner know how fast engines are?

    benchmarks/planner.py           the factors that are shipped against all measured rows, held-out ones apart
    benchmarks/planner.py --fit     fits the factors anew to the rows that are not held out, and writes them

Fitting is a least squares in logarithms: residuals of every figure (a row's weight is its trust and falls with
the root of how many figures it has), and how far factors stray from a first guess, which decides where no row
speaks. The spread that intervals are made of is that of the residuals, by engine and regime, drawn towards that
of all engines where there are few rows; each row's residual is that of a fit to the others.
"""

import argparse
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from moonlet.plan.factors import PATH, all_factors
from moonlet.plan.measured import Row, rows
from moonlet.plan.predict import FACTOR_NAMES, Factors

TRUST = {"H": 1.0, "M": 0.7, "L": 0.3}
GUESS = Factors(
    weight_share=0.7, layer_s=1e-4, sync_s=1.5e-5, node_s=1e-4, hop_s=3e-3, link_share=0.5, cache_share=0.5,
    compute_share=0.12, first_s=0.08, ram_share=0.45, host_layer_s=2e-4, core_flops=5e10,
    stream_share=0.6,
)  # fmt: skip
STRAYS = 1.0  # by so much (in logarithms) a factor differs from the guess as easily as a figure by all of ...
ERRS = 0.1  # ... this
SHARES = tuple(name for name in FACTOR_NAMES if name.endswith("_share"))
PSEUDO_ROWS = 4  # with which all engines' spread weighs
LEAST = 0.12
REGIMES = ("decode", "batch", "prefill")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.fit:
        now = fitted()
        PATH.write_text(written(now), "utf-8")
        all_factors.cache_clear()
    report = compared()
    print(table(report))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "planner.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "planner.md").write_text(table(report))


def fitted() -> dict[str, dict[str, Any]]:
    """Factors and spreads by engine."""
    found: dict[str, tuple[Factors, list[Off]]] = {}
    for engine in sorted({row.engine for row in rows() if row.figures}):
        train = [row for row in rows() if row.engine == engine and not row.held_out and row.figures]
        point = _fit(train)
        found[engine] = _factors(point), _left_out(train, point)
    every = [off for _, offs in found.values() for off in offs]
    whole = {regime: _rms([off for off in every if off.regime == regime]) for regime in REGIMES}
    return {
        engine: {
            "factors": factors,
            "spread": _spreads(offs, whole),
            "rows": sorted({off.row for off in offs}),
        }
        for engine, (factors, offs) in found.items()
    }


@dataclass(frozen=True)
class Off:
    """How far a prediction is from a figure, in logarithms, and what that weighs."""

    row: int
    regime: str
    off: float
    weight: float


def _offs(train: list[Row], point: np.ndarray) -> list[Off]:
    factors = _factors(point)
    return [
        Off(
            row.number,
            figure.regime,
            math.log(figure.said_by(predictor) / figure.tok_s),
            _weight(row),
        )
        for row in train
        for predictor in (row.predictor(factors),)
        for figure in row.figures
    ]


def _left_out(train: list[Row], point: np.ndarray) -> list[Off]:
    """Each row as the others predict it."""
    return [
        off
        for row in train
        for off in _offs([row], _fit([other for other in train if other is not row], point))
    ]


def _factors(point: np.ndarray) -> Factors:
    moved = zip(FACTOR_NAMES, START, point, strict=True)
    return Factors(**{
        name: _logistic(start + by) if name in SHARES else math.exp(start + by) for name, start, by in moved
    })  # fmt: skip


def _fit(train: list[Row], start: np.ndarray | None = None) -> np.ndarray:
    """How far each factor is moved from the guess: damped Gauss-Newton steps."""

    def off(point: np.ndarray) -> np.ndarray:
        return np.array([one.off for one in _offs(train, point)])

    point = np.zeros(len(FACTOR_NAMES)) if start is None else start
    residual = off(point)
    weights = np.array([one.weight for one in _offs(train, point)])
    damping = 1.0
    for _ in range(60):
        jacobian = np.stack(
            [(off(point + step) - residual) / 1e-4 for step in np.eye(len(point)) * 1e-4], axis=1
        )
        scale = np.sqrt(weights / (1 + np.abs(residual) / ERRS))  # far ones pull less than squared
        left = np.vstack([scale[:, None] * jacobian / ERRS, np.eye(len(point)) / STRAYS])
        right = np.concatenate([scale * residual / ERRS, point / STRAYS])
        step = -np.linalg.solve(left.T @ left + damping * np.eye(len(point)), left.T @ right)
        if _cost(off(point + step), point + step, weights) < _cost(residual, point, weights):
            point, damping = point + step, damping / 3
            residual = off(point)
        else:
            damping *= 4
        if np.abs(step).max() < 1e-3:
            break
    return point


def _cost(residual: np.ndarray, point: np.ndarray, weights: np.ndarray) -> float:
    size = np.abs(residual) / ERRS
    return float((weights * (size - np.log1p(size))).sum() * 2 + ((point / STRAYS) ** 2).sum())


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


START = [
    math.log(value / (1 - value)) if name in SHARES else math.log(value)
    for name, value in ((name, getattr(GUESS, name)) for name in FACTOR_NAMES)
]


def _weight(row: Row) -> float:
    return TRUST[row.sure] / math.sqrt(len(row.figures))


def _rms(offs: list[Off]) -> float:
    return math.sqrt(sum(o.weight * o.off**2 for o in offs) / sum(o.weight for o in offs))


def _spreads(offs: list[Off], whole: dict[str, float]) -> dict[str, float]:
    """One standard deviation of the logarithm, by regime."""
    spreads = {}
    for regime, general in whole.items():
        own = [off for off in offs if off.regime == regime]
        count = len({off.row for off in own})
        square = (count * _rms(own) ** 2 if own else 0.0) + PSEUDO_ROWS * general**2
        spreads[regime] = max(math.sqrt(square / (count + PSEUDO_ROWS)), LEAST)
    return spreads


def written(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Made by benchmarks/planner.py --fit from the rows of measured.toml that are not held out.",
        "# spread: one standard deviation of the logarithm of a speed, by regime. rows: what it rests on.",
    ]
    for engine, entry in found.items():
        lines += ["", f'["{engine}"]', f"rows = {entry['rows']}"]
        lines += [f"{name} = {getattr(entry['factors'], name):.3g}" for name in FACTOR_NAMES]
        spread = ", ".join(
            f"{regime} = {value:.3g}" for regime, value in sorted(entry["spread"].items())
        )
        lines += [f"spread = {{ {spread} }}"]
    return "\n".join(lines) + "\n"


def compared() -> dict[str, Any]:
    """Every figure as measured and as predicted, with its interval."""
    known, found = all_factors(), []
    for row in rows():
        if not row.figures:
            continue
        about = known[row.engine]
        predictor = row.predictor(about.factors)
        for figure in row.figures:
            said = figure.said_by(predictor)
            low, high = about.interval(figure.regime, said)
            found.append({
                "row": row.number, "engine": row.engine, "sure": row.sure, "held_out": row.held_out,
                "figure": figure.regime, "measured": figure.tok_s, "predicted": said, "low": low, "high": high,
                "error": abs(said / figure.tok_s - 1), "inside": low <= figure.tok_s <= high,
            })  # fmt: skip
    held = [one for one in found if one["held_out"]]
    by_row: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one in held:
        by_row[one["row"]].append(one)
    return {
        "figures": found,
        "held_out": {
            "rows": len(by_row),
            "figures": len(held),
            "median_error_of_figures": median(one["error"] for one in held),
            "median_error_of_rows": median(
                median(o["error"] for o in ones) for ones in by_row.values()
            ),
            "figures_inside": sum(one["inside"] for one in held),
            "rows_inside": sum(all(one["inside"] for one in ones) for ones in by_row.values()),
        },
        "unused": {row.number: row.unused for row in rows() if row.unused},
    }


def table(report: dict[str, Any]) -> str:
    lines = [
        "| row | engine | figure | measured | predicted | interval | error | |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | --- |",
        *map(_line, report["figures"]),
    ]
    held = report["held_out"]
    lines += ["", f"Held out: {held['rows']} rows with {held['figures']} figures; median error "
              f"{held['median_error_of_figures']:.0%} of the figures, {held['median_error_of_rows']:.0%} of the rows; inside "
              f"the interval {held['figures_inside']} figures, {held['rows_inside']} rows."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(one: dict[str, Any]) -> str:
    cells = [
        str(one["row"]), one["engine"], one["figure"], f"{one['measured']:,.1f}", f"{one['predicted']:,.1f}",
        f"{one['low']:,.1f} to {one['high']:,.1f}", f"{one['error']:.0%}",
        ("held out" if one["held_out"] else "") + ("" if one["inside"] else ", outside"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
