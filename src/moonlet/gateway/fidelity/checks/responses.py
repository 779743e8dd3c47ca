"""OpenAI's Responses API, where the endpoint speaks it: the order of its typed events."""

from collections.abc import Sequence
from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.checks.events import SCHEMA, Event, typed_events
from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.endpoint import FEW_TOKENS, Endpoint
from moonlet.gateway.fidelity.errors import Failed
from moonlet.gateway.fidelity.forced import RECORD
from moonlet.gateway.fidelity.judge import text_problem
from moonlet.gateway.fidelity.shape import needed

group = Group("responses")


def _response_body(endpoint: Endpoint, **more: Any) -> dict[str, Any]:
    openai = endpoint.profile == "openai" and endpoint.thinks
    off = {"reasoning": {"effort": "none"}} if openai else endpoint.switch(think=False)
    body = {"model": endpoint.model, "input": "Say OK.", "max_output_tokens": FEW_TOKENS}
    return {**body, **off, **more}


def check_response_events(events: list[Event]) -> dict[str, Any]:
    """The response of the last event. Raises Failed when the order is wrong."""
    numbers = [event.get("sequence_number") for event in events]
    first = numbers[0]
    if not isinstance(first, int) or numbers != list(range(first, first + len(numbers))):
        raise Failed(f"the sequence numbers are {shown(numbers)}, not one more each time")
    kinds = [event["type"] for event in events]
    if kinds[:2] != ["response.created", "response.in_progress"]:
        raise Failed(f"the stream begins with {shown(kinds[:2])}")
    terminal = [kind for kind in kinds if kind in _ENDINGS]
    if len(terminal) != 1 or kinds[-1] != terminal[0]:
        raise Failed(
            f"the stream ends with {shown(kinds[-1])}, and has the endings {shown(terminal)}"
        )
    _check_items(events[2:-1])
    return needed(events[-1], "response", dict, kinds[-1])


_ENDINGS = ("response.completed", "response.incomplete", "response.failed")


def _check_items(events: Sequence[Event]) -> None:
    """One item after another: added, its parts or arguments, done."""
    opened: int | None = None
    due = 0
    pieces: list[str] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        index = event.get("output_index")
        if kind == "output_item.added":
            if opened is not None or index != due:
                raise Failed(f"item {index} was added while item {due} was due")
            opened, pieces = due, []
        elif opened is None or index != opened:
            raise Failed(f"{kind} of item {shown(index)} came while {opened} was open")
        elif kind == "output_item.done":
            opened, due = None, due + 1
        elif kind.endswith(".delta"):
            pieces.append(needed(event, "delta", str, kind))
        elif kind in ("output_text.done", "reasoning_text.done", "function_call_arguments.done"):
            name = "arguments" if kind.startswith("function") else "text"
            if needed(event, name, str, kind) != "".join(pieces):
                raise Failed(f"{kind} differs from its deltas")
        elif kind == "content_part.added":
            pieces = []
    if opened is not None:
        raise Failed(f"item {opened} was never done")


@group.check("plain", "POST /responses")
async def plain(endpoint: Endpoint) -> None:
    reply = await endpoint.route("/responses", _response_body(endpoint))
    if reply.status != 200:
        raise Failed(f"a response was answered with {reply.told}")
    _check_response(reply.json)


def _check_response(response: Any) -> None:
    if needed(response, "object", str) != "response":
        raise Failed(f"the object is {shown(response['object'])}, not 'response'")
    if needed(response, "status", str) not in ("completed", "incomplete"):
        raise Failed(f"the status is {shown(response['status'])}")
    needed(response, "id", str)
    needed(response, "output", list)
    usage = needed(response, "usage", dict)
    read, made, total = (
        needed(usage, f"{name}_tokens", int, "usage") for name in ("input", "output", "total")
    )
    if read + made != total:
        raise Failed(f"usage says {read} + {made} = {total} tokens")


@group.check("stream", "POST /responses, streamed")
async def stream(endpoint: Endpoint) -> None:
    reply = await endpoint.route("/responses", _response_body(endpoint, stream=True))
    _check_response(check_response_events(typed_events(reply)))


@group.check("call", "a forced call by /responses, streamed")
async def call(endpoint: Endpoint) -> None:
    tool = {"type": "function", "name": RECORD, "parameters": SCHEMA, "strict": True}
    body = _response_body(
        endpoint, stream=True, max_output_tokens=endpoint.room, tools=[tool],
        tool_choice="required", parallel_tool_calls=False,
    )  # fmt: skip
    response = check_response_events(typed_events(await endpoint.route("/responses", body)))
    calls = [item for item in response["output"] if item.get("type") == "function_call"]
    if not calls:
        raise Failed("a call was forced, and the response has none")
    if found := text_problem(needed(calls[0], "arguments", str, "the call"), SCHEMA):
        raise Failed(f"the arguments of a call are wrong: {found}")


@group.check("error", "POST /responses without input")
async def error(endpoint: Endpoint) -> None:
    reply = await endpoint.route("/responses", _response_body(endpoint, input=None))
    if reply.status != 400:
        raise Failed(f"a response without input was answered with {reply.told}, not with 400")
    needed(needed(reply.json, "error", dict), "message", str, "error")
