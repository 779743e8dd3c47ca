"""What each field of a claim must be; see claims_file.py. Every check takes the value and the field's name, and
raises ConfigError that says what it found and what it wants."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moonlet.config import PRESETS, REPOSITORIES
from moonlet.errors import ConfigError

_MOST_TEXT = 500
_MOST = 1e9
Range = tuple[float, float]


@dataclass(frozen=True)
class Guidance:
    """What somebody publishes of a speed without having measured it."""

    tok_s: Range
    source: str


def shown(value: object) -> str:
    """The start of what a file says, for a sentence."""
    return f"{value!r:.60}"


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= _MOST_TEXT:
        raise ConfigError(
            f"{name} is {shown(value)}, but it must be text of 1 to {_MOST_TEXT} letters"
        )
    return value.strip()


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST:
        raise ConfigError(f"{name} is {shown(value)}, but it must be a number above 0")
    return float(value)


def _from_zero(value: Any, name: str) -> float:
    is_zero = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
    return 0.0 if is_zero else _number(value, name)


def _whole(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value < _MOST:
        raise ConfigError(f"{name} is {shown(value)}, but it must be a whole number from 1")
    return value


def _range(value: Any, name: str) -> Range:
    """A number, or the lowest and the highest."""
    ends = value if isinstance(value, list) else [value, value]
    if len(ends) != 2:
        raise ConfigError(f"{name} is {shown(value)}, but it must be a number or [lowest, highest]")
    low, high = (_number(end, name) for end in ends)
    if low > high:
        raise ConfigError(f"{name} is [{low:g}, {high:g}]: write the lower number first")
    return low, high


def _cards(value: Any, name: str) -> list[str]:
    return [_text(one, name) for one in (value if isinstance(value, list) else [value])]


def _model(value: Any, name: str) -> str:
    """A preset's name."""
    text = _text(value, name).lower()
    presets = {repository.lower(): known for known, repository in REPOSITORIES.items()}
    text = presets.get(text, text)
    if text not in PRESETS:
        raise ConfigError(f"{name} is {shown(value)}, but it must be one of {', '.join(PRESETS)}")
    return text


def _precision(value: Any, name: str) -> str:
    text = _text(value, name).lower()
    if text.endswith(".toml"):  # a claim names what all know, and opens no other file
        raise ConfigError(f"{name} is {shown(text)}, but it must be the name of a quantization")
    return text


def _groups(value: Any, name: str) -> int:
    """0 for as many as there are heads."""
    text = _text(value, name).lower()
    groups = text.removeprefix("gqa")
    if text == "mha":
        return 0
    if text == groups or not (groups.isascii() and groups.isdigit() and 0 < int(groups[:6]) < 1000):
        raise ConfigError(f'{name} is {shown(value)}, but it must be "mha", or "gqa8" for 8 groups')
    return int(groups)


def _published(value: Any, name: str) -> tuple[Guidance, ...]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) and one.keys() == {"tok_s", "source"} for one in entries):
        raise ConfigError(f"{name} must be a list of tables with tok_s and source")
    return tuple(
        Guidance(_range(one["tok_s"], f"{name}: tok_s"), _text(one["source"], f"{name}: source"))
        for one in entries
    )


# By name. Hardware is what the flags of `moonlet plan` are.
HARDWARE: dict[str, Callable[[Any, str], Any]] = {
    "gpu": _cards,
    "ram": _number,
    "cpu": _text,
    "cpu_bandwidth": _number,
    "cores": _whole,
    "sockets": _whole,
    "nvme": _from_zero,
    "disk": _number,
    "nodes": _whole,
    "network": _number,
}
CHECKS: dict[str, Callable[[Any, str], Any]] = HARDWARE | {
    "text": _text,
    "model": _model,
    "precision": _precision,
    "size_gb": _number,
    "context": _whole,
    "tok_s": _range,
    "published": _published,
    "times": _number,
    "against": _groups,
    "percent": _number,
    "input": _from_zero,
    "output": _from_zero,
    "cached_input": _from_zero,
}
