"""From how many tokens a day on a machine of one's own is cheaper than an API, with the arithmetic in words.

A day costs the same however much is served (hardware, and electricity while waiting); each million tokens
saves the API's price and takes more electricity. Division tells where the two meet, and that they never do
when electricity eats the saving or the machine cannot serve so many tokens.
"""

import math
from dataclasses import dataclass

from moonlet.plan.cost import DAY_S, Mix, Running, Speed
from moonlet.plan.prices import Price


@dataclass(frozen=True)
class BreakEven:
    """What `break_even` found.

    tokens_per_day: where the costs meet, inf when no saving is left. most_per_day: what the machine serves in
    the share of the day for which there is work. In US dollars for a million tokens: `api_usd`; `own_usd`, all
    costs when it serves its most; `electricity_usd`, of that under load. sentences: how it was counted.
    """

    tokens_per_day: float
    most_per_day: float
    api_usd: float
    own_usd: float
    electricity_usd: float
    sentences: tuple[str, ...]

    @property
    def pays(self) -> bool:
        """The machine is cheaper, if it is used enough."""
        return self.tokens_per_day <= self.most_per_day

    @property
    def electricity_alone(self) -> bool:
        """It never is, because even working without a pause its electricity costs more than the API."""
        return self.electricity_usd >= self.api_usd

    @property
    def too_slow(self) -> bool:
        """It never is, because it cannot serve as many tokens as that takes."""
        return math.isfinite(self.tokens_per_day) and not self.pays


def break_even(running: Running, speed: Speed, api: Price, mix: Mix) -> BreakEven:
    """Compares the machine with the API for tokens in the shares of `mix`."""
    price = mix.usd_per_million(api)
    seconds = mix.seconds_per_million(speed)
    fixed = running.hardware_usd_per_day + running.idle_usd_per_day
    extra = seconds * running.extra_usd_per_s
    most = DAY_S * running.utilisation / seconds * 1e6 if seconds else math.inf
    needed = 1e6 * fixed / (price - extra) if price > extra else math.inf
    found = BreakEven(
        tokens_per_day=needed,
        most_per_day=most,
        api_usd=price,
        own_usd=1e6 * fixed / most + extra,
        electricity_usd=seconds * running.busy_usd_per_s,
        sentences=(),
    )
    words = (
        _api(mix, api, price),
        _busy(mix, speed, seconds),
        f"Working, the machine takes {running.watts:,.0f} W x {running.overhead:g} at "
        f"${running.kwh_usd:g} a kWh: {_usd(found.electricity_usd)} of electricity for them, of which "
        f"{_usd(extra)} is more than it takes while waiting.",
        f"Each day costs {_usd(running.hardware_usd_per_day)} of hardware (${running.usd:,.0f} less "
        f"{running.resale:.0%} that comes back, over {running.years:g} years) and "
        f"{_usd(running.idle_usd_per_day)} of electricity for waiting.",
        *_verdict(found, running, fixed, extra),
    )
    return BreakEven(**{**vars(found), "sentences": words})


def _api(mix: Mix, api: Price, price: float) -> str:
    return (
        f"A million tokens, {mix.fresh:.1%} of them new prompt, {mix.cached:.1%} cached prompt and "
        f"{mix.output:.1%} answer, cost {_usd(price)} at the API: {mix.fresh:.4g} x {_price(api.input)} + "
        f"{mix.cached:.4g} x {_price(api.cached_input)} + {mix.output:.4g} x {_price(api.output)}."
    )


def _busy(mix: Mix, speed: Speed, seconds: float) -> str:
    parts = [
        (mix.fresh, speed.prefill_tok_s, "new prompt"),
        (mix.cached, speed.cached_tok_s, "cached prompt"),
        (mix.output, speed.decode_tok_s, "answer"),
    ]
    terms = " + ".join(
        f"{share * 1e6:,.0f} / {_rate(rate)} tokens/s of {name}"
        for share, rate, name in parts
        if math.isfinite(rate)
    )
    return f"They keep the machine busy for {seconds:,.0f} s: {terms}."


def _verdict(found: BreakEven, running: Running, fixed: float, extra: float) -> list[str]:
    said = []
    if found.electricity_alone:
        said.append(
            f"Electricity alone, {_usd(found.electricity_usd)}, costs no less than the API, "
            f"{_usd(found.api_usd)}: the machine never becomes cheaper."
        )
    if not math.isfinite(found.tokens_per_day):
        return said
    meet = f"{_usd(fixed)} / ({_usd(found.api_usd)} - {_usd(extra)}) = {_tokens(found.tokens_per_day)} a day"
    if found.pays:
        return [
            f"{meet}: from there on the machine is cheaper than the API; {_limit(found, running)}."
        ]
    slow = f"{meet} would be needed, but {_limit(found, running)}: the machine is too slow to become cheaper."
    return [*said, f"{slow} At its most it costs {_usd(found.own_usd)} for a million."]


def _limit(found: BreakEven, running: Running) -> str:
    if found.most_per_day == math.inf:
        return "it serves any number"
    share = "" if running.utilisation == 1 else f" in {running.utilisation:.0%} of the day"
    return f"it serves at most {_tokens(found.most_per_day)}{share}"


def _price(value: float) -> str:
    return f"${value:.2f}" if round(value, 2) == value else f"${value:g}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _usd(value: float) -> str:
    if value == 0 or value >= 1:
        return f"${value:,.2f}"
    return f"${value:.4f}" if value >= 0.001 else f"${value:.2g}"


def _tokens(count: float) -> str:
    return f"{count / 1e6:,.2f} million tokens" if count >= 1e6 else f"{count:,.0f} tokens"
