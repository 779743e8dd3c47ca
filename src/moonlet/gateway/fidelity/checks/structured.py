"""Schemas: strict tools and strict answers over the whole subset, plain, streamed and after thinking."""

import re
from collections.abc import Callable
from typing import Any

from moonlet.gateway.fidelity.check import Group, Profile
from moonlet.gateway.fidelity.client import parse_json, shown
from moonlet.gateway.fidelity.endpoint import FEW_TOKENS, Endpoint
from moonlet.gateway.fidelity.errors import Failed, Skipped
from moonlet.gateway.fidelity.forced import forced_call, json_answer, json_schema
from moonlet.gateway.fidelity.schemas import (
    MFJS,
    POINT,
    SAMPLE,
    WIDER,
    Case,
    fixed,
    is_strict_for_openai,
)

group = Group("schemas")
formats = Group("json")

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
Ask = Callable[..., Any]


async def _both(endpoint: Endpoint, ask: Ask, case: Case, think: bool) -> None:
    if think:
        endpoint.must_think()
    if endpoint.profile == "openai" and not is_strict_for_openai(case.root):
        raise Skipped("OpenAI's strict schemas require every property")
    for stream in (False, True):
        await ask(endpoint, case, stream=stream, think=think)


def _add(kind: str, ask: Ask, cases: tuple[Case, ...], profiles: tuple[Profile, ...]) -> None:
    for case in cases:
        group.add(
            f"{kind}-{case.name}",
            f"a strict {kind} with {case.name.replace('-', ' ')}, plain and streamed",
            lambda endpoint, case=case: _both(endpoint, ask, case, False),
            profiles,
        )


_ALL: tuple[Profile, ...] = ("open", "kimi", "openai")
_add("tool", forced_call, MFJS, _ALL)
_add("answer", json_answer, MFJS, _ALL)
_add("tool", forced_call, WIDER, ("open",))
_add("answer", json_answer, WIDER, ("open",))
for _case in (case for case in MFJS if case.name in SAMPLE):
    group.add(
        f"thinking-answer-{_case.name}",
        f"thinking, then a strict answer with {_case.name}, plain and streamed",
        lambda endpoint, case=_case: _both(endpoint, json_answer, case, True),
    )
    group.add(
        f"thinking-tool-{_case.name}",
        f"thinking, then a strict tool with {_case.name}, plain and streamed",
        lambda endpoint, case=_case: _both(endpoint, forced_call, case, True),
        ("open",),
    )


@formats.check("object", "response_format json_object, plain and streamed, thinking and not")
async def json_object(endpoint: Endpoint) -> None:
    for think in (False, True) if endpoint.thinks else (False,):
        for stream in (False, True):
            answer = await endpoint.ask(
                "Answer with a short JSON object.",
                stream=stream,
                think=think,
                tokens=endpoint.thinking_room if think else 4 * FEW_TOKENS,
                response_format={"type": "json_object"},
            )
            text, cut = answer.first.content, answer.first.finish == "length"
            if cut and not text and think:
                raise Skipped("the model was still thinking at the token limit")
            if cut and text.startswith("{"):
                continue  # as far as it goes
            try:
                value = parse_json(text)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise Failed(f"json_object was answered with {shown(text)}")


@formats.check("text", "response_format text")
async def text(endpoint: Endpoint) -> None:
    await endpoint.ask(response_format={"type": "text"})


@formats.check("compact", "a strict answer, to see how it is spaced", ("open", "kimi"))
async def compact(endpoint: Endpoint) -> None:
    case = next(case for case in MFJS if case.name == "array-objects")
    for stream in (False, True):
        found = await json_answer(endpoint, case, stream=stream)
        if re.search(r"\s", _STRING.sub("", found)):
            raise Failed(f"JSON has to be one line without blanks, and is {shown(found)}")


@formats.check("same-streamed", "a strict answer plain, plain again and streamed, with a seed")
async def same_streamed(endpoint: Endpoint) -> None:
    case = Case("points", {"type": "array", "items": POINT, "minItems": 2, "maxItems": 2})
    first = await json_answer(endpoint, case, **endpoint.cold)
    again = await json_answer(endpoint, case, **endpoint.cold)
    streamed = await json_answer(endpoint, case, stream=True, **endpoint.cold)
    if first != again:
        raise Skipped("the endpoint does not repeat itself, so there is nothing to compare with")
    if first != streamed:
        raise Failed(f"the stream says {shown(streamed)}, the plain answer {shown(first)}")


_GOOD = json_schema(fixed("x"))
_SPEC = _GOOD["json_schema"]
REFUSED: dict[str, Any] = {
    "unknown-type": {"type": "xml"},
    "no-type": {"json_schema": _SPEC},
    "no-json-schema": {"type": "json_schema"},
    "no-name": {**_GOOD, "json_schema": {"schema": _SPEC["schema"]}},
    "no-schema": {**_GOOD, "json_schema": {"name": "record"}},
    "schema-text": {**_GOOD, "json_schema": {**_SPEC, "schema": "object"}},
    "strict-text": {**_GOOD, "json_schema": {**_SPEC, "strict": "yes"}},
    "format-text": "json",
}


async def _refused(endpoint: Endpoint, name: str) -> None:
    what = f"a response_format with {name.replace('-', ' ')}"
    for stream in (False, True):
        await endpoint.refused(what, response_format=REFUSED[name], stream=stream)


for _name in REFUSED:
    formats.add(
        _name,
        f"a response_format with {_name.replace('-', ' ')}",
        lambda endpoint, name=_name: _refused(endpoint, name),
    )


@formats.check("kimi-subset", "strict schemas outside of the subset", ("kimi",))
async def kimi_subset(endpoint: Endpoint) -> None:
    for case in WIDER:
        await endpoint.refused(
            f"a strict schema with {case.name}", response_format=json_schema(case.root)
        )
