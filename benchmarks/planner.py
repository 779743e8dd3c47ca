"""How well does the planner know how fast engines are?

    benchmarks/planner.py           the factors that are shipped against all measured rows, held-out ones apart
    benchmarks/planner.py --fit     fits the factors anew to the rows that are not held out, and writes them

Fitting is a least squares in logarithms: residuals of every figure (a row's weight is its trust and falls with
the root of how many figures it has), and how far factors stray from a first guess, which decides where no row
speaks. The spread that intervals are made of is that of the residuals, by engine and regime, drawn towards that
of all engines where there are few rows.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from moonlet.plan.factors import PATH, all_factors
from moonlet.plan.measured import Figure, Row, rows
from moonlet.plan.predict import FACTOR_NAMES, Factors

TRUST = {"H": 1.0, "M": 0.7, "L": 0.3}
GUESS = Factors(
    weight_share=0.7, layer_s=1e-4, sync_s=1.5e-5, node_s=1e-4, link_share=0.5, cache_share=0.5,
    compute_share=0.12, first_s=0.08, ram_share=0.45, host_layer_s=2e-4, host_compute_share=0.1,
    stream_share=0.6,
)  # fmt: skip
STRAYS = 0.7  # by so much (in logarithms) a factor differs from the guess as easily as a figure by all of ...
ERRS = 0.25  # ... this
SHARES = tuple(name for name in FACTOR_NAMES if name.endswith("_share"))
PSEUDO_ROWS = 4  # with which all engines' spread weighs
LEAST = 0.12
SHARED = ("vllm", "sglang")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.fit:
        PATH.write_text(written(fitted()), "utf-8")
        all_factors.cache_clear()
    report = compared()
    print(table(report))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "planner.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "planner.md").write_text(table(report))


def fitted() -> dict[str, dict[str, Any]]:
    """Factors and spreads by engine."""
    found: dict[str, tuple[Factors, list[tuple[Row, Figure, float]]]] = {}
    engines = sorted({row.engine for row in rows() if row.figures})
    for engine in engines:
        train = [row for row in rows() if row.engine == engine and not row.held_out and row.figures]
        found[engine] = _fit(train)
    pooled: dict[str, list[float]] = defaultdict(list)
    for _, residuals in found.values():
        for row, figure, off in residuals:
            pooled[figure.regime].append((off, _weight(row)))
    whole = {regime: _rms(pairs) for regime, pairs in pooled.items()}
    return {
        engine: {
            "factors": factors,
            "spread": _spreads(residuals, whole),
            "rows": sorted({row.number for row, _, _ in residuals}),
        }
        for engine, (factors, residuals) in found.items()
    }


def _fit(train: list[Row]) -> tuple[Factors, list[tuple[Row, Figure, float]]]:
    pairs = [(row, figure) for row in train for figure in row.figures]

    def factors(point: np.ndarray) -> Factors:
        values = {}
        for name, start, shift in zip(FACTOR_NAMES, START, point, strict=True):
            values[name] = _logistic(start + shift) if name in SHARES else math.exp(start + shift)
        return Factors(**values)

    def off(point: np.ndarray) -> np.ndarray:
        now = factors(point)
        predictors = {row.number: row.predictor(now) for row in train}
        return np.array(
            [math.log(figure.said_by(predictors[row.number]) / figure.tok_s) for row, figure in pairs]
        )

    weights = np.array([_weight(row) for row, _ in pairs])
    point = np.zeros(len(FACTOR_NAMES))
    damping = 1.0
    residual = off(point)
    for _ in range(60):
        jacobian = np.stack(
            [(off(point + step) - residual) / 1e-4 for step in np.eye(len(point)) * 1e-4], axis=1
        )
        scale = np.sqrt(weights / (1 + np.abs(residual)))[:, None]  # far ones pull less than squared
        left = np.vstack([scale * jacobian / ERRS, np.eye(len(point)) / STRAYS])
        right = np.concatenate([scale[:, 0] * residual / ERRS, point / STRAYS])
        step = -np.linalg.solve(left.T @ left + damping * np.eye(len(point)), left.T @ right)
        if _cost(off(point + step), point + step, weights) < _cost(residual, point, weights):
            point, damping = point + step, damping / 3
            residual = off(point)
        else:
            damping *= 4
        if np.abs(step).max() < 1e-4:
            break
    return factors(point), [(row, figure, value) for (row, figure), value in zip(pairs, residual, strict=True)]


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


def _rms(pairs: list[tuple[float, float]]) -> float:
    whole = sum(weight for _, weight in pairs)
    return math.sqrt(sum(weight * off**2 for off, weight in pairs) / whole)


def _spreads(residuals: list[tuple[Row, Figure, float]], whole: dict[str, float]) -> dict[str, float]:
    """One standard deviation of the logarithm, by regime."""
    spreads = {}
    for regime, general in whole.items():
        own = [(off, _weight(row)) for row, figure, off in residuals if figure.regime == regime]
        count = len({row.number for row, figure, _ in residuals if figure.regime == regime})
        square = (count * _rms(own) ** 2 if own else 0.0) + PSEUDO_ROWS * general**2
        # Rows that were fitted to are nearer than others will be.
        spreads[regime] = max(math.sqrt(square / (count + PSEUDO_ROWS)) * (1 + 1 / (count + 1)), LEAST)
    return spreads


def written(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Made by benchmarks/planner.py --fit from the rows of measured.toml that are not held out.",
        "# spread: one standard deviation of the logarithm of a speed, by regime. rows: what it rests on.",
    ]
    for engine, entry in found.items():
        lines += ["", f'["{engine}"]', f"rows = {entry['rows']}"]
        lines += [f"{name} = {getattr(entry['factors'], name):.3g}" for name in FACTOR_NAMES]
        spread = ", ".join(f"{regime} = {value:.3g}" for regime, value in sorted(entry["spread"].items()))
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
            "median_error_of_rows": median(median(o["error"] for o in ones) for ones in by_row.values()),
            "figures_inside": sum(one["inside"] for one in held),
            "rows_inside": sum(all(one["inside"] for one in ones) for ones in by_row.values()),
        },
        "unused": {row.number: row.unused for row in rows() if row.unused},
    }


def table(report: dict[str, Any]) -> str:
    lines = ["| row | engine | figure | measured | predicted | interval | error | |", "| ---: | --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for one in report["figures"]:
        lines.append(
            f"| {one['row']} | {one['engine']} | {one['figure']} | {one['measured']:,.1f} | {one['predicted']:,.1f} | "
            f"{one['low']:,.1f} to {one['high']:,.1f} | {one['error']:.0%} | "
            f"{'held out' if one['held_out'] else ''}{'' if one['inside'] else ', outside'} |"
        )
    held = report["held_out"]
    lines += ["", f"Held out: {held['rows']} rows with {held['figures']} figures; median error "
              f"{held['median_error_of_figures']:.0%} of the figures, {held['median_error_of_rows']:.0%} of the rows; inside "
              f"the interval {held['figures_inside']} figures, {held['rows_inside']} rows."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
