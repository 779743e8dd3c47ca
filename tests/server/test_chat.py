"""Choices, logprobs, usage and the profiles' answers, through the official client over a real socket."""

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from moonlet.chat.fake import FakeProvider, says
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from moonlet.server import create_app
from moonlet.server.profiles import KIMI, OPENAI, Profile
from tests.server.running import serving

HELLO: Any = [{"role": "user", "content": "hi"}]
TWO = [
    ReasoningDelta("hm", choice=1),
    TextDelta("a", choice=0),
    TextDelta("b", choice=1),
    Finish("stop", Usage(10, 3, 1, cached_tokens=4, cached_disk_tokens=1), choice=1),
    TextDelta("c", choice=0),
    Finish("length", Usage(10, 5, 0, cached_tokens=10), choice=0),
]
TOTAL = (10, 8, 18)


@contextmanager
def asking(script: list[Any], **options: Any) -> Iterator[OpenAI]:
    with serving(create_app(FakeProvider(script), **options)) as server, server.client() as client:
        yield client


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model="fake", messages=HELLO, **fields)


def counts(usage: Any) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def test_choices_plain() -> None:
    with asking(TWO) as client:
        answer = ask(client, n=2)
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "ac", "length"),
        (1, "b", "stop"),
    ]
    assert answer.choices[1].message.reasoning_content == "hm"
    assert counts(answer.usage) == TOTAL
    assert answer.usage.cached_tokens == 4  # the second choice found what the first had left
    assert answer.usage.completion_tokens_details.reasoning_tokens == 1


def test_choices_streamed() -> None:
    with asking(TWO) as client:
        chunks = list(ask(client, n=2, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices[0].index for chunk in chunks[:2]] == [0, 1]
    assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant", "assistant", None]
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "ac", 1: "b"}
    ends = [c.choices[0] for c in chunks[:-1] if c.choices[0].finish_reason]
    assert [(end.index, end.finish_reason) for end in ends] == [(1, "stop"), (0, "length")]
    assert "usage" not in (ends[0].model_extra or {})
    assert ends[1].usage["total_tokens"] == 18
    assert counts(chunks[-1].usage) == TOTAL


LIKELY = [
    TextDelta("\u6708", logprobs=(
        TokenLogprob(b"\xe6\x9c", -0.5, ((b"\xe6\x9c", -0.5), (b"x", -math.inf))),
        TokenLogprob(b"\x88", 0.0),
    )),
    TextDelta("!", logprobs=(TokenLogprob(b"!", -20000.0),)),
    Finish("stop", Usage(1, 3, 0)),
]  # fmt: skip


def test_logprobs_have_openais_shape() -> None:
    with asking(LIKELY) as client:
        plain = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs
        chunks = list(ask(client, logprobs=True, top_logprobs=2, stream=True))
        without = ask(client).choices[0].logprobs
    first, second, third = plain.content
    assert (first.token, first.bytes, first.logprob) == ("\ufffd", [0xE6, 0x9C], -0.5)
    assert [(top.bytes, top.logprob) for top in first.top_logprobs] == [
        ([0xE6, 0x9C], -0.5),
        ([ord("x")], -9999.0),
    ]
    assert (second.bytes, second.logprob, second.top_logprobs) == ([0x88], 0.0, [])
    assert third.logprob == -9999.0
    told = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert told == plain.content
    assert without is None


def test_the_stop_string_is_told() -> None:
    script = [TextDelta("a"), Finish("stop", Usage(1, 1, 0), stop="END")]
    with asking(script) as client:
        assert ask(client, stop="END").choices[0].stop_reason == "END"
        chunks = list(ask(client, stop="END", stream=True))
    assert chunks[-1].choices[0].stop_reason == "END"


def test_thinking_that_was_not_asked_for_stays_out() -> None:
    script = [ReasoningDelta("hm"), TextDelta("a"), Finish("stop", Usage(1, 2, 1))]
    hidden = {"extra_body": {"include_reasoning": False}}
    with asking(script) as client:
        message = ask(client, **hidden).choices[0].message
        chunks = list(ask(client, **hidden, stream=True))
    assert not message.model_extra
    assert not any(chunk.choices[0].delta.model_extra for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a"


def test_openai_has_no_members_of_others() -> None:
    script = [
        ReasoningDelta("hm"),
        TextDelta("a"),
        ToolCallStart(0, "functions.f:0", "f"),
        ToolCallDelta(0, "{}"),
        ToolCallEnd(0),
        Finish("tool_calls", Usage(1, 2, 1), stop="x"),
    ]
    with asking(script, profile=OPENAI) as client:
        plain = ask(client)
        chunks = list(ask(client, stream=True))
    assert plain.choices[0].message.model_extra == {"reasoning_content": "hm"}
    assert not plain.model_extra
    assert not plain.usage.model_extra
    assert not plain.choices[0].model_extra
    extras = {key for chunk in chunks for key in chunk.choices[0].delta.model_extra}
    assert extras == {"reasoning_content"}
    assert not any(chunk.choices[0].model_extra for chunk in chunks)


def test_openais_models_have_no_members_of_others() -> None:
    with asking([], profile=OPENAI) as client:
        assert set(client.models.list().data[0].to_dict()) == {
            "id",
            "object",
            "created",
            "owned_by",
        }


def test_where_the_prompt_came_from_is_in_the_head() -> None:
    usage = Usage(9, 1, 0, cached_tokens=7, cached_disk_tokens=2, cache_break="system text")
    with asking([TextDelta("a"), Finish("stop", usage)]) as client:
        raw = client.chat.completions.with_raw_response.create(model="fake", messages=HELLO)
    assert raw.headers["x-moonlet-cache"] == "memory=5, disk=2, break=system text"
    assert "x-moonlet-repairs" not in raw.headers


@pytest.mark.parametrize("profile", [KIMI, OPENAI], ids=lambda profile: profile.name)
def test_the_usage_tells_it_too_in_streams_as_well(profile: Profile) -> None:
    usage = Usage(9, 1, 0, cached_tokens=7, cached_disk_tokens=2, cache_break="tools_changed")
    expected: dict[str, object] = {"cached_tokens": 7}
    if profile is KIMI:
        expected |= {"cached_disk_tokens": 2, "cache_break": "tools_changed"}
    with asking([TextDelta("a"), Finish("stop", usage)], profile=profile) as client:
        plain = client.chat.completions.create(model="fake", messages=HELLO)
        chunks = list(
            client.chat.completions.create(
                model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        )
    for told in (plain.usage, chunks[-1].usage):
        assert told is not None
        assert told.prompt_tokens_details is not None
        assert told.prompt_tokens_details.to_dict() == expected


@pytest.mark.parametrize("stream", [False, True])
def test_repairs_are_in_the_head(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moonlet.server.request.repair", lambda m: (m, ["messages[0]: renamed"]))
    with asking(says("ok")) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="fake", messages=HELLO, stream=stream
        )
        assert raw.headers["x-moonlet-repairs"] == "messages[0]: renamed"
        kind = "text/event-stream" if stream else "application/json"
        assert raw.headers["content-type"].startswith(kind)
        raw.parse()


def test_parse_helper_of_the_client() -> None:
    """Structured output as users of the client write it."""
    from pydantic import BaseModel

    class Sum(BaseModel):
        value: int

    provider = FakeProvider([TextDelta('{"value":632}'), Finish("stop", Usage(1, 1, 0))])
    with serving(create_app(provider)) as server, server.client() as client:
        answer = client.chat.completions.parse(
            model="fake", messages=HELLO, response_format=Sum, max_tokens=9
        )
    assert answer.choices[0].message.parsed == Sum(value=632)
    assert (provider.requests[-1].schema or {})["required"] == ["value"]


def test_stream_helper_of_the_client() -> None:
    """It puts the pieces of a stream together again and is strict about their shape."""
    script = [
        ReasoningDelta("hm"),
        TextDelta("Let me look."),
        ToolCallStart(0, "functions.look:0", "look"),
        ToolCallDelta(0, '{"at":'),
        ToolCallDelta(0, '"x"}'),
        ToolCallEnd(0),
        ToolCallStart(1, "functions.look:1", "look"),
        ToolCallDelta(1, "{}"),
        ToolCallEnd(1),
        Finish("tool_calls", Usage(5, 9, 1)),
    ]
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    with asking(script) as client:
        with client.chat.completions.stream(
            model="fake", messages=HELLO, tools=tools, stream_options={"include_usage": True}
        ) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        plain = ask(client, tools=tools)
    message, [choice] = final.choices[0].message, plain.choices
    assert [c.function.arguments for c in message.tool_calls or []] == ['{"at":"x"}', "{}"]
    assert [c.to_dict() for c in choice.message.tool_calls] == [
        {key: value for key, value in c.to_dict().items() if key != "index"}
        | {"function": {k: v for k, v in c.function.to_dict().items() if k != "parsed_arguments"}}
        for c in message.tool_calls or []
    ]
    assert final.usage == plain.usage
    assert kinds.count("tool_calls.function.arguments.done") == 2


class Echo(FakeProvider):
    """Says the last message back, a letter at a time, in turn with everybody else."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        text = request.messages[-1].text
        for letter in text:
            await asyncio.sleep(0)
            yield TextDelta(letter)
        yield Finish("stop", Usage(1, len(text), 0))


def test_64_at_once_do_not_mix() -> None:
    async def one(client: AsyncOpenAI, number: int) -> str:
        content = f"number {number} " * 20
        asked: Any = {"model": "fake", "messages": [{"role": "user", "content": content}]}
        if number % 2:
            answer = await client.chat.completions.create(**asked)
            return answer.choices[0].message.content or ""
        chunks = [
            chunk async for chunk in await client.chat.completions.create(**asked, stream=True)
        ]
        assert len({chunk.id for chunk in chunks}) == 1
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    async def all_of_them(url: str) -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(64)))

    with serving(create_app(Echo([]))) as server:
        answers = asyncio.run(all_of_them(server.url))
    assert answers == [f"number {number} " * 20 for number in range(64)]
