"""The server through the official client, over a real socket, in front of a scripted provider."""

import asyncio
import json
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

from moonlet.chat.fake import CARD, FakeProvider, broken, says
from moonlet.chat.provider import (
    Finish,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
)
from moonlet.errors import MediaError, PromptError
from moonlet.server import create_app
from moonlet.server.request import parse_request
from tests.server.running import WAIT_S, Running, serving
from tests.server.stream import ANSWER

HELLO: Any = [{"role": "user", "content": "347+285?"}]
CALLS = [
    TextDelta("Let me look."),
    ToolCallStart(0, "functions.weather:0", "weather"),
    ToolCallDelta(0, '{"city": '),
    ToolCallDelta(0, '"Lisboa"}'),
    ToolCallStart(1, "functions.time:1", "time"),
    ToolCallDelta(1, "{}"),
    Finish("tool_calls", Usage(20, 12, 0)),
]


@pytest.fixture(scope="module")
def provider() -> FakeProvider:
    return FakeProvider(ANSWER)


def test_health_and_models(server: Running, client: OpenAI) -> None:
    assert client.get(f"{server.url}/health", cast_to=object) == {"status": "ok"}
    [model] = client.models.list().data
    assert model.to_dict() == {
        "id": "fake",
        "object": "model",
        "created": CARD.created,
        "owned_by": "moonlet",
        "context_length": 4096,
        "supports_image_in": True,
        "supports_video_in": False,
        "supports_reasoning": True,
    }
    assert client.models.retrieve("fake") == model


def test_plain_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HELLO)
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("It is 632.", "stop")
    assert choice.message.role == "assistant"
    assert choice.message.tool_calls is None
    assert (choice.message.model_extra or {})["reasoning_content"] == "7+5=12, carry 1."
    assert (choice.message.model_extra or {})["reasoning"] == "7+5=12, carry 1."
    assert answer.usage is not None
    assert answer.usage.to_dict() == {
        "prompt_tokens": 10,
        "completion_tokens": 9,
        "total_tokens": 19,
        "cached_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 4, "cached_disk_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }


def test_streamed_answer_keeps_the_promises_of_the_format(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="fake", messages=HELLO, stream=True))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    order = [
        "reasoning" if "reasoning_content" in (delta.model_extra or {}) else "content"
        for delta in deltas[1:-1]
    ]
    assert order == ["reasoning", "reasoning", "content", "content"]
    assert "".join(delta.content or "" for delta in deltas) == "It is 632."
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_chunk_only_when_asked(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (10, 9)
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])


def test_stream_ends_with_done(server: Running) -> None:
    body = {"model": "fake", "messages": HELLO, "stream": True}
    with urllib.request.urlopen(
        f"{server.url}/v1/chat/completions", json.dumps(body).encode()
    ) as raw:
        kind, lines = raw.headers["content-type"], raw.read().decode().split("\n\n")
    assert kind.startswith("text/event-stream")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])


def test_tool_calls_plain_and_streamed_agree() -> None:
    with serving(create_app(FakeProvider(CALLS))) as server, server.client() as client:
        plain = client.chat.completions.create(model="fake", messages=HELLO).choices[0]
        chunks = list(client.chat.completions.create(model="fake", messages=HELLO, stream=True))
    assert plain.finish_reason == chunks[-1].choices[0].finish_reason == "tool_calls"
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for piece in chunk.choices[0].delta.tool_calls or []:
            assert piece.function is not None
            if piece.id:
                assert piece.type == "function"
                calls[piece.index] = [piece.id, piece.function.name or "", ""]
            calls[piece.index][2] += piece.function.arguments or ""
    assert plain.message.tool_calls is not None
    assert [
        [call.id, call.function.name, call.function.arguments]
        for call in plain.message.tool_calls
        if call.type == "function"
    ] == [calls[0], calls[1]]
    assert calls[0] == ["functions.weather:0", "weather", '{"city": "Lisboa"}']


def test_the_request_reaches_the_provider(client: OpenAI, provider: FakeProvider) -> None:
    client.chat.completions.create(
        model="fake",
        messages=HELLO,
        temperature=0.25,
        top_p=0.5,
        seed=-1,
        stop=["a", "b"],
        max_tokens=7,
        extra_body={"top_k": -1, "thinking": {"type": "disabled", "keep": "all"}, "x": 1},
    )
    asked = provider.requests[-1]
    assert asked.messages[0].text == "347+285?"
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (
        0.25,
        0.5,
        0,
    )
    assert asked.sampling.seed == 2**64 - 1
    assert (asked.max_tokens, asked.stop) == (7, ("a", "b"))
    assert (asked.thinking, asked.preserve_thinking) == (False, True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "param"),
    [
        (PromptError("message 1 has no role", "messages[0].role"), "messages[0].role"),
        (MediaError("not an image", "messages[0].content"), "messages[0].content"),
    ],
)
def test_a_prompt_that_cannot_be_rendered_is_a_400(
    stream: bool, error: Exception, param: str
) -> None:
    with (
        serving(create_app(FakeProvider([error]))) as server,
        server.client() as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.chat.completions.create(model="fake", messages=HELLO, stream=stream)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert str(error) in caught.value.message


def test_an_unknown_model_is_a_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("moonshotai/Kimi-K2.5")


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_is_a_500(stream: bool) -> None:
    with (
        serving(create_app(FakeProvider([broken("the cache is full")]))) as server,
        server.client() as client,
        pytest.raises(openai.InternalServerError, match="the cache is full"),
    ):
        client.chat.completions.create(model="fake", messages=HELLO, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_internals_stay_inside(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    with (
        serving(create_app(FakeProvider([RuntimeError("secret.py line 7")]))) as server,
        server.client() as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(model="fake", messages=HELLO, stream=stream)
    assert "secret" not in str(caught.value)
    assert caught.value.type == "server_error"
    assert "secret.py line 7" in caplog.text


@pytest.mark.parametrize("script", [[TextDelta("a"), broken()], [TextDelta("a")]])
def test_an_error_after_the_start_travels_in_the_stream(script: list[Any]) -> None:
    chunks: list[Any] = []
    with serving(create_app(FakeProvider(script))) as server, server.client() as client:
        stream = client.chat.completions.create(model="fake", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="broke") as caught:
            chunks.extend(stream)
    assert chunks[1].choices[0].delta.content == "a"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_generation(stream: bool) -> None:
    provider = FakeProvider([TextDelta("a"), asyncio.Event(), TextDelta("b")])
    with serving(create_app(provider)) as server:
        body = json.dumps({"model": "fake", "messages": HELLO, "stream": stream}).encode()
        _request_and_leave(server.port, body, wait_for=b'"content":"a"' if stream else None)
        server.wait(asyncio.wait_for(provider.closed_event.wait(), WAIT_S))
    assert (provider.closed, provider.finished) == (1, 0)


def _request_and_leave(port: int, body: bytes, wait_for: bytes | None) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sock.sendall(head.encode() + body)
        received = b""
        while wait_for and wait_for not in received:
            received += sock.recv(4096)


def test_two_clients_at_once() -> None:
    """The second request is answered while the first still waits for its event."""
    gate = asyncio.Event()
    provider = FakeProvider([TextDelta("a"), gate, *says("b")])
    with serving(create_app(provider)) as server, server.client() as one, server.client() as two:
        first = one.chat.completions.create(model="fake", messages=HELLO, stream=True)
        next(first)
        second = two.chat.completions.create(model="fake", messages=HELLO, stream=True)
        heads = [next(second).id, next(second).choices[0].delta.content]
        assert heads[1] == "a"
        server.loop.call_soon_threadsafe(gate.set)
        texts = [
            "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            for stream in (first, second)
        ]
    assert texts == ["ab", "b"]


def test_silence_is_filled_with_comments() -> None:
    """Also before the first event, and the client still sees a whole answer."""
    gate = asyncio.Event()
    provider = FakeProvider([gate, *says("late")])
    with serving(create_app(provider, keep_alive_s=0.01)) as server, server.client() as client:
        raw = client.chat.completions.with_streaming_response.create(
            model="fake", messages=HELLO, stream=True
        )
        with raw as response:
            lines = response.iter_lines()
            assert next(lines) == ": keep-alive"
            server.loop.call_soon_threadsafe(gate.set)
            rest = [line for line in lines if line.startswith("data")]
    assert rest[-1] == "data: [DONE]"
    assert '"late"' in rest[1]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/completions", {"prompt": "hi"}),
    ],
)
def test_the_head_of_a_stream_does_not_wait_for_the_prompt_to_be_computed(
    path: str, asked: dict[str, Any]
) -> None:
    """Clients that wait for a head only so long outlive a prompt that takes minutes."""
    gate = asyncio.Event()
    provider = FakeProvider([Started(7), gate, *says("late")])
    body = {"model": "fake", "stream": True, **asked}
    with serving(create_app(provider)) as server:
        request = urllib.request.Request(f"{server.url}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            watch = server.app.state.moonlet.watch
            assert (watch.waiting, watch.running) == (1, 0)  # for its first token
            server.loop.call_soon_threadsafe(gate.set)
            assert b"late" in response.read()


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token(stream: bool) -> None:
    """Of a stream that began it is told inside; a plain answer still has its status."""
    with (
        serving(create_app(FakeProvider([Started(7), broken("the cache is full")]))) as server,
        server.client() as client,
        pytest.raises(openai.APIError, match="the cache is full") as caught,
    ):
        list(client.chat.completions.create(model="fake", messages=HELLO, stream=stream))
    assert isinstance(caught.value, openai.InternalServerError) is not stream


def test_a_late_refusal_travels_in_the_stream_once_comments_have_gone_out() -> None:
    gate = asyncio.Event()
    provider = FakeProvider([gate, PromptError("no such thing", "messages")])
    with serving(create_app(provider, keep_alive_s=0.01)) as server, server.client() as client:
        stream = client.chat.completions.create(model="fake", messages=HELLO, stream=True)
        server.loop.call_soon_threadsafe(gate.set)
        with pytest.raises(openai.APIError, match="no such thing"):
            list(stream)


def test_a_body_over_the_limit_is_refused() -> None:
    with serving(create_app(FakeProvider([]), max_body_bytes=1000)) as server:
        for size in (1_001, 2_000, 50_000_000):
            with server.client() as client, pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(
                    model="fake", messages=[{"role": "user", "content": "x" * size}]
                )
            assert caught.value.status_code == 413
            assert "1000 bytes" in caught.value.message


@pytest.mark.parametrize("pieces", [2, 100])
def test_a_body_without_a_stated_length_is_measured_as_it_comes(pieces: int) -> None:
    with serving(create_app(FakeProvider([]), max_body_bytes=1000)) as server:
        status, answer = server.post(iter([b" " * 900] * pieces))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


def test_routes_that_do_not_exist(server: Running) -> None:
    status, answer = server.post(b"{}", "/v1/embeddings")
    assert (status, answer["error"]["code"]) == (404, "unknown_url")
    status, answer = server.post(b"{}", "/v1/models")
    assert (status, answer["error"]["code"]) == (405, "method_not_allowed")


def test_a_large_body_is_parsed_beside_the_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    parsing, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        parsing.set()
        assert go_on.wait(WAIT_S)
        return parse_request(*args)

    monkeypatch.setattr("moonlet.server.chat.parse_request", slow)
    large = {"model": "fake", "messages": [{"role": "user", "content": "x" * 2_000_000}]}
    with serving(create_app(FakeProvider(says("ok")))) as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(server.post, json.dumps(large).encode())
        try:
            assert parsing.wait(WAIT_S)
            with urllib.request.urlopen(f"{server.url}/health", timeout=WAIT_S) as health:
                assert json.load(health) == {"status": "ok"}
            assert not answer.done()
        finally:
            go_on.set()
        assert answer.result(WAIT_S)[0] == 200


def test_a_client_that_leaves_while_it_sends_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    messages: list[Any] = [
        {"type": "http.request", "body": b'{"model": ', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    asyncio.run(create_app(FakeProvider([]))(scope | {"query_string": b""}, receive, send))
    assert sent[0]["status"] == 400  # nobody reads it
    assert caplog.text == ""
