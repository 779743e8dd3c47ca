"""Tools: auto, none, required and named, plain and streamed, thinking and not."""

from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.endpoint import FEW_TOKENS, Endpoint
from moonlet.gateway.fidelity.errors import Failed, Refusal, Skipped
from moonlet.gateway.fidelity.forced import RECORD, check_call, forced_call, named, tool
from moonlet.gateway.fidelity.schemas import COLOURS, DIGIT, FLAG, WIDER, Case, closed, fixed

group = Group("tools")

PAINT = closed({"colour": COLOURS}, "colour")
COUNTS = closed({"n": DIGIT, "sure": FLAG}, "n", "sure")
TWO = {"paint": PAINT, "count": COUNTS}
TOOLS = [tool(schema, name) for name, schema in TWO.items()]
CASE = Case("counts", COUNTS)
TEXT = Case("text", fixed("alpha-beta-gamma-delta"))
QUESTION = "Paint something, or count."


def _modes(think: bool) -> str:
    return "thinking" if think else "instant"


async def _free(endpoint: Endpoint, choice: str | None, stream: bool, think: bool) -> None:
    if think:
        endpoint.must_think()
    tokens = (4 if think else 2) * FEW_TOKENS
    answer = await endpoint.ask(
        QUESTION, stream=stream, think=think, tokens=tokens, tools=TOOLS, tool_choice=choice
    )
    if choice == "none" and answer.first.calls:
        raise Failed(f"tool_choice none was answered with a call of {answer.first.calls[0].name}")


async def _forced(endpoint: Endpoint, choice: Any, stream: bool, think: bool) -> None:
    """Whoever cannot force a call while thinking has to say so, as the Kimi API does."""
    if think:
        endpoint.must_think()
    if think and endpoint.profile == "kimi":
        fields = {"tools": [tool(COUNTS)], "tool_choice": choice}
        await endpoint.refused("a call forced while thinking", think=True, stream=stream, **fields)
        return
    try:
        call = await forced_call(endpoint, CASE, choice=choice, stream=stream, think=think)
    except Refusal as refusal:
        if think and refusal.status == 400:
            raise Skipped("the endpoint forces no call while thinking, like the Kimi API") from None
        raise
    if call.name != RECORD:
        raise Failed(f"the only tool is {RECORD}, and {shown(call.name)} was called")


for _stream in (False, True):
    for _think in (False, True):
        _way = f"{'stream' if _stream else 'plain'}-{_modes(_think)}"
        for _choice in (None, "auto", "none"):
            group.add(
                f"{_choice or 'default'}-{_way}",
                f"two tools, tool_choice {_choice or 'left out'}",
                lambda endpoint, choice=_choice, stream=_stream, think=_think: _free(
                    endpoint, choice, stream, think
                ),
            )
        for _name, _force in (("required", "required"), ("named", named())):
            group.add(
                f"{_name}-{_way}",
                f"one tool, tool_choice {_name}",
                lambda endpoint, choice=_force, stream=_stream, think=_think: _forced(
                    endpoint, choice, stream, think
                ),
            )


@group.check("named-of-two", "two tools, each of them forced by name")
async def named_of_two(endpoint: Endpoint) -> None:
    for name, schema in TWO.items():
        answer = await endpoint.ask(
            QUESTION,
            tokens=endpoint.room,
            tools=TOOLS,
            tool_choice=named(name),
            parallel_tool_calls=False,
        )
        called = [call.name for call in answer.first.calls]
        if set(called) != {name}:
            raise Failed(f"{name} was forced, and {shown(called)} called")
        check_call(answer.first.calls[0], {name: schema})


@group.check("several", "two tools, required, with parallel calls allowed, plain and streamed")
async def several(endpoint: Endpoint) -> None:
    for stream in (False, True):
        answer = await endpoint.ask(
            QUESTION, stream=stream, tokens=endpoint.room, tools=TOOLS, tool_choice="required"
        )
        calls = answer.first.calls
        if not calls:
            raise Failed("calls were forced, and the answer has none")
        for call in calls[:-1] if answer.first.finish == "length" else calls:
            check_call(call, TWO)


@group.check("one-only", "two tools, required, parallel_tool_calls false", ("open", "openai"))
async def one_only(endpoint: Endpoint) -> None:
    for stream in (False, True):
        answer = await endpoint.ask(
            QUESTION,
            stream=stream,
            tokens=endpoint.room,
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
        )
        if len(answer.first.calls) != 1:
            raise Failed(f"{len(answer.first.calls)} calls came where one was allowed")


@group.check("same-streamed", "a forced call plain, plain again and streamed, with a seed")
async def same_streamed(endpoint: Endpoint) -> None:
    first = await forced_call(endpoint, CASE, **endpoint.cold)
    again = await forced_call(endpoint, CASE, **endpoint.cold)
    streamed = await forced_call(endpoint, CASE, stream=True, **endpoint.cold)
    # What the schema leaves open may differ where nothing repeats itself; the rest may not.
    if (first.name, first.type) != (streamed.name, streamed.type):
        raise Failed(
            f"the stream calls {shown(streamed.name)}, the plain answer {shown(first.name)}"
        )
    if first == again and first != streamed:
        raise Failed(
            f"the streamed call has {shown(streamed.arguments)}, the plain one "
            f"{shown(first.arguments)}"
        )


@group.check("stop-not-in-arguments", "a forced call with a stop string in it", ("open",))
async def stop_in_arguments(endpoint: Endpoint) -> None:
    for stream in (False, True):
        await forced_call(endpoint, TEXT, stream=stream, stop=["gamma"])


async def _refused(endpoint: Endpoint, what: str, fields: dict[str, Any]) -> None:
    await endpoint.refused(what, **fields)
    await endpoint.refused(what, stream=True, **fields)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "required-without-tools": ("required without tools", {"tool_choice": "required"}),
    "required-empty-tools": ("required with no tool", {"tool_choice": "required", "tools": []}),
    "named-without-tools": ("a named tool without tools", {"tool_choice": named()}),
    "bogus-choice": ("an unknown tool_choice", {"tool_choice": "maybe", "tools": TOOLS}),
    "bogus-type": (
        "a tool_choice of an unknown type",
        {"tool_choice": {"type": "magic"}, "tools": TOOLS},
    ),
    "unknown-name": (
        "a tool_choice that names no tool",
        {"tool_choice": named("nobody"), "tools": TOOLS},
    ),
    "tools-object": ("tools that are no list", {"tools": {"a": 1}}),
    "no-name": ("a tool without a name", {"tools": [{"type": "function", "function": {}}]}),
    "bad-name": ("a tool name with a blank", {"tools": [tool(COUNTS, "to count")]}),
    "parameters-list": (
        "parameters that are a list",
        {"tools": [{"type": "function", "function": {"name": RECORD, "parameters": []}}]},
    ),
}
for _name, (_what, _fields) in REFUSED.items():
    group.add(
        _name,
        _what,
        lambda endpoint, what=_what, fields=_fields: _refused(endpoint, what, fields),
    )


@group.check("choice-without-tools", "tool_choice none and auto without tools", ("open", "kimi"))
async def choice_without_tools(endpoint: Endpoint) -> None:
    for choice in ("none", "auto"):
        await endpoint.ask(tool_choice=choice)


@group.check("kimi-names", "tool names that Kimi's rule does not allow", ("kimi",))
async def kimi_names(endpoint: Endpoint) -> None:
    for name in ("1st", "ab", "-abc", "x" * 65, "a.b.c"):
        await endpoint.refused(f"the tool name {name!r:.20}", tools=[tool(COUNTS, name)])


@group.check("kimi-subset", "strict tools outside of the schema subset", ("kimi",))
async def kimi_subset(endpoint: Endpoint) -> None:
    for case in WIDER:
        await endpoint.refused(
            f"a strict tool with {case.name}", tools=[tool(case.root)], tool_choice="required"
        )
