"""Predictions against what people have measured, above all on the rows that no factor was fitted to."""

from statistics import median

import pytest

from moonlet.plan.factors import all_factors
from moonlet.plan.measured import Figure, Row, rows

FIGURES = [(row, figure) for row in rows() for figure in row.figures]
HELD_OUT = [(row, figure) for row, figure in FIGURES if row.held_out]


def said(row: Row, figure: Figure) -> float:
    return figure.said_by(row.predictor(all_factors()[row.engine].factors))


def inside(row: Row, figure: Figure) -> bool:
    low, high = all_factors()[row.engine].interval(figure.regime, said(row, figure))
    return low <= figure.tok_s <= high


def test_every_third_row_is_held_out() -> None:
    assert [row.held_out for row in rows()[:7]] == [False, False, True, False, False, True, False]
    fitted = {number for known in all_factors().values() for number in known.rows}
    assert fitted == {row.number for row in rows() if row.figures and not row.held_out}


def test_every_row_has_figures_or_says_why_not() -> None:
    assert all(bool(row.figures) != bool(row.unused) for row in rows())
    assert all(row.source and row.sure in ("H", "M", "L") for row in rows())
    assert len({row.number for row in rows()}) == len(rows()) > 50


def test_held_out_rows_are_predicted() -> None:
    """The bar of the planner: at most 25 % off in the median, nine of ten inside their interval."""
    off = [abs(said(row, figure) / figure.tok_s - 1) for row, figure in HELD_OUT]
    assert len(off) >= 30
    assert median(off) <= 0.25
    whole = {row.number: True for row, _ in HELD_OUT}
    for row, figure in HELD_OUT:
        whole[row.number] &= inside(row, figure)
    assert sum(whole.values()) >= 0.9 * len(whole)
    assert sum(inside(*one) for one in HELD_OUT) >= 0.9 * len(HELD_OUT)


def test_factors_are_those_of_the_rows() -> None:
    """They were fitted to these figures: a table or a formula that changed needs a new fit."""
    trained = [(row, figure) for row, figure in FIGURES if not row.held_out and row.sure == "H"]
    assert median(abs(said(row, figure) / figure.tok_s - 1) for row, figure in trained) <= 0.2


@pytest.mark.parametrize(
    "figure",
    [
        Figure("decode", 1, streams=4, context=1000),
        Figure("prefill", 1, tokens=2000),
        Figure("serve", 1, streams=8, prompt=1000, answer=100),
        Figure("users", 1, tok_s_each=20, prompt=1000, answer=100),
    ],
)
def test_faster_hardware_is_never_slower(figure: Figure) -> None:
    from dataclasses import replace

    row = next(row for row in rows() if row.number == 32)
    predictor = row.predictor(all_factors()[row.engine].factors)
    one = predictor.machine.accelerators[0]
    faster = replace(
        one, bandwidth_bytes_s=2 * one.bandwidth_bytes_s, flops={"bf16": 2 * one.flops["bf16"]}
    )
    more = replace(
        predictor,
        machine=replace(
            predictor.machine, accelerators=(faster,) * len(predictor.machine.accelerators)
        ),
    )
    assert figure.said_by(more) > figure.said_by(predictor)
