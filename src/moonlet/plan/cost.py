"""What tokens cost on a machine of one's own, and from which use on that is less than an API takes.

Dollars are US dollars. Three things are paid: the hardware, by the day, whether it works or not; electricity
while it waits; and more electricity while it works. Prompt tokens, cached prompt tokens and new tokens keep
the machine busy for different times, which their rates say; a cached token is nearly free.

`cost.toml` beside this file has what holds where nobody says otherwise, each with date and source.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moonlet.errors import ConfigError
from moonlet.plan.machine import Machine
from moonlet.plan.prices import Price

_DEFAULTS = Path(__file__).with_name("cost.toml")
DAY_S = 86_400
_DAYS = 365.25  # of a year
_JOULES = 3.6e6  # of a kilowatt hour


@dataclass(frozen=True)
class Assumed:
    """A value that holds until somebody says another, and where it is from. sure: it was looked up."""

    value: float
    as_of: str
    source: str
    sure: bool


@cache
def assumed() -> dict[str, dict[str, Assumed]]:
    """The tables of cost.toml: "owning", "electricity" (US dollars for a kilowatt hour) and "agent"."""
    import tomllib

    raw = tomllib.loads(_DEFAULTS.read_text("utf-8"))
    return {table: {name: _assumed(entry) for name, entry in raw[table].items()} for table in raw}


def _assumed(entry: dict[str, Any]) -> Assumed:
    return Assumed(entry["value"], str(entry["as_of"]), entry["source"], entry["sure"])


def kwh_usd(region: str) -> float:
    """What a kilowatt hour costs there. Raises ConfigError for a region that the table has not."""
    table = assumed()["electricity"]
    if region not in table:
        raise ConfigError(
            f"no price of electricity is known for {region!r:.40}: name one of {', '.join(table)}, "
            "or say the dollars for a kilowatt hour"
        )
    return table[region].value


def watts_of(machine: Machine) -> float:
    """Under load, all nodes together."""
    return machine.nodes * (machine.host.watts + sum(one.watts for one in machine.accelerators))


def usd_of(machine: Machine) -> float | None:
    """What the hardware costs, all nodes together; None where a part of it has no known price."""
    parts = [machine.host.usd, *(one.usd for one in machine.accelerators)]
    known = [usd for usd in parts if usd is not None]
    return machine.nodes * sum(known) if len(known) == len(parts) else None


def _owning(name: str) -> float:
    return assumed()["owning"][name].value


@dataclass(frozen=True)
class Running:
    """A machine and what it takes to keep it.

    watts: under load. usd: of the hardware. kwh_usd: dollars for a kilowatt hour. utilisation: the share of
    the day for which there is work. resale: the share of `usd` that comes back after `years`. idle: watts
    without work, as a share of `watts`. overhead: watts at the meter for one of the machine, as in PUE.
    """

    watts: float
    usd: float
    kwh_usd: float
    years: float = _owning("years")
    utilisation: float = _owning("utilisation")
    resale: float = _owning("resale")
    idle: float = _owning("idle")
    overhead: float = _owning("overhead")

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that nothing real has."""
        _check("watts", self.watts, 0, 1e9, above=True)
        _check("usd", self.usd, 0, 1e12)
        _check("kwh_usd", self.kwh_usd, 0, 100)
        _check("years", self.years, 0, 100, above=True)
        _check("utilisation", self.utilisation, 0, 1, above=True)
        _check("resale", self.resale, 0, 1)
        _check("idle", self.idle, 0, 1)
        _check("overhead", self.overhead, 1, 10)

    @property
    def hardware_usd_per_day(self) -> float:
        return self.usd * (1 - self.resale) / (self.years * _DAYS)

    @property
    def idle_usd_per_day(self) -> float:
        """Electricity of a day without work."""
        return self._usd_per_s(self.watts * self.idle) * DAY_S

    @property
    def busy_usd_per_s(self) -> float:
        """Electricity of a second of work."""
        return self._usd_per_s(self.watts)

    @property
    def extra_usd_per_s(self) -> float:
        """What a second of work takes more than a second without."""
        return self._usd_per_s(self.watts * (1 - self.idle))

    def _usd_per_s(self, watts: float) -> float:
        return watts * self.overhead * self.kwh_usd / _JOULES


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the whole machine, all streams together; a cached token takes no time by itself."""

    prefill_tok_s: float
    decode_tok_s: float
    cached_tok_s: float = math.inf

    def __post_init__(self) -> None:
        """Raises ConfigError for a rate that is none."""
        _check("prefill_tok_s", self.prefill_tok_s, 0, 1e12, above=True)
        _check("decode_tok_s", self.decode_tok_s, 0, 1e12, above=True)
        if self.cached_tok_s != math.inf:
            _check("cached_tok_s", self.cached_tok_s, 0, 1e12, above=True)


@dataclass(frozen=True)
class Mix:
    """Shares of all tokens; they add up to 1."""

    fresh: float
    cached: float
    output: float

    def usd_per_million(self, price: Price) -> float:
        """Of tokens in these shares, at an API."""
        return (
            self.fresh * price.input + self.cached * price.cached_input + self.output * price.output
        )

    def seconds_per_million(self, speed: Speed) -> float:
        """Of tokens in these shares, on a machine that does one thing after the other."""
        return 1e6 * (
            self.fresh / speed.prefill_tok_s
            + self.cached / speed.cached_tok_s
            + self.output / speed.decode_tok_s
        )


def agent_mix(prompt: float | None = None, cached: float | None = None) -> Mix:
    """prompt: share of all tokens. cached: share of the prompt. Defaults are those of cost.toml.

    Raises ConfigError for a share outside 0 to 1.
    """
    table = assumed()["agent"]
    prompt = table["prompt"].value if prompt is None else prompt
    cached = table["cached"].value if cached is None else cached
    _check("the share of the prompt", prompt, 0, 1)
    _check("the share of the prompt that is cached", cached, 0, 1)
    return Mix(prompt * (1 - cached), prompt * cached, 1 - prompt)


@dataclass(frozen=True)
class Cost:
    """Dollars, by what they are paid for. Electricity while waiting for work is in it."""

    electricity: float
    hardware: float

    @property
    def total(self) -> float:
        return self.electricity + self.hardware


@dataclass(frozen=True)
class PerMillion:
    """Dollars for a million tokens of each kind."""

    input: Cost
    cached_input: Cost
    output: Cost


def cost_per_million(running: Running, speed: Speed) -> PerMillion:
    """What a million tokens cost on a machine that has work for `running.utilisation` of the day.

    Tokens share what the day costs by the time for which they keep the machine busy.
    """
    share = running.utilisation
    waiting = running.idle_usd_per_day / DAY_S * (1 - share) / share
    hardware = running.hardware_usd_per_day / DAY_S / share

    def cost(tok_s: float) -> Cost:
        seconds = 1e6 / tok_s
        return Cost(seconds * (running.busy_usd_per_s + waiting), seconds * hardware)

    return PerMillion(cost(speed.prefill_tok_s), cost(speed.cached_tok_s), cost(speed.decode_tok_s))


def usd_per_day(running: Running, speed: Speed, mix: Mix, tokens_per_day: float) -> float | None:
    """What a day of so many tokens costs; None where the machine cannot serve them in a day."""
    busy_s = tokens_per_day / 1e6 * mix.seconds_per_million(speed)
    if busy_s > DAY_S:
        return None
    fixed = running.hardware_usd_per_day + running.idle_usd_per_day
    return fixed + busy_s * running.extra_usd_per_s


def _check(name: str, value: float, low: float, high: float, above: bool = False) -> None:
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        least = f"above {low:g}" if above else f"from {low:g}"
        raise ConfigError(f"{name} is {value:g}, but it must be {least} to {high:g}")
