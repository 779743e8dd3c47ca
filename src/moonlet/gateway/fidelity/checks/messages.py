"""Anthropic's messages API, where the endpoint speaks it: the order of its typed events."""

from collections.abc import Sequence
from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.checks.events import SCHEMA, Event, typed_events
from moonlet.gateway.fidelity.client import Reply, shown
from moonlet.gateway.fidelity.endpoint import FEW_TOKENS, Endpoint, user
from moonlet.gateway.fidelity.errors import Failed, Skipped
from moonlet.gateway.fidelity.forced import RECORD
from moonlet.gateway.fidelity.judge import problem, text_problem
from moonlet.gateway.fidelity.shape import member, needed

group = Group("messages")


async def _message(endpoint: Endpoint, **more: Any) -> Reply:
    """Below the base, or where Kimi has it. Raises Skipped where it is nowhere."""
    body = {
        "model": endpoint.model,
        "max_tokens": FEW_TOKENS,
        "messages": [user("Say OK.")],
        **more,
    }
    for path in ("/messages", f"{endpoint.client.root}/anthropic/v1/messages"):
        reply = await endpoint.client.send("POST", path, body)
        if reply.status not in (404, 405, 501):
            return reply
    raise Skipped("the endpoint has no /messages")


def check_message_events(events: list[Event]) -> list[dict[str, Any]]:
    """The content blocks, put together. Raises Failed when the order is wrong."""
    events = [event for event in events if event["type"] != "ping"]
    kinds = [event["type"] for event in events]
    if kinds[0] != "message_start" or kinds[-2:] != ["message_delta", "message_stop"]:
        raise Failed(f"the stream begins with {kinds[0]} and ends with {shown(kinds[-2:])}")
    usage = needed(events[-2], "usage", dict, "message_delta")
    needed(usage, "output_tokens", int, "usage")
    reason = member(needed(events[-2], "delta", dict, "message_delta"), "stop_reason", str)
    if reason not in ("end_turn", "max_tokens", "tool_use", "stop_sequence"):
        raise Failed(f"stop_reason is {shown(reason)}")
    return _blocks(events[1:-2])


def _blocks(events: Sequence[Event]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        kind, index = event["type"], event.get("index")
        if kind == "content_block_start":
            if is_open or index != len(blocks):
                raise Failed(f"block {shown(index)} began while block {len(blocks)} was due")
            blocks.append({**needed(event, "content_block", dict, kind), "joined": ""})
            is_open = True
        elif not is_open or index != len(blocks) - 1:
            raise Failed(f"{kind} of block {shown(index)} came while none such was open")
        elif kind == "content_block_stop":
            is_open = False
        elif kind == "content_block_delta":
            delta = needed(event, "delta", dict, kind)
            member_of = {"text_delta": "text", "input_json_delta": "partial_json"}
            name = member_of.get(delta.get("type", ""), "thinking")
            blocks[-1]["joined"] += member(delta, name, str, "delta") or ""
        else:
            raise Failed(f"{kind} came among the content blocks")
    if is_open:
        raise Failed(f"block {len(blocks) - 1} never stopped")
    return blocks


@group.check("plain", "POST /messages")
async def plain(endpoint: Endpoint) -> None:
    reply = await _message(endpoint)
    if reply.status != 200:
        raise Failed(f"a message was answered with {reply.told}")
    if (needed(reply.json, "type", str), needed(reply.json, "role", str)) != (
        "message",
        "assistant",
    ):
        raise Failed(f"the answer is no message of the assistant: {shown(reply.raw)}")
    needed(reply.json, "content", list)
    usage = needed(reply.json, "usage", dict)
    needed(usage, "input_tokens", int, "usage")
    needed(usage, "output_tokens", int, "usage")


@group.check("stream", "POST /messages, streamed")
async def stream(endpoint: Endpoint) -> None:
    check_message_events(typed_events(await _message(endpoint, stream=True)))


@group.check("call", "a forced call by /messages, plain and streamed")
async def call(endpoint: Endpoint) -> None:
    asked = {
        "max_tokens": endpoint.room,
        "tools": [{"name": RECORD, "input_schema": SCHEMA}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    plain = await _message(endpoint, **asked)
    if plain.status != 200:
        raise Failed(f"a forced call was answered with {plain.told}")
    uses = [part for part in plain.json["content"] if part.get("type") == "tool_use"]
    found = problem(uses[0].get("input"), SCHEMA) if uses else "there is none"
    if found:
        raise Failed(f"the forced call is wrong: {found}")
    blocks = check_message_events(typed_events(await _message(endpoint, stream=True, **asked)))
    calls = [block for block in blocks if block.get("type") == "tool_use"]
    found = text_problem(calls[0]["joined"], SCHEMA) if calls else "there is none"
    if found:
        raise Failed(f"the streamed call is wrong: {found}")


@group.check("error", "POST /messages without max_tokens")
async def error(endpoint: Endpoint) -> None:
    reply = await _message(endpoint, max_tokens=None)
    if reply.status != 400:
        raise Failed(f"a message without max_tokens was answered with {reply.told}, not with 400")
    if reply.json.get("type") != "error":
        raise Failed(f"an error has the type {shown(reply.json.get('type'))}, not 'error'")
    error = needed(reply.json, "error", dict)
    needed(error, "type", str, "error")
    needed(error, "message", str, "error")


@group.check("count", "POST /messages/count_tokens, and the same message")
async def count(endpoint: Endpoint) -> None:
    said = {"model": endpoint.model, "messages": [user("Say OK.")]}
    counted = await endpoint.route("/messages/count_tokens", said)
    if counted.status != 200:
        raise Failed(f"the count was answered with {counted.told}")
    count = needed(counted.json, "input_tokens", int)
    usage = needed((await _message(endpoint)).json, "usage", dict)
    cached = member(usage, "cache_read_input_tokens", int, "usage") or 0
    written = member(usage, "cache_creation_input_tokens", int, "usage") or 0
    used = needed(usage, "input_tokens", int, "usage") + cached + written
    if used != count:
        raise Failed(f"the count is {count} tokens, and usage says {used}")
