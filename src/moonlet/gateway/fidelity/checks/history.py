"""Conversations with calls in them, as clients of every kind send them back."""

from typing import Any

from moonlet.gateway.fidelity.answers import Choice
from moonlet.gateway.fidelity.check import PROFILES, Group, Profile
from moonlet.gateway.fidelity.endpoint import Endpoint, user
from moonlet.gateway.fidelity.errors import Failed
from moonlet.gateway.fidelity.forced import check_call, tool
from moonlet.gateway.fidelity.schemas import DIGIT, closed

group = Group("history")

NAME = "look_up"
SCHEMA = closed({"n": DIGIT}, "n")
TOOLS = [tool(SCHEMA, NAME)]


def called(*ids: str, **more: Any) -> dict[str, Any]:
    """The message of an assistant that made these calls."""
    calls = [
        {"id": one, "type": "function", "function": {"name": NAME, "arguments": '{"n":1}'}}
        for one in ids
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "41"}


def loop(*ids: str, **more: Any) -> list[dict[str, Any]]:
    """A question, its calls and their results."""
    return [user("Look it up."), called(*ids, **more), *map(result, ids)]


HISTORIES: dict[str, list[dict[str, Any]]] = {
    "canonical": loop("functions.look_up:0", reasoning_content="I should look."),
    "foreign-ids": loop("call_Ab3", "toolu_01X", reasoning_content=""),
    "reasoning-name": loop("functions.look_up:0", reasoning="I should look."),
    "empty-reasoning": loop("functions.look_up:0", reasoning_content=""),
    "content-null": loop("functions.look_up:0", content=None, reasoning_content=""),
    "finished-loop": [
        *loop("call_1", reasoning_content=""),
        {"role": "assistant", "content": "It is 41."},
        user("And now?"),
    ],
}


async def _served(endpoint: Endpoint, name: str) -> None:
    for think in (False, True) if endpoint.thinks else (False,):
        await endpoint.ask(messages=HISTORIES[name], tools=TOOLS, think=think)


for _name in HISTORIES:
    _profiles: tuple[Profile, ...] = ("open",) if _name == "reasoning-name" else PROFILES
    group.add(
        _name,
        f"a history with calls: {_name.replace('-', ' ')}",
        lambda endpoint, name=_name: _served(endpoint, name),
        _profiles,
    )


@group.check("no-reasoning", "a running loop of calls without the reasoning that led to them")
async def no_reasoning(endpoint: Endpoint) -> None:
    asked: dict[str, Any] = {"messages": loop("functions.look_up:0"), "tools": TOOLS}
    await endpoint.ask(**asked)
    if not endpoint.thinks:
        return
    if endpoint.profile == "kimi":
        await endpoint.refused("a loop without its reasoning, thinking", think=True, **asked)
    else:
        await endpoint.ask(think=True, **asked)


@group.check("arguments-object", "arguments that are an object, not a string", ("open",))
async def arguments_object(endpoint: Endpoint) -> None:
    messages = loop("functions.look_up:0", reasoning_content="")
    messages[1]["tool_calls"][0]["function"]["arguments"] = {"n": 1}
    await endpoint.ask(messages=messages, tools=TOOLS)


async def _next(endpoint: Endpoint, messages: list[dict[str, Any]], stream: bool) -> Choice:
    answer = await endpoint.ask(
        messages=messages,
        stream=stream,
        tokens=endpoint.room,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
    )
    if not answer.first.calls:
        raise Failed("a call was forced, and the answer has none")
    check_call(answer.first.calls[0], {NAME: SCHEMA})
    return answer.first


@group.check("next-id", "a forced call after two calls, with canonical and with foreign ids")
async def next_id(endpoint: Endpoint) -> None:
    """Which id is due, a rule says."""
    for ids in (("functions.look_up:0", "functions.look_up:1"), ("call_x", "call_y")):
        for stream in (False, True):
            await _next(endpoint, loop(*ids, reasoning_content=""), stream)


@group.check("round-trip", "a forced call, sent back as it came, with its result")
async def round_trip(endpoint: Endpoint) -> None:
    question = [user("Look it up.")]
    choice = await _next(endpoint, question, stream=False)
    calls = [
        {
            "id": call.id,
            "type": call.type,
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in choice.calls
    ]
    message = {
        "role": "assistant",
        "content": choice.content or None,
        "reasoning_content": choice.reasoning,
        "tool_calls": calls,
    }
    results = [result(call.id) for call in choice.calls]
    await endpoint.ask(messages=[*question, message, *results], tools=TOOLS)
