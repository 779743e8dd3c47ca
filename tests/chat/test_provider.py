"""The event stream: collecting it, and the scripted provider that other tests use."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from moonlet.chat.fake import FakeProvider, says
from moonlet.chat.messages import ToolCall
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
    collect,
)
from moonlet.errors import EngineError, PromptError

USAGE = Usage(3, 4, 1)
REQUEST = ChatRequest(messages=[])


async def stream_of(events: Iterable[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


def test_collect_joins_every_kind_of_event() -> None:
    events = [
        ReasoningDelta("a"),
        ReasoningDelta("b"),
        TextDelta("c"),
        ToolCallStart(0, "functions.f:0", "f"),
        ToolCallDelta(0, '{"x"'),
        ToolCallDelta(0, ": 1}"),
        ToolCallStart(1, "functions.g:1", "g"),
        ToolCallDelta(1, "not json"),
        Finish("tool_calls", USAGE),
    ]
    done = asyncio.run(collect(stream_of(events)))
    assert (done.reasoning, done.text, done.finish_reason) == ("ab", "c", "tool_calls")
    assert done.tool_calls == (
        ToolCall("functions.f:0", "f", '{"x": 1}'),
        ToolCall("functions.g:1", "g", "not json"),
    )
    assert done.usage == USAGE


@pytest.mark.parametrize(("arguments", "kept"), [('{"x": 1', 0), ('{"x": 1}', 1), ("", 0)])
def test_collect_drops_only_the_call_that_the_limit_cut(arguments: str, kept: int) -> None:
    events = [
        ToolCallStart(0, "functions.f:0", "f"),
        ToolCallDelta(0, arguments),
        Finish("length", USAGE),
    ]
    assert len(asyncio.run(collect(stream_of(events))).tool_calls) == kept


def test_a_stream_without_finish_is_an_error() -> None:
    with pytest.raises(EngineError, match="broke off"):
        asyncio.run(collect(stream_of([TextDelta("half")])))


def test_fake_records_requests_and_completion() -> None:
    fake = FakeProvider(says("two words"))
    assert asyncio.run(collect(fake.stream(REQUEST))).text == "two words"
    assert fake.requests == [REQUEST]
    assert (fake.finished, fake.closed) == (1, 0)


def test_fake_waits_for_events_and_notices_when_it_is_closed() -> None:
    async def scenario() -> FakeProvider:
        gate = asyncio.Event()
        fake = FakeProvider([TextDelta("a"), gate, TextDelta("b"), TextDelta("c")])
        generator = fake.stream(REQUEST)
        assert await anext(generator) == TextDelta("a")
        waiting = asyncio.ensure_future(anext(generator))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        assert await waiting == TextDelta("b")
        await generator.aclose()
        assert fake.closed_event.is_set()
        return fake

    fake = asyncio.run(scenario())
    assert (fake.finished, fake.closed) == (0, 1)


def test_fake_raises_what_its_script_holds() -> None:
    fake = FakeProvider([PromptError("no", "messages")])
    with pytest.raises(PromptError):
        asyncio.run(collect(fake.stream(REQUEST)))
