"""What tokens cost: a table in TOML, in US dollars for a million of them.

    ["api.moonshot.ai/kimi-k2.5"]   # HOST/MODEL at the endpoint, or the NAME it has here
    input = 0.60
    cached_input = 0.10             # of a prompt's tokens that came from a cache; without it as input
    output = 3.00

`prices.toml` beside this file is what holds without any other.
"""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonlet.chat.provider import Usage
from moonlet.errors import ConfigError

_BUILT_IN = Path(__file__).with_name("prices.toml")
_MOST = 1e6  # dollars for a million tokens; more is a slip of the pen


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens."""

    input: float
    cached_input: float
    output: float

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


def _read(path: Path) -> dict[str, Price]:
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the prices in {path} cannot be read: {reason}") from error
    return {name: _price(entry, f"{path}: {name!r}") for name, entry in raw.items()}


def _price(entry: Any, where: str) -> Price:
    names = ("input", "cached_input", "output")
    if not isinstance(entry, dict) or not {"input", "output"} <= entry.keys() <= set(names):
        raise ConfigError(
            f"{where} must be a table with input, output and, if it differs, cached_input"
        )
    found = {}
    for name in names:
        value = entry.get(name, entry["input"])
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= _MOST:
            raise ConfigError(
                f"{where}: {name} is {value!r:.40}, but it must be dollars for a million tokens"
            )
        found[name] = float(value)
    return Price(**found)
