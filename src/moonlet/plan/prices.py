"""What tokens cost at an API: a table in TOML, in US dollars for a million of them.

    ["api.moonshot.ai/kimi-k2.5"]        # HOST/MODEL at the endpoint, or the NAME it has here
    input = 0.60
    cached_input = 0.10                  # of a prompt's tokens that came from a cache; without it as input
    output = 3.00
    weights = "moonshotai/Kimi-K2.5"     # these and the following are optional: what the model is made of,
    as_of = 2026-02-01                   # when the price was seen, and where
    source = "https://platform.moonshot.ai/docs/pricing/chat"

`api_prices.toml` beside this file is what holds without any other. The gateway counts with it what requests
cost, the planner compares with it what a machine of one's own costs.
"""

import math
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from moonlet.chat.provider import Usage
from moonlet.config.toml import read_toml
from moonlet.errors import ConfigError

_BUILT_IN = Path(__file__).with_name("api_prices.toml")
_MOST = 1e6  # dollars for a million tokens; more is a slip of the pen
_NUMBERS = ("input", "cached_input", "output")
_TEXTS = ("weights", "source")


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens. What is known of a price besides does not make it another."""

    input: float
    cached_input: float
    output: float
    weights: str = field(default="", compare=False)
    as_of: date | None = field(default=None, compare=False)
    source: str = field(default="", compare=False)

    def of(self, usage: Usage) -> float:
        """Dollars for one request."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.input
            + usage.cached_tokens * self.cached_input
            + usage.completion_tokens * self.output
        ) / 1e6


FREE = Price(0.0, 0.0, 0.0)


class Prices:
    """The table of `path`, and after it the built-in one."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises ConfigError that names file and entry."""
        self._tables = [_read(file) for file in (path, _BUILT_IN) if file is not None]

    def find(self, name: str, host: str, model: str) -> Price | None:
        """The price of `model` at `host`, called `name` here; None when nobody has said it."""
        names = (f"{host}/{model}", name)
        found = (table[key] for table in self._tables for key in names if key in table)
        return next(found, None)

    def of_weights(self, model: str) -> dict[str, Price]:
        """Where the model of the repository or folder `model` is sold, by the name of the entry."""
        wanted = _last_part(model)
        return {
            name: price
            for table in reversed(self._tables)  # one's own replaces the built-in
            for name, price in table.items()
            if wanted in (_last_part(price.weights), _last_part(name)) and wanted
        }


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _read(path: Path) -> dict[str, Price]:
    raw = read_toml(path, "a table of prices")
    return {name: _price(entry, f"{path}: {name!r}") for name, entry in raw.items()}


def _price(entry: Any, where: str) -> Price:
    known = {*_NUMBERS, *_TEXTS, "as_of"}
    if not isinstance(entry, dict) or not {"input", "output"} <= entry.keys() <= known:
        raise ConfigError(
            f"{where} must be a table with input, output and, if it differs, cached_input; "
            "weights, as_of and source may say more"
        )
    numbers = {}
    for name in _NUMBERS:
        value = entry.get(name, entry["input"])
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= _MOST:
            raise ConfigError(
                f"{where}: {name} is {value!r:.40}, but it must be dollars for a million tokens"
            )
        numbers[name] = float(value)
    texts = {name: entry.get(name, "") for name in _TEXTS}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {name} is {value!r:.40}, but it must be text")
    as_of = entry.get("as_of")
    if as_of is not None and (not isinstance(as_of, date) or isinstance(as_of, datetime)):
        raise ConfigError(f"{where}: as_of is {as_of!r:.40}, but it must be a date like 2026-02-01")
    return Price(**numbers, **texts, as_of=as_of)
