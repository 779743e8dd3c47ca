"""Text completions: through the official client, and what a request may say."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
from openai import OpenAI

from moonlet.chat.fake import CARD, FakeProvider, broken
from moonlet.chat.provider import (
    Event,
    Finish,
    TextDelta,
    TextRequest,
    TokenLogprob,
    Usage,
)
from moonlet.server import create_app
from moonlet.server.completions import CompletionEncoder, continued
from moonlet.server.completions_in import MAX_CHOICES, CompletionRequest, parse_completion
from moonlet.server.errors import ApiError
from moonlet.server.profiles import OPEN
from tests.server.running import WAIT_S, serving

SCRIPT: list[Event] = [
    TextDelta(" there", logprobs=(TokenLogprob(b" there", -0.5, ((b" there", -0.5),)),)),
    TextDelta("é", logprobs=(TokenLogprob(b"\xc3", -1), TokenLogprob(b"\xa9", float("-inf")))),
    TextDelta("!", logprobs=(TokenLogprob(b"!", -2),)),
    Finish("stop", Usage(5, 4, 0, cached_tokens=2), stop="END"),
]


class Echo(FakeProvider):
    """Answers each prompt with itself, one character at a time, in as many choices as asked."""

    def complete(self, request: TextRequest) -> AsyncGenerator[Event, None]:
        self.texts.append(request)
        return self._echo(request)

    async def _echo(self, request: TextRequest) -> AsyncGenerator[Event, None]:
        for character in request.prompt:
            for choice in range(request.n):
                yield TextDelta(str(character), choice)
                await asyncio.sleep(0)
        for choice in range(request.n):
            yield Finish("stop", Usage(len(request.prompt), 1, 0), choice)


@pytest.fixture(scope="module")
def provider() -> FakeProvider:
    return FakeProvider(SCRIPT)


def parsed(**fields: Any) -> CompletionRequest:
    return parse_completion({"model": "fake", "prompt": "Hi", **fields}, CARD, OPEN)


def test_plain_answer(client: OpenAI, provider: FakeProvider) -> None:
    answer = client.completions.create(model="fake", prompt="Hi", stop=["END"], seed=3, logprobs=1)
    [choice] = answer.choices
    assert (answer.object, choice.text, choice.finish_reason) == (
        "text_completion",
        " thereé!",
        "stop",
    )
    assert choice.logprobs is not None
    assert choice.logprobs.to_dict() == {
        "tokens": [" there", "bytes:\\xc3", "bytes:\\xa9", "!"],
        "token_logprobs": [-0.5, -1.0, -9999.0, -2.0],
        "top_logprobs": [{" there": -0.5}, {}, {}, {}],
        "text_offset": [0, 6, 6, 7],
    }
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)
    asked = provider.texts[-1]
    assert (asked.prompt, asked.stop, asked.max_tokens) == ("Hi", ("END",), 16)
    assert (asked.sampling.seed, asked.logprobs, asked.n) == (3, 1, 1)


def test_the_stream_says_the_same(client: OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="fake",
            prompt="Hi",
            logprobs=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *told, last = chunks
    assert "".join(chunk.choices[0].text for chunk in told) == " thereé!"
    assert [chunk.choices[0].finish_reason for chunk in told] == [None, None, None, "stop"]
    offsets = [chunk.choices[0].logprobs.text_offset for chunk in told]  # type: ignore[union-attr]
    assert offsets == [[0], [6, 6], [7], []]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 9


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_choices(stream: bool) -> None:
    with serving(create_app(Echo([]))) as server, server.client() as client:
        asked: Any = {"model": "fake", "prompt": ["ab", "cde"], "n": 2}
        if stream:
            chunks = client.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
            texts, usage = ["", "", "", ""], None
            for chunk in chunks:
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
                usage = chunk.usage
        else:
            answer = client.completions.create(**asked)
            texts, usage = [choice.text for choice in answer.choices], answer.usage
    assert texts == ["ab", "ab", "cde", "cde"]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 4)


def test_prompts_of_token_ids(client: OpenAI, provider: FakeProvider) -> None:
    client.completions.create(model="fake", prompt=[1, 2, 3])
    assert provider.texts[-1].prompt == [1, 2, 3]
    answer = client.completions.create(model="fake", prompt=[[1, 2], [3]])
    assert [text.prompt for text in provider.texts[-2:]] == [[1, 2], [3]]
    assert len(answer.choices) == 2


def test_a_failing_prompt_ends_the_others() -> None:
    class Fails(FakeProvider):
        def complete(self, request: TextRequest) -> AsyncGenerator[Event, None]:
            bad = FakeProvider([broken("it broke")])
            return bad.complete(request) if request.prompt == "bad" else super().complete(request)

    provider = Fails([TextDelta("a"), asyncio.Event()])
    with serving(create_app(provider)) as server, server.client() as client:
        with pytest.raises(openai.InternalServerError, match="it broke"):
            client.completions.create(model="fake", prompt=["good", "bad"])
        server.wait(asyncio.wait_for(provider.closed_event.wait(), WAIT_S))


def test_leaving_early_closes_every_prompt() -> None:
    async def leave() -> FakeProvider:
        provider = FakeProvider([TextDelta("a"), asyncio.Event()])
        events = continued(provider, parsed(prompt=["a", "b", "c"]))
        first = [await anext(events) for _ in range(3)]
        assert [event.choice for event in first] == [0, 1, 2]
        await events.aclose()
        return provider

    assert asyncio.run(leave()).closed == 3


def test_no_logprobs_unless_asked() -> None:
    told = CompletionEncoder("fake").event(SCRIPT[0])
    assert json.loads(told[6:])["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a", 3]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [10**40]}, "prompt[0]"),
        ({"prompt": ["a"] * (MAX_CHOICES + 1)}, "prompt"),
        ({"prompt": ["a"] * MAX_CHOICES, "n": 2}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
def test_refusals(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_what_changes_nothing() -> None:
    same = {"echo": False, "suffix": "", "best_of": 1, "user": "me", "made_up": 1, "logprobs": None}
    assert parsed(**same) == parsed()
