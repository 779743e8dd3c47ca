"""The worked steps must be true, whatever the sum: they are checked line by line with plain arithmetic."""

import random
import re

import pytest

from moonlet.nano.arithmetic import (
    LARGEST,
    SMALL,
    Sum,
    ask,
    draw_sum,
    held_out,
    steps,
)
from moonlet.nano.phrases import section

SUMS = [
    Sum(a, b, minus)
    for minus in (False, True)
    for a in (0, 1, 9, 10, 47, 99, 100, 301, 500, 909, 999)
    for b in (0, 2, 9, 19, 98, 100, 299, 301, 999)
]


@pytest.mark.parametrize("question", SUMS, ids=lambda q: q.answer)
def test_every_line_of_the_steps_is_true(question: Sum) -> None:
    first, *lines = steps(question).split("\n")
    assert re.split(r"[+-]", first) == [
        str(n).zfill(len(str(max(question.a, question.b)))) for n in (question.a, question.b)
    ]
    if question.minus:
        compared, pair = lines.pop(0).split(": ")
        for x, sign, y in re.findall(r"(\d)([<>=])(\d)", compared):
            assert sign == ("<" if x < y else ">" if x > y else "=")
        signs = [sign for _, sign, _ in re.findall(r"(\d)([<>=])(\d)", compared)]
        assert set(signs[:-1]) <= {"="}, "it goes on while digits are equal"
        assert (signs[-1] == "=") == (question.a == question.b), "and up to the difference"
        assert ("-(" in pair) == (question.a < question.b)
        if pair == "0":
            assert question.a == question.b
            return
    so_far = ""
    for line in lines:
        left, _, result = line.partition(": ")
        result = result.partition(",")[0]
        if "=" in left:
            expression, _, value = left.partition("=")
            total = sum(int(term) for term in re.findall(r"[+-]?\d+", expression))
            assert total == int(value)
            assert result == str(total % 10) + so_far
            assert ("1" in line.partition(",")[2]) == (", " in line)
        else:
            assert (left, result) == ("1", "1" + so_far)
        so_far = result
    assert int(so_far) == abs(question.result)


def test_the_format_is_the_one_of_the_module_docstring() -> None:
    assert steps(Sum(347, 285, False)) == (
        "347+285\n7+5=12: 2, carry 1\n4+8+1=13: 32, carry 1\n3+2+1=6: 632"
    )
    assert steps(Sum(285, 347, True)) == (
        "285-347\n2<3: -(347-285)\n7-5=2: 2\n14-8=6: 62, borrow 1\n3-2-1=0: 062"
    )
    assert steps(Sum(99, 1, False)) == "99+01\n9+1=10: 0, carry 1\n9+0+1=10: 00, carry 1\n1: 100"
    assert steps(Sum(7, 7, True)) == "7-7\n7=7: 0"


def test_answers_show_the_result_with_its_sign() -> None:
    assert Sum(347, 285, False).answer == "347 + 285 = 632"
    assert Sum(285, 347, True).answer == "285 - 347 = -62"


def test_drawn_sums_stay_in_range_and_repeat_with_the_seed() -> None:
    drawn = [draw_sum(random.Random(seed)) for seed in range(500)]
    assert drawn == [draw_sum(random.Random(seed)) for seed in range(500)]
    assert all(0 <= n <= LARGEST for q in drawn for n in (q.a, q.b))
    assert {len(str(q.a)) for q in drawn} == {1, 2, 3}
    small = [draw_sum(random.Random(seed), small=True) for seed in range(200)]
    assert all(q.is_small and max(q.a, q.b) <= SMALL for q in small)


def test_a_fixed_share_of_large_sums_is_held_out() -> None:
    rng = random.Random(0)
    large = [q for q in (draw_sum(rng) for _ in range(4000)) if not q.is_small]
    share = sum(q.is_held_out for q in large) / len(large)
    assert 0.04 < share < 0.09
    assert not any(Sum(a, b, False).is_held_out for a in range(21) for b in range(21))
    assert held_out("347+285") == held_out("347+285")


@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("minus", [False, True])
def test_every_phrase_names_both_operands(language: str, minus: bool) -> None:
    for phrase in section("minus" if minus else "plus")[language]:
        assert phrase.count("{a}") == phrase.count("{b}") == 1, phrase
    text = ask(Sum(12, 345, minus), language, random.Random(0))
    assert "12" in text
    assert "345" in text
