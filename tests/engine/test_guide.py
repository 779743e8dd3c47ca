"""Thinking first, then the guide of the answer."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moonlet.engine.guide import AfterThinking, Guide, only

SIZE = 10
END, OPEN, CLOSE, CALL = 0, 1, 2, 3


class Row:
    """Allows exactly the tokens of a list, in order."""

    def __init__(self, row: list[int]) -> None:
        self.row = row

    def mask(self) -> NDArray[np.bool_]:
        return only(SIZE, self.row[:1])

    def accept(self, token_id: int) -> None:
        assert token_id == self.row[0]
        self.row = self.row[1:]

    def fork(self) -> "Row":
        return Row(self.row)


def after(
    inner: Guide | None = None, budget: int | None = None, starts: bool = True, **other: Any
) -> AfterThinking:
    return AfterThinking(
        CLOSE, budget, inner, starts, vocab_size=SIZE, not_in_thought=[END, CALL], **other
    )


def allowed(guide: Guide) -> list[int] | None:
    mask = guide.mask()
    return None if mask is None else np.flatnonzero(mask).tolist()


def walk(guide: Guide, *tokens: int) -> Guide:
    for token in tokens:
        mask = guide.mask()
        assert mask is None or mask[token], token
        guide.accept(token)
    return guide


def test_thinking_is_free_but_cannot_end_the_answer() -> None:
    guide = walk(after(Row([7, 8])), 5, 7, OPEN)
    assert allowed(guide) == [1, 2, 4, 5, 6, 7, 8, 9]
    walk(guide, CLOSE)
    assert allowed(guide) == [7]
    walk(guide, 7)
    assert allowed(guide) == [8]


def test_without_an_inner_guide_nothing_is_masked_but_the_end_of_the_budget() -> None:
    guide = after(budget=2)
    assert allowed(guide) is None
    walk(guide, 5)
    assert allowed(guide) is None
    walk(guide, 5)
    assert allowed(guide) == [CLOSE]
    walk(guide, CLOSE)
    assert allowed(guide) is None
    assert allowed(walk(guide, 5, END)) is None


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_at_the_budget_the_thinking_is_closed(budget: int) -> None:
    guide = walk(after(Row([7]), budget), *[5] * budget)
    assert allowed(guide) == [CLOSE]
    assert allowed(walk(guide, CLOSE)) == [7]


def test_thinking_that_ends_before_its_budget() -> None:
    guide = walk(after(Row([5, 5, 5, 6]), 2), 4, CLOSE, 5, 5, 5)
    assert allowed(guide) == [6]


def test_an_instant_answer_is_the_inner_guide_s_from_the_start() -> None:
    assert allowed(after(Row([7]), 5, starts=False)) == [7]
    assert allowed(after(None, 5, starts=False)) is None


def test_a_model_that_opens_its_thinking_itself() -> None:
    guide = after(Row([7, 8]), 1, starts=False, think_begin_id=OPEN)
    assert allowed(guide) == [OPEN, 7]
    thinking = guide.fork()
    walk(guide, 7)
    assert allowed(guide) == [8]
    walk(thinking, OPEN, 5)
    assert allowed(thinking) == [CLOSE]
    assert allowed(walk(thinking, CLOSE)) == [7]
    assert allowed(after(None, 1, starts=False, think_begin_id=OPEN)) is None


def test_a_fork_goes_its_own_way() -> None:
    guide = walk(after(Row([7, 8]), 3), 5)
    other = walk(guide.fork(), 5, 5)
    assert allowed(other) == [CLOSE]
    assert allowed(walk(other, CLOSE, 7)) == [8]
    assert allowed(guide) == [1, 2, 4, 5, 6, 7, 8, 9]
    assert allowed(walk(guide, CLOSE)) == [7]


def test_masks_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        only(SIZE, [1])[2] = True
