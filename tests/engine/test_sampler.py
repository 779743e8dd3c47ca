"""Sampling against a full sort that follows the definition, and the shares of tokens against theirs."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moonlet.engine.sampler import Drawn, Sampler, SamplingParams, uniform
from moonlet.errors import EngineError

LOGITS = np.log(np.array([0.5, 0.1, 0.3, 0.1], np.float32))


def shares(params: SamplingParams, draws: int = 4000, **settings: Any) -> list[float]:
    sampler = Sampler(params)
    drawn = Counter(sampler.draw(LOGITS, **settings).token for _ in range(draws))
    return [drawn[token] / draws for token in range(len(LOGITS))]


def reference(
    logits: NDArray[np.float32],
    params: SamplingParams,
    prompt: list[int],
    answer: list[int],
    mask: NDArray[np.bool_] | None,
    number: float,
) -> int:
    """The token that `number` in [0, 1) falls on when all tokens are laid out by probability."""
    logits = logits.copy()
    if params.repetition_penalty != 1:
        penalty = np.float32(params.repetition_penalty)
        for token in {*prompt, *answer}:
            logits[token] = (
                logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            )
    offsets = dict.fromkeys(range(len(logits)), np.float32(0))
    for token, bias in params.logit_bias:
        offsets[token] += np.float32(bias)
    for place, token in enumerate(answer):
        offsets[token] -= np.float32(params.frequency_penalty)
        if token not in answer[:place]:
            offsets[token] -= np.float32(params.presence_penalty)
    logits = np.array([logit + offsets[i] for i, logit in enumerate(logits)], np.float32)
    allowed = [i for i in range(len(logits)) if mask is None or mask[i]]
    highest = max(logits[allowed])
    if params.temperature < 1e-5:
        return next(i for i in allowed if logits[i] == highest)
    scale = 2 ** (52 - len(allowed).bit_length())
    cold = np.float32(1 / params.temperature)
    weights = {
        i: math.floor(np.exp((logits[i : i + 1] - highest) * cold)[0] * scale) for i in allowed
    }
    line = sorted(allowed, key=lambda i: (-weights[i], i))
    line = [i for i in line if weights[i] >= np.float32(params.min_p) * np.float32(scale)]
    line = line[: params.top_k or None]
    goal = params.top_p * sum(weights[i] for i in line)
    keep = 1
    while sum(weights[i] for i in line[:keep]) < goal:
        keep += 1
    point = number * sum(weights[i] for i in line[:keep])
    for i in line:
        point -= weights[i]
        if point < 0:
            return i
    raise AssertionError("the number lies beyond the line")


settings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.1, 0.6, 1, 1.5, 100]),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    top_k=st.integers(0, 12),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5, -2]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5, -1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.5]),
    logit_bias=st.lists(st.tuples(st.integers(0, 4), st.integers(-100, 100))).map(tuple),
    seed=st.integers(),
)


@given(settings, st.data())
def test_the_token_is_the_one_that_a_full_sort_finds(
    params: SamplingParams, data: st.DataObject
) -> None:
    size = data.draw(st.integers(5, 40))
    logit = st.one_of(st.integers(-4, 4), st.floats(-30, 30, width=32))  # integers: many are equal
    prompt = data.draw(st.lists(st.integers(0, size - 1), max_size=3))
    sampler, answer = Sampler(params, prompt), []
    for place in range(4):
        values = data.draw(st.lists(logit, min_size=size, max_size=size))
        logits = np.array(values, np.float32)
        mask = data.draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
        allowed = None if mask is None else np.array([*mask[:-1], True])
        number = uniform(f"{params.seed % 2**64},0" if params.seed is not None else "", place)
        drawn = sampler.draw(logits, allowed)
        assert drawn == Drawn(reference(logits, params, prompt, answer, allowed, number))
        answer.append(drawn.token)


@pytest.mark.parametrize("spread", [0, 1e-6, 0.1, 1, 5, 40])
@pytest.mark.parametrize("params", [
    {}, {"top_p": 0.95}, {"top_k": 50}, {"top_p": 0.3, "top_k": 3000}, {"min_p": 0.02, "top_p": 0.9}, {"temperature": 0.3}
])  # fmt: skip
def test_a_vocabulary_too_large_to_sort_at_once(params: dict[str, Any], spread: float) -> None:
    rng = np.random.default_rng(int(spread * 10))
    for size in (513, 20_000):
        logits = (rng.standard_normal(size) * spread).astype(np.float32)
        logits[rng.integers(0, size, size // 3)] = logits[0]  # many are equal
        sampler, settings = Sampler(SamplingParams(seed=7, **params)), SamplingParams(**params)
        for place in range(12):
            expected = fast_reference(logits, settings, uniform("7,0", place))
            assert sampler.draw(logits).token == expected


def fast_reference(logits: NDArray[np.float32], params: SamplingParams, number: float) -> int:
    """`reference` without penalties, on a sorted array."""
    scale = np.float32(2 ** (52 - len(logits).bit_length()))
    cold = np.float32(1 / params.temperature)
    weights = np.floor(np.exp((logits - logits.max()) * cold) * scale)
    line = np.lexsort((np.arange(len(logits)), -weights))
    line = line[weights[line] >= np.float32(params.min_p) * scale][: params.top_k or None]
    sums = weights[line].astype(np.int64).cumsum()
    kept = sums[: np.searchsorted(sums, params.top_p * sums[-1]) + 1]
    return int(line[np.searchsorted(kept, number * kept[-1], side="right")])


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-6, 1e-4])
def test_no_temperature_takes_the_likeliest(temperature: float) -> None:
    assert shares(SamplingParams(temperature), 20) == [1, 0, 0, 0]


def test_shares_follow_the_probabilities() -> None:
    """Chi-square over 50 tokens, 20,000 draws of each of five seeds: 49 degrees of freedom."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(50).astype(np.float32)
    expected = 20_000 * np.exp(logits) / np.exp(logits).sum()
    for seed in range(5):
        sampler = Sampler(SamplingParams(seed=seed))
        drawn = np.bincount([sampler.draw(logits).token for _ in range(20_000)], minlength=50)
        chi_square = ((drawn - expected) ** 2 / expected).sum()
        assert 20 < chi_square < 95  # both ends have a probability below 0.0002


def test_numbers_of_neighbouring_seeds_and_places_have_nothing_in_common() -> None:
    rows = np.array([[uniform(f"{seed},0", place) for place in range(200)] for seed in range(50)])
    assert abs(rows.mean() - 0.5) < 0.01
    assert np.abs(np.corrcoef(rows) - np.eye(50)).max() < 0.35
    assert np.abs(np.corrcoef(rows.T) - np.eye(200)).max() < 0.7


def test_temperature_sharpens() -> None:
    # p^2 renormalised: .25 .01 .09 .01 over .36
    expected = [0.694, 0.028, 0.25, 0.028]
    assert shares(SamplingParams(temperature=0.5, seed=1)) == pytest.approx(expected, abs=0.03)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert shares(SamplingParams(top_k=2, seed=1)) == pytest.approx([0.625, 0, 0.375, 0], abs=0.03)


def test_of_equal_tokens_the_first_stay() -> None:
    found = {Sampler(SamplingParams(top_k=3, seed=i)).draw(LOGITS).token for i in range(99)}
    assert found == {0, 1, 2}


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_p": 0.01}, {0}),
        ({"top_p": 0.49}, {0}),
        ({"top_p": 0.51}, {0, 2}),
        ({"top_p": 0.79}, {0, 2}),
        ({"top_p": 0.85}, {0, 1, 2}),
        ({"top_k": 2, "top_p": 0.62}, {0}),  # top_p counts within top_k
        ({"min_p": 0.59}, {0, 2}),
        ({"min_p": 0.61}, {0}),
        ({"min_p": 1}, {0}),
        ({"min_p": 0.3, "top_p": 0.62}, {0}),  # and within min_p
    ],
)
def test_filters_keep_the_smallest_set(params: dict[str, Any], kept: set[int]) -> None:
    found = shares(SamplingParams(seed=1, **params), 500)
    assert {i for i, share in enumerate(found) if share} == kept


def test_penalties_as_openai_and_ctrl_define_them() -> None:
    logits = np.array([5.0, 4.5, -1.0], np.float32)

    def greedy(**params: Any) -> list[int]:
        sampler = Sampler(SamplingParams(0, **params), prompt_ids=[1, 1])
        return [sampler.draw(logits).token for _ in range(4)]

    assert greedy() == [0, 0, 0, 0]
    assert greedy(presence_penalty=0.6) == [0, 1, 0, 0]  # once, however often it stands there
    assert greedy(frequency_penalty=0.3) == [0, 0, 1, 0]  # 5, 4.7, 4.4 against 4.5, then 4.2
    assert greedy(repetition_penalty=1.2) == [0, 0, 0, 0]  # the prompt's token 1 is at 3.75
    assert greedy(repetition_penalty=0.8) == [1, 1, 1, 1]  # 5.625 against 5


def test_a_repetition_penalty_makes_negative_logits_smaller() -> None:
    sampler = Sampler(SamplingParams(0, repetition_penalty=2), prompt_ids=[0])
    assert sampler.draw(np.array([-1.0, -1.5], np.float32)).token == 1


def test_a_bias_forbids_and_forces() -> None:
    assert shares(SamplingParams(logit_bias=((0, -100), (2, -100)), seed=1), 50)[0] == 0
    assert shares(SamplingParams(logit_bias=((1, 100),), seed=1), 50) == [0, 1, 0, 0]
    with pytest.raises(EngineError, match="names token 4, but the model has tokens 0 to 3"):
        Sampler(SamplingParams(logit_bias=((4, 1),))).draw(LOGITS)


def test_a_mask_comes_before_the_filters() -> None:
    mask = np.array([False, True, True, True])
    assert shares(SamplingParams(0), 5, mask=mask) == [0, 0, 1, 0]
    found = shares(SamplingParams(seed=1), mask=mask)
    assert found == pytest.approx([0, 0.2, 0.6, 0.2], abs=0.03)
    assert shares(SamplingParams(top_k=1, seed=1), 50, mask=mask) == [0, 0, 1, 0]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_mask_that_allows_nothing(temperature: float) -> None:
    with pytest.raises(EngineError, match="allows no token"):
        Sampler(SamplingParams(temperature)).draw(LOGITS, np.zeros(4, np.bool_))


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(value: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[3] = value
    with pytest.raises(EngineError, match="not finite"):
        Sampler(SamplingParams(temperature)).draw(logits)


def test_logits_as_large_as_they_get() -> None:
    logits = np.array([3e38, -3e38, 3e38], np.float32)
    drawn = Sampler(SamplingParams(1e-4, top_p=0.9, top_k=2, min_p=0.1, seed=1)).draw(
        logits, None, 3
    )
    assert drawn.token in (0, 2)
    assert drawn.top == ((0, pytest.approx(-math.log(2))), (2, pytest.approx(-math.log(2))), (1, -math.inf))  # fmt: skip


def test_logprobs_are_those_of_the_model() -> None:
    params = SamplingParams(0, logit_bias=((1, 100),))
    mask = np.array([False, True, True, True])
    drawn = Sampler(params).draw(LOGITS, mask, 2)
    assert drawn.token == 1
    assert drawn.logprob == pytest.approx(math.log(0.1), abs=1e-6)
    assert [token for token, _ in drawn.top] == [0, 2]
    assert [value for _, value in drawn.top] == pytest.approx([math.log(0.5), math.log(0.3)])
    ties = Sampler(params).draw(LOGITS, mask, 3)
    assert [token for token, _ in ties.top] == [0, 2, 1]
    assert Sampler(params).draw(LOGITS, mask, 0).top == ()
    assert len(Sampler(params).draw(LOGITS, mask, 99).top) == 4
    assert Sampler(params).draw(LOGITS, mask) == Drawn(1)


def test_the_same_seed_gives_the_same_tokens_whoever_else_is_served() -> None:
    rng = np.random.default_rng(3)
    steps = rng.standard_normal((30, 400)).astype(np.float32)
    params = SamplingParams(seed=5, top_p=0.9, frequency_penalty=0.5, repetition_penalty=1.1)
    alone = Sampler(params, [1, 2])
    expected = [alone.draw(step).token for step in steps]
    crowd = [Sampler(SamplingParams(seed=i)) for i in range(15)]
    again, tokens = Sampler(params, [1, 2]), []
    for step in steps:
        for other in crowd:
            other.draw(step[::-1])
        tokens.append(again.draw(step).token)
    assert tokens == expected
    second = Sampler(params, [1, 2], choice=1)
    assert [second.draw(step).token for step in steps] != expected
    free = [Sampler(SamplingParams()) for _ in range(2)]
    assert len({tuple(one.draw(step).token for step in steps) for one in free}) == 2


def test_logits_are_not_changed() -> None:
    logits = LOGITS.copy()
    params = SamplingParams(0.5, 0.9, 2, 0.1, 1, 1, 1.1, ((0, 1.0),), 1)
    sampler = Sampler(params, [0])
    for _ in range(3):
        sampler.draw(logits, np.ones(4, np.bool_), 2)
    assert (logits == LOGITS).all()


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1},
        {"min_p": 1.1}, {"presence_penalty": 3}, {"frequency_penalty": float("nan")}, {"repetition_penalty": 0},
        {"logit_bias": ((1, 101),)}, {"logit_bias": ((-1, 1),)}, {"logit_bias": ((1, float("nan")),)},
    ],
)  # fmt: skip
def test_settings_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="out of range"):
        SamplingParams(**values)


def test_a_huge_or_negative_seed_is_a_seed() -> None:
    for seed in (-1, 2**64, 2**200, 10**5000):
        first = [Sampler(SamplingParams(seed=seed)).draw(LOGITS) for _ in range(3)]
        assert first == [Sampler(SamplingParams(seed=seed)).draw(LOGITS) for _ in range(3)]
