"""Thinking: on and off by every switch, in its own member, before the answer."""

from typing import Any

from moonlet.gateway.fidelity.answers import Answer
from moonlet.gateway.fidelity.check import Group, Profile
from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.endpoint import FEW_TOKENS, THINKING_BUDGET, Endpoint
from moonlet.gateway.fidelity.errors import Failed
from moonlet.gateway.fidelity.forced import json_answer
from moonlet.gateway.fidelity.schemas import Case, fixed

group = Group("thinking")

KIMI: tuple[Profile, ...] = ("open", "kimi")
# Switch -> on, off, and of which profiles it is expected.
SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Profile, ...]]] = {
    "type": ({"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}}, KIMI),
    "template": (
        {"chat_template_kwargs": {"thinking": True}},
        {"chat_template_kwargs": {"thinking": False}},
        ("open",),
    ),
    "effort": ({"reasoning_effort": "low"}, {"reasoning_effort": "none"}, ("openai",)),
}
TOKENS = 4 * FEW_TOKENS


def _check_thought(answer: Answer) -> None:
    """Raises Failed unless there is reasoning, and it was counted if anything is."""
    if not answer.first.reasoning:
        raise Failed(
            f"thinking was on and there is no reasoning, only {shown(answer.first.content)}"
        )
    if answer.reasoning_tokens == 0:
        raise Failed("there is reasoning, but usage says 0 reasoning tokens")


def _check_instant(answer: Answer) -> None:
    if answer.first.reasoning:
        raise Failed(f"thinking was off and there is reasoning: {shown(answer.first.reasoning)}")
    if answer.reasoning_tokens:
        raise Failed(f"thinking was off and usage says {answer.reasoning_tokens} reasoning tokens")


async def _switched(endpoint: Endpoint, name: str, on: bool) -> None:
    endpoint.must_think()
    fields_on, fields_off, _ = SWITCHES[name]
    fields = fields_on if on else fields_off
    for stream in (False, True):
        answer = await endpoint.ask(
            "What is 2+3?", think=None, tokens=TOKENS, stream=stream, **fields
        )
        (_check_thought if on else _check_instant)(answer)


for _name, (_, _, _profiles) in SWITCHES.items():
    for _on in (True, False):
        _word = "on" if _on else "off"
        group.add(
            f"{_name}-{_word}",
            f"a question with thinking switched {_word} by {_name}, plain and streamed",
            lambda endpoint, name=_name, on=_on: _switched(endpoint, name, on),
            _profiles,
        )


@group.check("default", "a question without a switch", ("kimi",))
async def default(endpoint: Endpoint) -> None:
    endpoint.must_think()
    _check_thought(await endpoint.ask("What is 2+3?", think=None, tokens=TOKENS))


@group.check("then-answer", "thinking, and then an answer that a schema fixes")
async def then_answer(endpoint: Endpoint) -> None:
    endpoint.must_think()
    case = Case("fixed", fixed("after all"))
    for stream in (False, True):
        await json_answer(endpoint, case, think=True, stream=stream)


@group.check("budget", "a thinking budget, and an answer that a schema fixes", ("open",))
async def budget(endpoint: Endpoint) -> None:
    endpoint.must_think()
    case = Case("fixed", fixed("within"))
    await json_answer(endpoint, case, think=True, max_tokens=THINKING_BUDGET + 4 * FEW_TOKENS)


@group.check("conflict", "both switches, one on and one off", ("open", "kimi"))
async def conflict(endpoint: Endpoint) -> None:
    endpoint.must_think()
    for on in (True, False):
        await endpoint.refused(
            "thinking switched on and off at once",
            think=None,
            thinking={"type": "enabled" if on else "disabled"},
            chat_template_kwargs={"thinking": not on},
        )


@group.check("unknown-type", "a thinking type that does not exist", ("open", "kimi"))
async def unknown_type(endpoint: Endpoint) -> None:
    await endpoint.refused("an unknown type of thinking", think=None, thinking={"type": "maybe"})


@group.check("unknown-member", "an unknown member of thinking", ("kimi",))
async def unknown_member(endpoint: Endpoint) -> None:
    endpoint.must_think()
    await endpoint.refused(
        "an unknown member of thinking", think=None, thinking={"type": "enabled", "depth": 3}
    )
