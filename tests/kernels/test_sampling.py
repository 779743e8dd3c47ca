"""The head of a sorted vocabulary, against sorting it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet import kernels
from moonlet.kernels import reference


@given(
    st.lists(st.integers(0, 40) | st.sampled_from([1023, 1024, 2**20, 2**24 - 1]), min_size=1),
    st.floats(0, 1),
)
def test_it_is_the_head_that_sorting_finds(values: list[int], share: float) -> None:
    weights = np.array(values, np.float32)
    goal = max(np.ceil(share * float(weights.sum(dtype=np.float64))), 1)
    if goal > weights.sum(dtype=np.float64):
        with pytest.raises(ValueError, match="do not reach"):
            kernels.reach(weights, goal)
    else:
        assert kernels.reach(weights, goal) == reference.reach(weights, goal)


@pytest.mark.parametrize("spread", [0, 1e-4, 1, 8])
@pytest.mark.parametrize("size", [1, 2, 1000, 163_840])
def test_any_spread_of_a_whole_vocabulary(size: int, spread: float) -> None:
    rng = np.random.default_rng(size)
    values = np.exp(rng.standard_normal(size).astype(np.float32) * spread)
    weights = np.floor(values / values.max() * 2.0 ** (52 - size.bit_length())).astype(np.float32)
    mass = float(weights.sum(dtype=np.float64))
    for goal in (1.0, mass, *np.ceil(rng.random(20) * mass)):
        assert kernels.reach(weights, goal) == reference.reach(weights, goal)


@pytest.mark.parametrize("weights", [[0, 0], [], [1, float("nan")], [3, -2]])
def test_a_goal_out_of_reach_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="do not reach"):
        kernels.reach(np.array(weights, np.float32), 4)
