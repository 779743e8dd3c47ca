"""Histories as other systems write them, and what the model must find instead."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.messages import ImagePart, Message, TextPart, ToolCall, parse_messages
from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import Event, collect
from moonlet.chat.repair import next_call_index, repair
from moonlet.chat.template import ChatTemplate
from moonlet.chat.tokenizer import Tokenizer
from moonlet.errors import PromptError
from tests.chat.completions import TOKENIZER as SMALL
from tests.chat.completions import ids_of


def user(text: str = "q") -> Message:
    return Message("user", (TextPart(text),))


def calls(*ids_and_names: str, reasoning: str | None = "") -> Message:
    """An assistant message with calls written ID=NAME."""
    pairs = [text.split("=") for text in ids_and_names]
    made = tuple(ToolCall(call_id, name, "{}") for call_id, name in pairs)
    return Message("assistant", reasoning=reasoning, tool_calls=made)


def result(call_id: str) -> Message:
    return Message("tool", (TextPart("r"),), tool_call_id=call_id)


def ids(messages: list[Message]) -> list[str | None]:
    """Of calls and of results, in order."""
    found: list[str | None] = []
    for message in messages:
        found += [call.id for call in message.tool_calls]
        found += [message.tool_call_id] if message.role == "tool" else []
    return found


CANONICAL = [
    Message("system", (TextPart("s"),)),
    Message("system", (TextPart("t"),)),
    user(),
    calls("functions.f:0=f", "functions.g:1=g", reasoning="r"),
    result("functions.g:1"),
    result("functions.f:0"),
    Message("assistant", (TextPart("a"),)),
    user(),
    calls("functions.f:2=f"),
]


def test_a_canonical_history_stays_as_it_is() -> None:
    repaired, words = repair(CANONICAL)
    assert words == []
    assert all(now is before for now, before in zip(repaired, CANONICAL, strict=True))
    assert next_call_index(CANONICAL) == 3
    assert repair([]) == ([], [])


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([calls("call_a=f"), result("call_a")], ["functions.f:0", "functions.f:0"]),
        (
            [calls("a=f", "b=g"), result("b"), result("a"), user(), calls("c=f")],
            ["functions.f:0", "functions.g:1", "functions.g:1", "functions.f:0", "functions.f:2"],
        ),
        # counted by message, as some servers do
        (
            [calls("functions.f:0=f"), result("functions.f:0")] * 2,
            ["functions.f:0", "functions.f:0", "functions.f:1", "functions.f:1"],
        ),
        # numbers and names that a trimmed history, or another model, left
        ([calls("functions.f:7=f"), result("functions.f:7")], ["functions.f:0"] * 2),
        ([calls("functions.old:0=new"), result("functions.old:0")], ["functions.new:0"] * 2),
        # an id of which nobody knows, where only one call waits
        ([calls("a=f"), result("toolu_x")], ["functions.f:0"] * 2),
        (
            [calls("a=f", "b=g"), result("a"), result("x")],
            ["functions.f:0", "functions.g:1", "functions.f:0", "functions.g:1"],
        ),
        ([calls("a=f"), result("x"), result("x")], ["functions.f:0"] * 3),
        ([calls("a=f"), user(), result("x")], ["functions.f:0"] * 2),
        # the call of a turn that is over waits no more
        (
            [calls("a=f"), user(), calls("b=g"), result("x")],
            ["functions.f:0", "functions.g:1", "functions.g:1"],
        ),
        # the old meaning of an id that was given again is out of reach
        (
            [calls("a=f"), calls("a=g"), result("a")],
            ["functions.f:0", "functions.g:1", "functions.g:1"],
        ),
    ],
)
def test_ids(messages: list[Message], wanted: list[str]) -> None:
    repaired, words = repair(messages)
    assert ids(repaired) == wanted
    assert words[0] == "tool_ids"
    assert repair(repaired)[0] == repaired


@pytest.mark.parametrize(
    ("messages", "index", "waiting"),
    [
        ([user(), result("x")], 1, 0),
        ([calls("a=f", "b=g"), result("x")], 1, 2),
        ([calls("a=f"), result("a"), result("x")], 2, 0),
        ([calls("a=f"), Message("tool", (TextPart("r"),)), result("x")], 2, 0),
        ([calls("a=f"), user(), Message("assistant", (TextPart("no"),)), result("x")], 3, 0),
    ],
)
def test_results_that_belong_to_no_call(messages: Any, index: int, waiting: int) -> None:
    with pytest.raises(
        PromptError, match=rf"messages\[{index}\] answers .* {waiting} calls"
    ) as caught:
        repair(messages)
    assert caught.value.param == f"messages[{index}].tool_call_id"


def test_lost_reasoning_becomes_empty() -> None:
    repaired, words = repair([calls("functions.f:0=f", reasoning=None), result("functions.f:0")])
    assert repaired[0].reasoning == ""
    assert words == ["reasoning"]
    answer = [Message("assistant", (TextPart("a"),))]
    assert repair(answer) == (answer, [])


def test_empty_texts_are_dropped() -> None:
    parts = (TextPart(""), ImagePart("data:x"), TextPart(""), TextPart("t"))
    messages = [Message("system", (TextPart(""),)), Message("user", parts)]
    repaired, words = repair(messages)
    assert [message.parts for message in repaired] == [(), parts[1::2]]
    assert words == ["empty_text"]


@pytest.mark.parametrize(
    ("messages", "is_told"),
    [
        ([calls("functions.f:0=f")], False),  # whoever asks so wants something else, or nothing
        ([calls("functions.f:0=f"), user()], True),
        ([calls("functions.f:0=f", "functions.g:1=g"), result("functions.f:0")], True),
        ([calls("functions.f:0=f"), user(), result("functions.f:0")], False),
    ],
)
def test_unanswered_calls_are_told_and_stay(messages: list[Message], is_told: bool) -> None:
    assert repair(messages) == (messages, ["unanswered"] if is_told else [])


def test_every_repair_is_told_once() -> None:
    messages = [
        calls("a=f", reasoning=None),
        Message("tool", (TextPart(""),), tool_call_id="a"),
        calls("b=f", reasoning=None),
        Message("tool", (TextPart(""),), tool_call_id="b"),
        calls("c=f"),
        user(),
    ]
    _, words = repair(messages)
    assert sorted(words) == ["empty_text", "reasoning", "tool_ids", "unanswered"]


def test_repaired_histories_render_and_the_next_call_goes_on_counting(tokenizer: Tokenizer) -> None:
    call = {"id": "toolu_1", "function": {"name": "f", "arguments": {"a": 1}}}
    raw = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "3"},
    ]
    repaired, words = repair(parse_messages(raw))
    assert words == ["reasoning", "tool_ids"]
    text = ChatTemplate(tokenizer).render(repaired).text
    assert "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>" in text
    assert "## Return of functions.f:0\n3" in text
    parser = OutputParser(SMALL, False, first_index=next_call_index(repaired))
    header = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"

    async def answer() -> AsyncIterator[Event]:
        for event in [e for i in ids_of(header) for e in parser.push(i)] + parser.finish("stop"):
            yield event

    (made,) = asyncio.run(collect(answer())).tool_calls
    assert made.id == "functions.f:1"
    again = [*repaired, Message("assistant", reasoning="", tool_calls=(made,)), result(made.id)]
    assert repair(again) == (again, [])


IDS = st.sampled_from(
    ["a", "b", "functions.f:0", "functions.f:1", "functions.g:0", "functions.g:1"]
)
PARTS = st.lists(st.sampled_from([TextPart(""), TextPart("t"), ImagePart("data:x")]), max_size=2)
MADE = st.lists(st.builds(ToolCall, IDS, st.sampled_from("fg"), st.just("{}")), max_size=2)
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user"]), PARTS.map(tuple))
    | st.builds(
        Message,
        st.just("assistant"),
        PARTS.map(tuple),
        reasoning=st.sampled_from([None, "", "r"]),
        tool_calls=MADE.map(tuple),
    )
    | st.builds(Message, st.just("tool"), PARTS.map(tuple), tool_call_id=IDS),
    max_size=8,
)


@given(MESSAGES)
def test_repair_is_done_once(messages: list[Message]) -> None:
    try:
        repaired, words = repair(messages)
    except PromptError:
        return
    assert len(words) == len(set(words))
    changed = [before for before, now in zip(messages, repaired, strict=True) if now is not before]
    assert bool(changed) == bool(set(words) - {"unanswered"})
    again, more = repair(repaired)
    assert all(now is before for now, before in zip(again, repaired, strict=True))
    assert set(more) == set(words) & {"unanswered"}
    made = [call for message in repaired for call in message.tool_calls]
    assert [c.id for c in made] == [f"functions.{c.name}:{n}" for n, c in enumerate(made)]
    known: set[str | None] = set()
    for message in repaired:
        known |= {call.id for call in message.tool_calls}
        assert message.role != "tool" or message.tool_call_id in known
        assert not any(part == TextPart("") for part in message.parts)
        assert message.reasoning is not None or not message.tool_calls
