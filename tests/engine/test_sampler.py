"""Sampling: what each setting keeps, and that the shares come out right."""

import pytest
import torch

from moonlet.engine.sampler import Sampler, SamplingParams
from moonlet.errors import EngineError

LOGITS = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()


def counts(params: SamplingParams, draws: int = 4000) -> list[float]:
    sampler = Sampler(params)
    drawn = torch.tensor([sampler.draw(LOGITS) for _ in range(draws)])
    return (drawn.bincount(minlength=4) / draws).tolist()


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-6, 1e-4])
def test_no_temperature_takes_the_likeliest(temperature: float) -> None:
    assert counts(SamplingParams(temperature), 20) == [1, 0, 0, 0]


def test_shares_follow_the_probabilities() -> None:
    assert counts(SamplingParams(seed=1)) == pytest.approx([0.5, 0.1, 0.3, 0.1], abs=0.03)


def test_temperature_sharpens() -> None:
    # p^2 renormalised: .25 .01 .09 .01 over .36
    expected = [0.694, 0.028, 0.25, 0.028]
    assert counts(SamplingParams(temperature=0.5, seed=1)) == pytest.approx(expected, abs=0.03)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert counts(SamplingParams(top_k=2, seed=1)) == pytest.approx([0.625, 0, 0.375, 0], abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, {0}), (0.5, {0}), (0.51, {0, 2}), (0.79, {0, 2}), (0.85, {0, 1, 2})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    shares = counts(SamplingParams(top_p=top_p, seed=1), 500)
    assert {i for i, share in enumerate(shares) if share} == kept


def test_top_p_counts_within_top_k() -> None:
    shares = counts(SamplingParams(top_k=2, top_p=0.62, seed=1), 300)
    assert {i for i, share in enumerate(shares) if share} == {0}


@pytest.mark.parametrize(
    "values", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": float("nan")}]
)  # fmt: skip
def test_settings_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(EngineError, match="out of range"):
        SamplingParams(**values)  # pyright: ignore[reportArgumentType]


def test_a_huge_or_negative_seed_is_a_seed() -> None:
    for seed in (-1, 2**64, 2**200):
        first = [Sampler(SamplingParams(seed=seed)).draw(LOGITS) for _ in range(3)]
        assert first == [Sampler(SamplingParams(seed=seed)).draw(LOGITS) for _ in range(3)]
