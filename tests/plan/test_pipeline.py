"""The played pipeline against the closed formula, and laws that hold for any of them."""

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moonlet.errors import ConfigError
from moonlet.plan.pipeline import ChunkCost, Late, Played, order, play, warmup


@pytest.mark.parametrize(("p", "v", "m"), [(1, 1, 3), (2, 1, 2), (4, 1, 9), (16, 1, 120), (2, 2, 4), (4, 3, 8),
                                           (16, 2, 128)])  # fmt: skip
def test_even_chunks_idle_as_the_closed_formula_says(p: int, v: int, m: int) -> None:
    """arXiv 2104.04473, section 2.2.2: the bubble is (p - 1) / (v m) of the ideal time."""
    played = play([ChunkCost(1.0, 2.0)] * (p * v), p, m)
    ideal = m * v * 3.0
    assert played.seconds == pytest.approx(ideal * (1 + (p - 1) / (v * m)))
    assert played.idle_share == pytest.approx(1 - ideal / played.seconds)


def test_two_ranks_by_hand() -> None:
    """Rank 0: F0 F1 . . B0 . . B1; rank 1: . F0 B0 B0 F1 B1 B1, forward 1 and backward 2 seconds."""
    played = play([ChunkCost(1.0, 2.0)] * 2, 2, 2)
    times = {(t.rank, t.name, t.micro_batch): (t.start, t.end) for t in played.tasks}
    assert times == {
        (0, "forward", 0): (0, 1), (0, "forward", 1): (1, 2), (0, "backward", 0): (4, 6),
        (0, "backward", 1): (7, 9), (1, "forward", 0): (1, 2), (1, "backward", 0): (2, 4),
        (1, "forward", 1): (4, 5), (1, "backward", 1): (5, 7),
    }  # fmt: skip


@pytest.mark.parametrize(("p", "v", "m"), [(4, 1, 8), (4, 2, 8), (8, 3, 16)])
def test_ranks_hold_as_much_as_their_warm_up(p: int, v: int, m: int) -> None:
    played = play([ChunkCost(1.0, 2.0)] * (p * v), p, m)
    for rank in range(p):
        assert played.in_flight(rank) == min(warmup(p, v, m, rank) + 1, m * v)


def test_more_warm_up_hides_the_exchange_of_experts() -> None:
    """Kimi K2's reason for it (arXiv 2507.20534, section 2.4.2)."""
    costs = [ChunkCost(1.0, 1.0, 1.0, exchange=0.5)] * 8
    plain, ahead = (play(costs, 4, 32, extra=extra).seconds for extra in (0, 1))
    assert ahead < plain
    hidden = play([ChunkCost(1.0, 1.0, 1.0)] * 8, 4, 32).seconds
    assert ahead - hidden < 0.5 * (plain - hidden)


def test_weights_apart_shorten_the_bubble() -> None:
    """The neighbour waits only for the inputs' gradient."""
    whole = play([ChunkCost(1.0, 2.0)] * 4, 4, 8)
    split = play([ChunkCost(1.0, 1.0, 1.0)] * 4, 4, 8)
    assert split.seconds < whole.seconds
    assert [split.busy(rank) for rank in range(4)] == [whole.busy(rank) for rank in range(4)]


def test_what_comes_after_the_last_gradient() -> None:
    late = [[Late("gradients", "network", 2.0), Late("muon", "compute", 1.0)]] * 2
    plain, longer = (play([ChunkCost(1.0, 2.0)] * 2, 2, 2, after=after) for after in ([], late))
    assert longer.seconds == plain.seconds + 3.0


seconds = st.floats(0.01, 5.0)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_laws_of_any_pipeline(data: st.DataObject) -> None:
    p, v = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    assume(p > 1 or v == 1)
    m = p * data.draw(st.integers(1, 3)) if v > 1 else data.draw(st.integers(1, 9))
    zero_or = st.one_of(st.just(0.0), seconds)
    cost = st.builds(ChunkCost, seconds, seconds, zero_or, zero_or)
    costs = data.draw(st.lists(cost, min_size=p * v, max_size=p * v))
    transfer, extra = data.draw(zero_or), data.draw(st.integers(0, 3))
    played = play(costs, p, m, transfer, extra)
    _check_work(played, costs, p, m)
    _check_lanes(played)
    _check_dependencies(played, len(costs), transfer if p > 1 else 0.0)


def _check_work(played: Played, costs: list[ChunkCost], p: int, m: int) -> None:
    """Every task once, as long as it costs."""
    keys = [(t.name, t.lane, t.chunk, t.micro_batch, t.start) for t in played.tasks]
    assert len(keys) == len(set(keys))
    for rank in range(p):
        mine = costs[rank::p]
        computed = m * sum(c.forward + c.backward + c.weights for c in mine)
        assert played.busy(rank) == pytest.approx(computed)
        assert played.busy(rank, "network") == pytest.approx(m * sum(2 * c.exchange for c in mine))


def _check_lanes(played: Played) -> None:
    """No lane of a rank does two things at once."""
    lanes = defaultdict(list)
    for task in played.tasks:
        lanes[task.rank, task.lane].append((task.start, task.end))
    for spans in lanes.values():
        for (_, end), (start, _) in pairwise(sorted(spans)):
            assert start >= end - 1e-9


def _check_dependencies(played: Played, chunks: int, transfer: float) -> None:
    """Nothing starts before what it needs is there."""
    named = {(t.name, t.chunk, t.micro_batch): t for t in played.tasks if t.lane == "compute"}
    for (name, chunk, micro_batch), task in named.items():
        if name == "forward" and chunk > 0:
            assert task.start >= named["forward", chunk - 1, micro_batch].end + transfer - 1e-9
        if name == "backward":
            last = chunk == chunks - 1
            needs = ("forward", chunk) if last else ("backward", chunk + 1)
            wait = 0.0 if last else transfer
            assert task.start >= named[*needs, micro_batch].end + wait - 1e-9


def test_incomplete_groups_and_endless_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="no multiple of 4"):
        list(order(4, 2, 6, 0))
    with pytest.raises(ConfigError, match="too many tasks"):
        play([ChunkCost(1.0, 2.0)] * 16, 16, 10**9)
