"""Where a machine of one's own becomes cheaper than an API: by hand, and told when it never does."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.plan.break_even import break_even
from moonlet.plan.cost import Mix, Running, Speed, agent_mix, usd_per_day
from moonlet.plan.prices import Price
from tests.plan.test_cost import KIMI, MACHINES, PLAIN, SPEEDS

ANSWERS = Mix(0, 0, 1)


def test_by_hand() -> None:
    # 10,000 s for a million answers of 100 tokens/s: 1 dollar of electricity, 2 dollars saved, 1 dollar a day.
    found = break_even(PLAIN, Speed(1000, 100), Price(0, 0, 3), ANSWERS)
    assert found.tokens_per_day == pytest.approx(500_000)
    assert found.most_per_day == pytest.approx(8_640_000)
    assert found.electricity_usd == pytest.approx(1.0)
    assert found.own_usd == pytest.approx(1 + 1 / 8.64)
    assert found.pays
    assert not found.electricity_alone
    assert not found.too_slow
    text = " ".join(found.sentences)
    assert "0 x $0.00 + 0 x $0.00 + 1 x $3.00" in text
    assert (
        "for 10,000 s: 0 / 1,000 tokens/s of new prompt + 1,000,000 / 100 tokens/s of answer."
        in text
    )
    assert "1,000 W x 1 at $0.36 a kWh: $1.00 of electricity" in text
    assert "$1.00 / ($3.00 - $1.00) = 500,000 tokens a day: from there on" in text
    assert "at most 8.64 million tokens." in text


def test_electricity_alone_costs_more() -> None:
    found = break_even(PLAIN, Speed(1000, 10), Price(0, 0, 3), ANSWERS)  # 10 dollars of electricity
    assert found.tokens_per_day == math.inf
    assert not found.pays
    assert found.electricity_alone
    assert not found.too_slow
    assert found.sentences[-1] == (
        "Electricity alone, $10.00, costs no less than the API, $3.00: the machine never becomes cheaper."
    )


def test_a_machine_that_is_too_slow() -> None:
    dear = replace(PLAIN, usd=100 * PLAIN.usd, utilisation=0.5)  # 100 dollars a day
    found = break_even(dear, Speed(1000, 100), Price(0, 0, 3), ANSWERS)
    assert found.tokens_per_day == pytest.approx(50e6)
    assert found.most_per_day == pytest.approx(4.32e6)
    assert found.too_slow
    assert not found.electricity_alone
    assert (
        "50.00 million tokens a day would be needed, but it serves at most 4.32 million tokens in 50% of the day: "
        "the machine is too slow to become cheaper. At its most it costs $24.15 for a million."
    ) in found.sentences[-1]  # 100 / 4.32 + 1


def test_electricity_and_slowness_are_both_told() -> None:
    """When half of the watts are paid while waiting anyway, a saving is left that no day is long enough for."""
    found = break_even(replace(PLAIN, idle=0.5), Speed(1000, 10), Price(0, 0, 8), ANSWERS)
    assert found.electricity_alone
    assert found.too_slow
    assert "Electricity alone, $10.00" in found.sentences[-2]
    assert "too slow" in found.sentences[-1]


def test_tokens_that_take_no_time() -> None:
    found = break_even(PLAIN, Speed(1, 1), KIMI, agent_mix(1, 1))
    assert found.most_per_day == math.inf
    assert found.tokens_per_day == pytest.approx(1e7)  # a dollar a day at 10 cents a million
    assert "it serves any number" in found.sentences[-1]


def test_kimi_on_eight_gpus_serving_an_agent() -> None:
    """8 x H200 at 100 tokens/s for one user and 3,900 prompt tokens/s: never; with many users at 3,000: soon."""
    server = replace(
        PLAIN, watts=10_000, usd=300_000, kwh_usd=0.1, years=4, utilisation=0.5, resale=0.2
    )
    alone = break_even(server, Speed(3900, 100), KIMI, agent_mix())
    assert alone.too_slow
    crowd = break_even(server, Speed(20_000, 3000), KIMI, agent_mix())
    # 4.95 s + 3.33 s a million; 164.27 dollars a day; 0.0023 of electricity against 0.1785.
    assert crowd.tokens_per_day == pytest.approx(164.27 / (0.1785 - 0.0023) * 1e6, rel=1e-3)
    assert crowd.pays


@given(MACHINES, SPEEDS, st.floats(0.01, 100), st.floats(0, 1), st.floats(0, 1))
def test_at_the_break_even_both_cost_the_same(
    running: Running, speed: Speed, output: float, prompt: float, cached: float
) -> None:
    mix, price = agent_mix(prompt, cached), Price(output / 5, output / 50, output)
    found = break_even(running, speed, price, mix)
    assert all(line.endswith(".") for line in found.sentences)
    if found.pays:
        own = usd_per_day(running, speed, mix, found.tokens_per_day)
        assert own is not None
        assert own == pytest.approx(found.tokens_per_day / 1e6 * found.api_usd, rel=1e-6, abs=1e-9)
        assert found.own_usd <= found.api_usd * (1 + 1e-9)
    else:
        assert found.electricity_alone or found.too_slow
        assert found.own_usd >= found.api_usd * (1 - 1e-9)


@given(MACHINES, SPEEDS, st.floats(1, 5))
def test_more_watts_and_dollars_never_pay_earlier(
    running: Running, speed: Speed, times: float
) -> None:
    now = break_even(running, speed, KIMI, agent_mix()).tokens_per_day
    for name in ("watts", "usd", "kwh_usd"):
        more = replace(running, **{name: getattr(running, name) * times})
        assert break_even(more, speed, KIMI, agent_mix()).tokens_per_day >= now * (1 - 1e-9)
