"""The engines that a plan can be made for: `engines.toml` beside this file."""

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal

from moonlet.errors import ConfigError

Tier = Literal["vram", "ram", "disk"]


@dataclass(frozen=True)
class Engine:
    """What an engine can do. `experts` and `rest`: the tiers where it can keep them, fastest first.

    split: of the work among the accelerators of a node; across: among nodes.
    """

    name: str
    experts: tuple[Tier, ...]
    rest: tuple[Tier, ...]
    split: Literal["tensor", "pipeline"]
    quantizations: tuple[str, ...]
    about: str
    across: Literal["tensor", "pipeline", "none"] = "pipeline"
    vram_share: float = 1.0
    base_bytes: float = 0.0
    unified: bool = False
    streams_experts: bool = False
    hybrid: bool = False

    def runs(self, quantization: str) -> bool:
        """Whether it can run weights that are stored so."""
        return any(fnmatchcase(quantization.lower(), pattern) for pattern in self.quantizations)


@cache
def engines() -> dict[str, Engine]:
    """All of them by name."""
    table = tomllib.loads(Path(__file__).with_name("engines.toml").read_text("utf-8"))
    return {name: _engine(name, entry) for name, entry in table.items()}


def engine(name: str) -> Engine:
    """The engine called `name`. Raises ConfigError."""
    if name not in engines():
        raise ConfigError(f"{name[:40]!r} is no engine; choose one of {', '.join(engines())}")
    return engines()[name]


def _engine(name: str, entry: dict) -> Engine:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return Engine(name=name, **{**entry, **lists})
