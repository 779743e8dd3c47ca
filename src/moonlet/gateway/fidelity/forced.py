"""Answers that a schema bounds: forced calls and JSON texts, asked for and judged."""

from typing import Any

from moonlet.gateway.fidelity.answers import Answer, Call, Choice
from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.endpoint import Endpoint
from moonlet.gateway.fidelity.errors import Failed, Skipped
from moonlet.gateway.fidelity.judge import text_problem
from moonlet.gateway.fidelity.schemas import Case, Schema

RECORD = "record"  # the tool of those that need only one
OPEN_ENDED_TOKENS = 96


def tool(schema: Schema, name: str = RECORD, **more: Any) -> dict[str, Any]:
    """A strict tool."""
    function = {"name": name, "description": "Takes a record.", "parameters": schema}
    return {"type": "function", "function": {**function, "strict": True, **more}}


def named(name: str = RECORD) -> dict[str, Any]:
    """The tool_choice that forces one tool."""
    return {"type": "function", "function": {"name": name}}


def json_schema(schema: Schema) -> dict[str, Any]:
    """The response_format of a strict schema."""
    return {
        "type": "json_schema",
        "json_schema": {"name": "record", "schema": schema, "strict": True},
    }


async def forced_call(
    endpoint: Endpoint,
    case: Case,
    *,
    stream: bool = False,
    think: bool = False,
    choice: Any = "required",
    **fields: Any,
) -> Call:
    """The one call of a tool with the schema of `case`. Raises Failed when it is none or wrong."""
    answer = await endpoint.ask(
        "Record something.",
        stream=stream,
        think=think,
        tokens=_tokens(endpoint, case, think),
        tools=[tool(case.root)],
        tool_choice=choice,
        parallel_tool_calls=False,
        **fields,
    )
    _ended(answer.first, case, think, answer)
    calls = answer.first.calls
    if not calls:
        raise Failed(f"a call was forced, and the answer has none: {shown(answer.first.content)}")
    check_call(calls[0], {RECORD: case.root})
    return calls[0]


def check_call(call: Call, schemas: dict[str, Schema]) -> None:
    """Raises Failed unless it is a call of one of these tools with arguments that fit."""
    if call.name not in schemas:
        raise Failed(f"the call names {shown(call.name)}, not one of the tools")
    if found := text_problem(call.arguments, schemas[call.name]):
        raise Failed(f"the arguments of a call are wrong: {found}")


async def json_answer(
    endpoint: Endpoint,
    case: Case,
    *,
    stream: bool = False,
    think: bool = False,
    **fields: Any,
) -> str:
    """The JSON text of an answer that has to satisfy `case`. Raises Failed when it does not."""
    answer = await endpoint.ask(
        "Answer with a record in JSON.",
        stream=stream,
        think=think,
        tokens=_tokens(endpoint, case, think),
        response_format=json_schema(case.root),
        **fields,
    )
    _ended(answer.first, case, think, answer)
    text = answer.first.content
    if found := text_problem(text, case.root):
        raise Failed(f"the answer is wrong: {found}")
    return text


def _tokens(endpoint: Endpoint, case: Case, think: bool) -> int:
    if think:
        return endpoint.thinking_room
    return min(OPEN_ENDED_TOKENS, endpoint.room) if case.open_ended else endpoint.room


def _ended(choice: Choice, case: Case, think: bool, answer: Answer) -> None:
    """Raises Skipped where the token limit may have come first, Failed where it must not."""
    if choice.finish != "length":
        return
    limit = answer.completion_tokens if answer.usages else "the allowed"
    if think and not choice.content and not choice.calls:
        raise Skipped(f"the model was still thinking after {limit} tokens")
    if case.open_ended:
        raise Skipped(f"the answer, which may be of any length, did not end within {limit} tokens")
    raise Failed(
        f"{limit} tokens were not enough for a value of a few: {shown(choice.content or choice.calls)}"
    )
