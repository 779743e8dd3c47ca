"""Sampling parameters, as each profile takes or refuses them."""

import re
from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.endpoint import Endpoint
from moonlet.gateway.fidelity.errors import Skipped

group = Group("sampling")

# Models of the Kimi API whose sampling is free; that of all others is fixed.
FREE = re.compile(r"(?i)moonshot-v1|k2[-_]?thinking|k2(?![.\d])|moonlight")
FIXED: tuple[dict[str, Any], ...] = (
    {},
    {"top_p": 0.95},
    {"n": 1},
    {"presence_penalty": 0},
    {"frequency_penalty": 0},
)
# What the fixed values are in each mode; of thinking two generations of Moonshot's verifier disagree.
TEMPERATURES = {True: (1.0, 0.6, 0.0), False: (0.6,)}
WRONG: tuple[dict[str, Any], ...] = (
    {"temperature": 1.1},
    {"temperature": 2.0},
    {"temperature": -0.1},
    {"top_p": 0.8},
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5},
    {"n": 2},
)
TAKEN: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.7},
    {"temperature": 2},
    {"top_p": 0.8},
    {"presence_penalty": 0.5, "frequency_penalty": -0.5},
    {"temperature": None, "top_p": None},
)
IMPOSSIBLE: tuple[dict[str, Any], ...] = (
    {"temperature": -0.1},
    {"temperature": 2.1},
    {"top_p": 1.5},
    {"top_p": -0.1},
    {"presence_penalty": 3},
    {"n": 0},
)


def _told(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items()) or "no parameter"


def _modes(endpoint: Endpoint) -> tuple[bool, ...]:
    return (False, True) if endpoint.thinks else (False,)


def _must_be_fixed(endpoint: Endpoint) -> None:
    if FREE.search(endpoint.model):
        raise Skipped(f"the sampling of {endpoint.model} is free")


@group.check("fixed", "each parameter with its fixed value, thinking and not", ("kimi",))
async def fixed(endpoint: Endpoint) -> None:
    _must_be_fixed(endpoint)
    for think in _modes(endpoint):
        temperatures = [{"temperature": value} for value in TEMPERATURES[think]]
        for fields in (*FIXED, *temperatures):
            await endpoint.ask("Say OK", think=think, tokens=2, **fields)


@group.check("changed", "each fixed parameter with another value, thinking and not", ("kimi",))
async def changed(endpoint: Endpoint) -> None:
    _must_be_fixed(endpoint)
    for think in _modes(endpoint):
        for fields in WRONG:
            mode = "thinking" if think else "instant"
            await endpoint.refused(f"{_told(fields)} ({mode})", think=think, tokens=2, **fields)


@group.check("taken", "parameters within their range, one at a time", ("open", "openai"))
async def taken(endpoint: Endpoint) -> None:
    for fields in TAKEN:
        await endpoint.ask("Say OK", tokens=2, **fields)


@group.check("out-of-range", "parameters out of range, one at a time", ("open", "openai"))
async def out_of_range(endpoint: Endpoint) -> None:
    for fields in IMPOSSIBLE:
        await endpoint.refused(_told(fields), tokens=2, **fields)


@group.check("two-choices", "n 2, plain and streamed", ("open", "openai"))
async def two_choices(endpoint: Endpoint) -> None:
    for stream in (False, True):
        await endpoint.ask("Say OK", tokens=4, n=2, stream=stream)
