"""The gateway behind our server, through the official clients: it cannot be told from a model of ours."""

import asyncio
import base64
import json
import sqlite3
import urllib.request
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from moonlet.chat.fake import CARD, FakeProvider, says
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    ModelCard,
    Provider,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from moonlet.chat.sources import MediaAccess
from moonlet.errors import EngineError, PromptError
from moonlet.gateway.budgets import Budgets
from moonlet.gateway.discover import discover
from moonlet.gateway.endpoint import Endpoint
from moonlet.gateway.ledger import Ledger
from moonlet.gateway.metered import metered
from moonlet.gateway.upstream import Upstream
from moonlet.plan.prices import Price
from moonlet.server import create_app
from moonlet.server.auth import short_digest
from moonlet.server.file_store import FileStore
from tests.gateway.endpoint import (
    DONE,
    Break,
    FakeEndpoint,
    Says,
    chunk,
    event,
    refuses,
    running,
    text,
    usage,
)
from tests.server.running import WAIT_S, Running, serving

HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "time")
]
M = ModelCard("m", 1, 4096, supports_images=True, supports_reasoning=True)
CALLS = Says(
    [
        chunk({"role": "assistant", "reasoning": "hm", "content": None}),
        chunk({"content": "Let me look."}),
        chunk({"tool_calls": [{"index": 0, "id": "call_9a", "type": "function", "function": {"name": "weather", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Lisboa"}'}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "call_9b", "function": {"name": "time", "arguments": "{}"}}]}),
        chunk(finish="tool_calls"),
        usage(20, 12, prompt_tokens_details={"cached_tokens": 7}),
        DONE,
    ]
)  # fmt: skip


@contextmanager
def gateway(
    *places: Endpoint, main: Provider | Future[Provider] | None = None, **options: Any
) -> Iterator[Running]:
    """Our server with the model `m` at these places, alone or beside `main`."""
    provider = Upstream(places, M, options.pop("access", MediaAccess()), pause_s=0.01)
    first, others = (provider, []) if main is None else (main, [provider])
    with serving(create_app(first, others, **options)) as server:
        yield server


@contextmanager
def asking(*answers: Says) -> Iterator[tuple[Running, FakeEndpoint]]:
    fake = FakeEndpoint(*answers)
    with running(fake) as place, gateway(place) as server:
        yield server, fake


def assembled(chunks: Any) -> tuple[str, str, list[tuple[str, str, str]], str]:
    """Reasoning, text, calls and finish reason of a stream."""
    thought, words, calls, finish = "", "", {}, ""
    for part in chunks:
        for choice in part.choices:
            thought += (choice.delta.model_extra or {}).get("reasoning_content", "")
            words += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                one = calls.setdefault(call.index, ["", "", ""])
                one[0] += call.id or ""
                one[1] += call.function.name or ""
                one[2] += call.function.arguments or ""
            finish = choice.finish_reason or finish
    return thought, words, [tuple(call) for call in calls.values()], finish


def test_streamed_equals_plain_and_ids_are_ours() -> None:
    with asking(CALLS) as (server, _), server.client() as client:
        plain = client.chat.completions.create(model="m", messages=HI, tools=TOOLS)
        stream = client.chat.completions.create(model="m", messages=HI, tools=TOOLS, stream=True)
        streamed = assembled(stream)
    [choice] = plain.choices
    calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
    assert calls == [
        ("functions.weather:0", "weather", '{"city": "Lisboa"}'),
        ("functions.time:1", "time", "{}"),
    ]
    reasoning = (choice.message.model_extra or {})["reasoning_content"]
    told = (reasoning, choice.message.content, calls, choice.finish_reason)
    assert streamed == told == ("hm", "Let me look.", calls, "tool_calls")
    assert plain.usage is not None
    assert plain.usage.to_dict()["cached_tokens"] == 7


def test_a_tool_loop_with_the_openai_client() -> None:
    """What the client sends back is the ids it was given; the endpoint sees them on both sides."""
    with asking(CALLS, text("It rains.")) as (server, fake), server.client() as client:
        message = (
            client.chat.completions.create(model="m", messages=HI, tools=TOOLS).choices[0].message
        )
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": call.id}
            for call in reversed(message.tool_calls or [])
        ]
        history: Any = [*HI, message.to_dict(), *results]
        answer = client.chat.completions.create(model="m", messages=history, tools=TOOLS)
    assert answer.choices[0].message.content == "It rains."
    sent = fake.bodies[1]["messages"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == [
        "functions.weather:0",
        "functions.time:1",
    ]
    assert sent[1]["reasoning_content"] == "hm"
    assert [m["tool_call_id"] for m in sent[2:]] == ["functions.time:1", "functions.weather:0"]


def test_a_history_with_foreign_ids_becomes_canonical() -> None:
    history: Any = [
        *HI,
        {"role": "assistant", "tool_calls": [{"id": "toolu_7", "type": "function", "function": {"name": "time", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "toolu_7", "content": "12:00"},
    ]  # fmt: skip
    with asking(CALLS) as (server, fake), server.client() as client:
        answer = client.chat.completions.create(model="m", messages=history, tools=TOOLS)
    sent = fake.bodies[0]["messages"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == "functions.time:0"
    ids = [call.id for call in answer.choices[0].message.tool_calls or []]
    assert ids == ["functions.weather:1", "functions.time:2"]


def test_a_tool_loop_with_the_anthropic_client() -> None:
    tools: Any = [{"name": "weather", "input_schema": {"type": "object"}}, {"name": "time", "input_schema": {"type": "object"}}]  # fmt: skip
    with asking(CALLS, CALLS, text("It rains.")) as (server, fake):
        client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": "m", "max_tokens": 99, "tools": tools}
        message = client.messages.create(messages=HI, **asked)
        with client.messages.stream(messages=HI, **asked) as stream:
            streamed = stream.get_final_message()
        uses = [block for block in message.content if block.type == "tool_use"]
        assert [(use.name, use.input) for use in uses] == [
            ("weather", {"city": "Lisboa"}),
            ("time", {}),
        ]
        blocks = [[b.to_dict() | {"id": ""} for b in m.content] for m in (streamed, message)]
        assert blocks[0] == blocks[1]
        results = [{"type": "tool_result", "tool_use_id": use.id, "content": "1"} for use in uses]
        history: Any = [
            *HI,
            {"role": "assistant", "content": [block.to_dict() for block in message.content]},
            {"role": "user", "content": results},
        ]
        answer = client.messages.create(messages=history, **asked)
        client.close()
    assert answer.content[0].to_dict()["text"] == "It rains."
    sent = fake.bodies[2]["messages"]
    ids = [call["id"] for call in sent[1]["tool_calls"]]
    assert ids == ["functions.weather:0", "functions.time:1"]
    assert [m["tool_call_id"] for m in sent[2:4]] == ids


def test_the_responses_dialect_reaches_it_too() -> None:
    with asking(CALLS) as (server, fake), server.client() as client:
        flat: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
        response = client.responses.create(model="m", input="hi", tools=flat)
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.call_id, call.arguments) for call in calls] == [
        ("functions.weather:0", '{"city": "Lisboa"}'),
        ("functions.time:1", "{}"),
    ]
    assert fake.bodies[0]["tools"][0]["function"]["name"] == "weather"


SCRIPTS: list[list[Any]] = [
    says("one two three", 9),
    [ReasoningDelta("h"), ReasoningDelta("m"), TextDelta("a"), Finish("stop", Usage(10, 9, 5, 4))],
    [TextDelta("a"), Finish("length", Usage(1, 1, 0))],
    [TextDelta("a"), Finish("stop", Usage(1, 1, 0), stop="END")],
    [
        TextDelta("hm"),
        ToolCallStart(0, "functions.weather:0", "weather"),
        ToolCallDelta(0, '{"city": '),
        ToolCallDelta(0, '"Lisboa"}'),
        ToolCallEnd(0),
        ToolCallStart(1, "functions.time:1", "time"),
        ToolCallDelta(1, "{}"),
        ToolCallEnd(1),
        Finish("tool_calls", Usage(20, 12, 0)),
    ],
    [
        TextDelta("\u6708", logprobs=(TokenLogprob(b"\xe6\x9c", -0.5, ((b"x", -2.0),)), TokenLogprob(b"\x88", 0.0))),
        Finish("stop", Usage(1, 2, 0)),
    ],
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_moonlet_behind_a_moonlet_answers_as_it_does_itself(script: list[Any]) -> None:
    """Every byte but ids and times, plain and streamed; the model is asked the same thing."""
    fake = FakeProvider([_renumbered(item) for item in script])
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    more: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": "s", "name": "n"},
            {"role": "user", "content": [image, {"type": "text", "text": "q"}]},
            {"role": "assistant", "reasoning_content": "r", "tool_calls": [{"id": "x", "type": "function", "function": {"name": "time", "arguments": "{ }"}}]},
            {"role": "tool", "tool_call_id": "x", "content": "1"},
            {"role": "assistant", "content": "go", "partial": True},
        ],
        "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False,
        "thinking": {"type": "enabled", "keep": "all"}, "thinking_budget": 64, "temperature": 0.5, "top_k": 3,
        "seed": -3, "stop": ["END"], "max_tokens": 77, "logprobs": True, "top_logprobs": 1,
        "logit_bias": {"5": 1.5}, "presence_penalty": 0.5,
    }  # fmt: skip
    with ExitStack() as stack:
        inner = stack.enter_context(serving(create_app(fake)))
        place = Endpoint("fake", f"{inner.url}/v1", "fake")
        found = asyncio.run(discover([place]))
        assert found.card == CARD
        outer = stack.enter_context(serving(create_app(Upstream(found.endpoints, found.card))))
        told = []
        for server in (inner, outer):
            bodies = [
                _posted(server, {**more, "model": "fake", "stream": s}) for s in (False, True)
            ]
            told.append([_without_ids(body) for body in bodies])
    assert told[0] == told[1]
    assert fake.requests[0] == fake.requests[2] == fake.requests[1] == fake.requests[3]


def _renumbered(item: Any) -> Any:
    """Calls of this conversation begin at 1."""
    if isinstance(item, ToolCallStart) and item.id.endswith(f":{item.index}"):
        return replace(item, id=f"functions.{item.name}:{item.index + 1}")
    return item


def _posted(server: Running, body: Any) -> bytes:
    url = f"{server.url}/v1/chat/completions"
    with urllib.request.urlopen(url, json.dumps(body).encode()) as response:
        return response.read()


def _without_ids(raw: bytes) -> list[Any]:
    """The JSON of an answer, its events apart, without what is new in every answer."""
    lines = raw.decode().replace("data: ", "").replace("[DONE]", "null").split("\n\n")
    values = [json.loads(line) for line in lines if line]
    for value in values:
        if value:
            del value["id"], value["created"]
    return values


def test_failures_have_their_status() -> None:
    cases: list[tuple[Says, type[openai.APIStatusError], str]] = [
        (refuses(400, {"error": {"message": "too hot", "param": "temperature"}}), openai.BadRequestError, "invalid_request_error"),
        (refuses(401, {}), openai.InternalServerError, "server_error"),
        (refuses(429, {}, retry_after="77"), openai.RateLimitError, "rate_limit_reached_error"),
        (Says([b"data: {\n\n"]), openai.InternalServerError, "server_error"),
    ]  # fmt: skip
    for failure, kind, word in cases:
        with asking(failure) as (server, _), server.client() as client:
            for stream in (False, True):
                with pytest.raises(kind) as caught:
                    client.chat.completions.create(model="m", messages=HI, stream=stream)
                assert caught.value.type == word
                assert "the upstream m at 127.0.0.1:" in caught.value.message
                if kind is openai.RateLimitError:
                    assert caught.value.response.headers["retry-after"] == "77"
                if kind is openai.InternalServerError:
                    assert caught.value.status_code == 502


def test_a_break_in_the_stream_is_told_in_every_dialect() -> None:
    with asking(Says([chunk({"content": "a"}), 0.05, Break()])) as (server, fake):
        with server.client() as client, pytest.raises(openai.APIError, match="broke"):
            list(client.chat.completions.create(model="m", messages=HI, stream=True))
        claude = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        with pytest.raises(anthropic.APIError, match="broke"):
            for _ in claude.messages.create(model="m", max_tokens=9, messages=HI, stream=True):
                pass
        claude.close()
    assert len(fake.bodies) == 2


def test_several_models_behind_one_address() -> None:
    loading: Future[Provider] = Future()
    with (
        running(FakeEndpoint(text("from afar"))) as place,
        gateway(place, main=loading) as server,
        server.client() as client,
    ):

        def ask(model: str) -> Any:
            answer = client.chat.completions.create(model=model, messages=HI)
            return answer.choices[0].message.content

        assert [model.id for model in client.models.list()] == ["m"]
        assert ask("m") == "from afar"  # while the other one is loading
        with pytest.raises(openai.InternalServerError, match="still being loaded"):
            ask("fake")
        loading.set_result(FakeProvider(says("from here")))
        assert [model.id for model in client.models.list()] == ["fake", "m"]
        assert client.models.retrieve("m").id == "m"
        assert (ask("fake"), ask("m")) == ("from here", "from afar")
        with pytest.raises(openai.NotFoundError, match="this server has 'fake', 'm'"):
            ask("other")
        for path, body in (
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/tokenizers/estimate-token-count", {"messages": HI}),
            ("/v1/messages/count_tokens", {"messages": HI}),
            ("/v1/responses/input_tokens", {"input": "a"}),
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [97]}),
        ):
            status, told = server.post(json.dumps({**body, "model": "m"}).encode(), path)
            assert (status, "conversations only" in told["error"]["message"]) == (404, True)
            status, _ = server.post(json.dumps({**body, "model": "fake"}).encode(), path)
            assert status == 200
        with urllib.request.urlopen(f"{server.url}/metrics") as response:
            metrics = response.read().decode()
        assert 'moonlet:prompt_tokens_total{model_name="m"} 20.0' in metrics
        assert (
            'moonlet:request_success_total{finished_reason="stop",model_name="fake"} 2.0' in metrics
        )


def test_a_client_that_leaves_ends_the_answer_at_the_other_end() -> None:
    fake = FakeProvider([TextDelta("a"), asyncio.Event()])
    with serving(create_app(fake)) as inner:
        place = Endpoint("m", f"{inner.url}/v1", "fake")
        with gateway(place) as server, server.client() as client:
            stream = client.chat.completions.create(model="m", messages=HI, stream=True)
            next(stream)
            stream.close()
            inner.wait(asyncio.wait_for(fake.closed_event.wait(), WAIT_S))
    assert (fake.closed, fake.finished) == (1, 0)


def test_the_server_closes_its_connections_when_it_ends() -> None:
    with running(FakeEndpoint(text())) as place:
        provider = Upstream([place], M)
        for apps in ((provider, []), (FakeProvider([]), [Upstream([place], M)])):
            with serving(create_app(*apps)) as server, server.client() as client:
                client.chat.completions.create(model="m", messages=HI)
            assert [*apps[1], apps[0]][0]._client.is_closed  # type: ignore[union-attr]


class Echo(FakeProvider):
    """Says what it was asked, a character at a time."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        for char in request.messages[0].text:
            yield TextDelta(char)
            await asyncio.sleep(0)
        yield Finish("stop", Usage(1, 1, 0))


def test_64_at_once_do_not_mix() -> None:
    async def ask(client: openai.AsyncOpenAI, word: str) -> str:
        messages: Any = [{"role": "user", "content": word}]
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in stream])

    async def work(url: str) -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as client:
            return await asyncio.gather(*(ask(client, word) for word in words))

    words = [f"word {number} " * 5 for number in range(64)]
    with (
        serving(create_app(Echo([]))) as inner,
        gateway(Endpoint("m", f"{inner.url}/v1", "fake")) as server,
    ):
        assert asyncio.run(work(server.url)) == words


KEYS = ("sk-one", "sk-two")


@contextmanager
def with_ledger(path: Path, answers: Sequence[Says], limits: dict[str, float]) -> Iterator[Running]:
    price = Price(1.0, 0.1, 10.0)
    with (
        closing(Ledger(path)) as ledger,
        running(FakeEndpoint(*answers), price=price) as place,
    ):
        budgets = Budgets({short_digest(key): limit for key, limit in limits.items()})
        provider = metered(Upstream([place], M), ledger, budgets)
        with serving(create_app(provider, api_keys=KEYS)) as server:
            yield server


def test_cost_and_budgets(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with with_ledger(path, [text("hi", 1000, 50, cached_tokens=400)], {"sk-one": 0.002}) as server:
        first, second = (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in KEYS
        )
        raw = first.chat.completions.with_raw_response.create(model="m", messages=HI)
        # 600 tokens at 1, 400 at 0.1 and 50 at 10 dollars for a million.
        assert raw.headers["x-moonlet-cost"] == "0.00114000"
        assert raw.parse().usage.to_dict()["cost"] == pytest.approx(0.00114)
        options: Any = {"include_usage": True}
        *_, last = first.chat.completions.create(model="m", messages=HI, stream=True, stream_options=options)  # fmt: skip
        assert last.usage.to_dict()["cost"] == pytest.approx(0.00114)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="budget of this API key") as caught:
                first.chat.completions.create(model="m", messages=HI, stream=stream)
            assert caught.value.type == "exceeded_current_quota_error"
        assert (
            second.chat.completions.create(model="m", messages=HI).choices[0].message.content
            == "hi"
        )
        with urllib.request.urlopen(f"{server.url}/metrics") as response:
            metrics = response.read().decode()
        first.close()
        second.close()
    assert 'moonlet:cost_usd_total{model_name="m"} 0.00342' in metrics
    assert 'moonlet:request_refused_total{status="429"} 2.0' in metrics
    with closing(Ledger(path)) as ledger:
        assert ledger.spent() == {
            short_digest("sk-one"): pytest.approx(0.00228),
            short_digest("sk-two"): pytest.approx(0.00114),
        }


class Moody(FakeProvider):
    """Answers in pieces, and does not always come to an end."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        mood = len(request.messages[0].text) % 5
        if mood == 0:
            raise PromptError("not like this", "messages")
        for _ in range(10):
            yield TextDelta("abc ")
            await asyncio.sleep(0.01)
            if mood == 1:
                raise EngineError("it broke")
        yield Finish("stop", Usage(10, 10, 0))


def test_whatever_becomes_of_requests_nothing_stays_open(tmp_path: Path) -> None:
    async def ask(client: httpx2.AsyncClient, number: int) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * (1 + number % 5)}]}
        with suppress(TimeoutError):  # some leave before the end
            async with asyncio.timeout((0.01, 0.05, 0.1, WAIT_S)[number % 4]):
                await client.post("/v1/chat/completions", json={**body, "stream": number % 3 > 0})

    async def work(url: str) -> None:
        keyed = {"authorization": "Bearer sk-one"}
        async with httpx2.AsyncClient(base_url=url, headers=keyed, timeout=WAIT_S) as client:
            await asyncio.gather(*(ask(client, number) for number in range(60)))

    path, budgets = tmp_path / "ledger.sqlite", Budgets({short_digest("sk-one"): 1.0})
    with closing(Ledger(path)) as ledger, serving(create_app(Moody([]))) as inner:
        place = Endpoint("m", f"{inner.url}/v1", "fake", price=Price(1.0, 0.1, 10.0))
        upstream = Upstream([place], M, pause_s=0.01)
        with serving(create_app(metered(upstream, ledger, budgets))) as server:
            asyncio.run(work(server.url))
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT status, count(*), sum(cost) FROM requests GROUP BY status")
        found = {status: (count, cost) for status, count, cost in rows}
    assert {"ok", "failed", "refused"} <= found.keys() <= {"ok", "failed", "refused", "left"}
    digest = short_digest("sk-one")
    assert budgets._set_aside[digest] == pytest.approx(0.0, abs=1e-12)
    assert budgets._spent[digest] == pytest.approx(sum(cost for _, cost in found.values()))


def test_uploads_are_sent_as_data(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
    store, fake = FileStore(tmp_path), FakeEndpoint(text())
    access = MediaAccess(resolve_file=store.resolve)
    with (
        running(fake) as place,
        gateway(place, access=access, files=store) as server,
        server.client() as client,
    ):
        uploaded = client.files.create(file=("a.png", png), purpose="image")  # type: ignore[arg-type]

        def ask(*urls: str) -> None:
            parts: Any = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}])

        data = "data:image/png;base64," + base64.b64encode(png).decode()
        ask("data:image/png;base64,AAAA", f"ms://{uploaded.id}")
        sent = [part["image_url"]["url"] for part in fake.bodies[0]["messages"][0]["content"]]
        assert sent == ["data:image/png;base64,AAAA", data]
        for url, sentence in (
            ("ms://file-gone", "no uploaded file"),
            ("http://127.0.0.1:9/a.png", "does not fetch URLs"),
            ("file:///etc/passwd", "is not supported"),
        ):
            with pytest.raises(openai.BadRequestError, match=sentence) as caught:
                ask("data:image/png;base64,AAAA", url)
            assert caught.value.param == "messages[0].content[1]"
    assert len(fake.bodies) == 1


def test_the_clients_mistake_is_told_where_it_stands_in_its_own_dialect() -> None:
    error = {"message": "messages[0].content is bad", "param": "messages[0].content"}
    with asking(refuses(400, {"error": error})) as (server, _), server.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input=[{"role": "user", "content": "a"}])
        assert caught.value.param == "input[0].content"


def test_an_error_event_in_a_stream_that_has_said_nothing_is_a_plain_refusal() -> None:
    late = Says([event({"error": {"message": "bad", "type": "invalid_request_error"}})])
    with (
        asking(late) as (server, fake),
        server.client() as client,
        pytest.raises(openai.BadRequestError, match="bad"),
    ):
        client.chat.completions.create(model="m", messages=HI, stream=True)
    assert len(fake.bodies) == 1
