"""Server-sent events taken apart, and scripts of events: one for everybody, and others at random."""

import json
from typing import Any

from hypothesis import strategies as st

from moonlet.chat.provider import (
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)

# What a model says that thinks first, with the numbers that come of it.
ANSWER: list[Event] = [
    ReasoningDelta("7+5=12, "),
    ReasoningDelta("carry 1."),
    TextDelta("It is "),
    TextDelta("632."),
    Finish("stop", Usage(10, 9, 5, cached_tokens=4)),
]


def told(raw: bytes) -> list[Any]:
    """The JSON values of a stream of named events; their names must be their types."""
    values = []
    for block in raw.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        values.append(value)
    return values


_PIECES = st.lists(st.text(max_size=5), max_size=4)
_ARGUMENTS = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2)


@st.composite
def scripts(draw: st.DrawFn) -> list[Event]:
    """Any answer that a provider may give: pieces cut anywhere, calls that are whole."""
    events: list[Event] = [ReasoningDelta(piece) for piece in draw(_PIECES)]
    events += [TextDelta(piece) for piece in draw(_PIECES)]
    calls = draw(st.lists(_ARGUMENTS, max_size=3))
    for index, arguments in enumerate(calls):
        text = json.dumps(arguments)
        cut = draw(st.integers(0, len(text)))
        events.append(ToolCallStart(index, f"functions.f:{index}", "f"))
        events += [ToolCallDelta(index, piece) for piece in (text[:cut], text[cut:])]
        events.append(ToolCallEnd(index))
    reason = draw(st.sampled_from(["length", "tool_calls" if calls else "stop"]))
    usage = Usage(draw(st.integers(1, 99)), 9, 3, cached_tokens=1)
    return [*events, Finish(reason, usage)]
