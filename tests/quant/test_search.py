"""The encoders' errors against those that llama.cpp reached on the same samples, and the searches alone."""

import json
from functools import cache

import numpy as np
import pytest

from moonlet.quant import decode, encode, search
from tests.quant import peer_errors

PEER = json.loads(peer_errors.GOLDEN.read_text())
# Without importance, by type: how much of llama.cpp's error is left. The others follow its rules.
PLAIN_BARS = {
    **{"Q2_K": 0.9, "Q3_K": 0.97, "Q4_K": 0.985, "Q5_K": 0.96, "Q6_K": 0.955},
    **{"IQ4_NL": 0.975, "IQ4_XS": 0.975, "MXFP4": 0.98},
}
BAR = 1.02


@cache
def samples() -> dict[str, np.ndarray]:
    pytest.importorskip("torch")  # reads the embedded model
    return peer_errors.samples()


@pytest.mark.parametrize("name", peer_errors.NAMES)
@pytest.mark.parametrize("sample", ["normal", "heavy", "nano"])
def test_errors_are_at_most_those_of_llama_cpp(name: str, sample: str) -> None:
    ours = peer_errors.errors(encode, name, samples()[sample])
    theirs = PEER[name][sample]
    assert ours["plain"] <= PLAIN_BARS.get(name, 1.0001) * theirs["plain"]
    assert ours["weighted"] <= BAR * theirs["weighted"]
    assert ours["unweighted"] <= BAR * theirs["unweighted"]


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q5_K", "IQ4_XS"])
def test_importance_moves_the_error_to_where_it_counts_less(name: str) -> None:
    sample = np.random.default_rng(1).normal(size=(8, 512)).astype(np.float32)
    counts = np.where(np.arange(512) % 4 == 0, 100, 1).astype(np.float32)
    plain = (decode(name, encode(name, sample, np.ones(512, np.float32))) - sample) ** 2
    moved = (decode(name, encode(name, sample, counts)) - sample) ** 2
    assert moved[:, ::4].sum() < 0.9 * plain[:, ::4].sum()
    assert (moved * counts).sum() < 0.95 * (plain * counts).sum()


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_importance_frees_ternary_types_from_the_largest_value(name: str) -> None:
    sample = np.random.default_rng(9).normal(size=(8, 512)).astype(np.float32)
    error = [
        peer_errors.relative_error(decode(name, encode(name, sample, counts)), sample)
        for counts in (None, np.ones(512, np.float32))
    ]
    # The best three levels for normal values, -1.22 to 1.22, lose 0.436 (Max, 1960).
    assert error[0] > 0.75
    assert 0.41 < error[1] < 0.45


def test_importance_counts_only_in_proportion() -> None:
    sample = np.random.default_rng(2).normal(size=(4, 512)).astype(np.float32)
    counts = np.random.default_rng(3).gamma(1, size=512).astype(np.float32)
    for name in ("Q4_1", "Q4_K", "IQ4_NL"):
        small, large = (encode(name, sample, counts * factor) for factor in (2**-20, 2**20))
        np.testing.assert_array_equal(small, large)


def test_fit_scale_finds_the_scale_of_exact_multiples() -> None:
    codes = np.random.default_rng(4).integers(-8, 8, (32, 50)).astype(np.float32)
    codes[0] = -8
    scale = np.random.default_rng(5).normal(size=50).astype(np.float32)
    weight = np.random.default_rng(6).gamma(1, size=codes.shape).astype(np.float32)
    found, curvature = search.fit_scale(
        codes * scale, weight, search.integers(-8, 7), np.linspace(-9, -7, 21)
    )
    np.testing.assert_allclose(found, scale, rtol=1e-5)
    np.testing.assert_allclose(curvature, (weight * codes**2).sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("lowest", [0.0, 3.0])
def test_fit_affine_finds_exact_lines(lowest: float) -> None:
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 16, (32, 50)).astype(np.float32)
    codes[0], codes[1] = 0, 15
    scale = rng.uniform(0.1, 2, 50).astype(np.float32)
    minimum = (scale * lowest).astype(np.float32)
    weight = rng.gamma(1, size=codes.shape).astype(np.float32) + np.float32(0.1)
    found = search.fit_affine(codes * scale - minimum, weight, 15, np.linspace(-0.9, 0.9, 19))
    np.testing.assert_allclose(found[0], scale, rtol=1e-4)
    np.testing.assert_allclose(found[1], minimum, rtol=1e-3, atol=1e-4)


def test_fit_affine_cannot_start_above_zero() -> None:
    high = np.random.default_rng(8).uniform(5, 6, (32, 40)).astype(np.float32)
    scale, minimum, _ = search.fit_affine(high, np.ones_like(high), 15, np.linspace(-0.9, 0.9, 19))
    assert (minimum == 0).all()
    np.testing.assert_allclose(scale * 15, 5.5, rtol=0.15)
