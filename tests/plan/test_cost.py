"""Dollars for tokens: by hand, and in the direction that every change must take them."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.errors import ConfigError
from moonlet.plan.cost import (
    Mix,
    Running,
    Speed,
    agent_mix,
    assumed,
    cost_per_million,
    kwh_usd,
    usd_of,
    usd_per_day,
    watts_of,
)
from moonlet.plan.machine import Accelerator, Host, Machine
from moonlet.plan.prices import Price

KIMI = Price(0.60, 0.10, 3.00)
# 1,000 W at 0.36 dollars a kWh are 0.0001 dollars a second; 3,652.50 dollars in ten years one a day.
PLAIN = Running(1000, 3652.5, 0.36, years=10, utilisation=1, resale=0, idle=0, overhead=1)


def test_a_million_tokens_by_hand() -> None:
    cost = cost_per_million(PLAIN, Speed(prefill_tok_s=1000, decode_tok_s=10, cached_tok_s=50_000))
    # 1,000 s, 20 s and 100,000 s, each for 0.0001 dollars of electricity and 1/86,400 of hardware.
    assert cost.input.electricity == pytest.approx(0.10)
    assert cost.input.hardware == pytest.approx(1000 / 86_400)
    assert cost.cached_input.electricity == pytest.approx(0.002)
    assert cost.output.electricity == pytest.approx(10.0)
    assert cost.output.hardware == pytest.approx(100_000 / 86_400)
    assert cost.output.total == pytest.approx(10 + 100_000 / 86_400)


def test_waiting_and_resale_and_cooling_by_hand() -> None:
    running = replace(PLAIN, utilisation=0.25, resale=0.5, idle=0.1, overhead=2)
    cost = cost_per_million(running, Speed(1000, 10)).input
    # For a second of work three are waited: (1 + 3 x 0.1) x 2 x 0.0001; half of the hardware, four times.
    assert cost.electricity == pytest.approx(1000 * 1.3 * 2e-4)
    assert cost.hardware == pytest.approx(1000 * 0.5 * 4 / 86_400)


def test_cached_tokens_are_free_when_nothing_is_said() -> None:
    assert cost_per_million(PLAIN, Speed(1000, 10)).cached_input.total == 0


def test_an_agents_tokens_by_hand() -> None:
    mix = agent_mix()
    assert (mix.fresh, mix.cached, mix.output) == pytest.approx((0.099, 0.891, 0.01))
    # 0.0594 + 0.0891 + 0.03
    assert mix.usd_per_million(KIMI) == pytest.approx(0.1785)
    # 99,000 / 1,000 + 10,000 / 10
    assert mix.seconds_per_million(Speed(1000, 10)) == pytest.approx(1099)
    assert agent_mix(0.5, 0) == Mix(0.5, 0, 0.5)


def test_a_day_costs_as_much_as_its_tokens() -> None:
    """At the use for which `cost_per_million` was asked the two ways to count agree."""
    running = replace(PLAIN, utilisation=0.4, idle=0.3, overhead=1.1, resale=0.2)
    speed, mix = Speed(900, 30, 1e5), agent_mix()
    each = cost_per_million(running, speed)
    million = (
        mix.fresh * each.input.total
        + mix.cached * each.cached_input.total
        + mix.output * each.output.total
    )
    tokens = 0.4 * 86_400 / mix.seconds_per_million(speed) * 1e6
    assert usd_per_day(running, speed, mix, tokens) == pytest.approx(million * tokens / 1e6)


def test_a_day_has_an_end() -> None:
    output = Mix(0, 0, 1)
    assert usd_per_day(PLAIN, Speed(1000, 10), output, 864_000) == pytest.approx(1 + 8.64)
    assert usd_per_day(PLAIN, Speed(1000, 10), output, 864_001) is None
    assert usd_per_day(PLAIN, Speed(1000, 10), output, 0) == pytest.approx(1)


def test_a_machine_is_its_nodes_with_all_their_parts() -> None:
    gpu = Accelerator("a", 1, 1, {}, 1, 1, watts=700, usd=30_000)
    host = Host("h", 64, 1, 1, {}, watts=500, usd=10_000)
    machine = Machine("m", host, (gpu,) * 8, nodes=2)
    assert watts_of(machine) == 2 * (8 * 700 + 500)
    assert usd_of(machine) == 2 * (8 * 30_000 + 10_000)
    assert usd_of(replace(machine, host=replace(host, usd=None))) is None


def test_what_is_assumed_says_where_it_is_from() -> None:
    tables = assumed()
    assert set(tables) == {"owning", "electricity", "agent"}
    for table in tables.values():
        for name, entry in table.items():
            assert 0 < entry.value < 100, name
            assert entry.as_of[:2] == "20", name
            assert len(entry.source) > 10, name
    assert kwh_usd("us-industrial") == 0.082


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"watts": 0}, "watts is 0"),
        ({"watts": math.nan}, "watts is nan"),
        ({"usd": -1}, "usd is -1"),
        ({"kwh_usd": math.inf}, "kwh_usd is inf"),
        ({"years": 0}, "years is 0, but it must be above 0"),
        ({"utilisation": 1.5}, "utilisation is 1.5"),
        ({"resale": 2}, "resale is 2"),
        ({"idle": -0.1}, "idle is -0.1"),
        ({"overhead": 0.9}, "overhead is 0.9, but it must be from 1"),
    ],
)
def test_what_no_machine_is(change: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        replace(PLAIN, **change)


def test_what_is_no_rate_no_share_and_no_region() -> None:
    for rates in ((0, 1), (1, 0), (1, math.inf), (1, 1, 0)):
        with pytest.raises(ConfigError, match="tok_s is"):
            Speed(*rates)
    with pytest.raises(ConfigError, match=r"share of the prompt is 1\.1"):
        agent_mix(1.1)
    with pytest.raises(ConfigError, match="'atlantis': name one of us-home"):
        kwh_usd("atlantis")


SHARES = st.floats(0.05, 1)
MACHINES = st.builds(
    Running,
    watts=st.floats(1, 1e5),
    usd=st.floats(0, 1e7),
    kwh_usd=st.floats(0, 1),
    years=st.floats(0.5, 20),
    utilisation=SHARES,
    resale=st.floats(0, 1),
    idle=st.floats(0, 1),
    overhead=st.floats(1, 3),
)
SPEEDS = st.builds(Speed, st.floats(1, 1e5), st.floats(0.1, 1e5), st.floats(10, 1e7))


@given(MACHINES, SPEEDS, st.floats(1, 5))
def test_more_never_costs_less(running: Running, speed: Speed, times: float) -> None:
    now = cost_per_million(running, speed)
    for name in ("watts", "usd", "kwh_usd"):
        more = cost_per_million(replace(running, **{name: getattr(running, name) * times}), speed)
        for kind in ("input", "cached_input", "output"):
            assert getattr(more, kind).total >= getattr(now, kind).total * (1 - 1e-9)


@given(MACHINES, SPEEDS, st.floats(1, 5))
def test_longer_busier_and_faster_never_cost_more(
    running: Running, speed: Speed, times: float
) -> None:
    now = cost_per_million(running, speed).output.total * (1 + 1e-9)
    longer = replace(running, years=running.years * times)
    busier = replace(running, utilisation=min(1, running.utilisation * times))
    faster = replace(speed, decode_tok_s=speed.decode_tok_s * times)
    assert cost_per_million(longer, speed).output.total <= now
    assert cost_per_million(busier, speed).output.total <= now
    assert cost_per_million(running, faster).output.total <= now
