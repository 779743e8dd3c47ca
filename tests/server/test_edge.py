"""What stands around the routes: ids, keys, CORS, health, metrics, and the limits under load."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from typing import Any

import openai
import pytest
from fastapi import FastAPI

from moonlet.chat.fake import FakeProvider, broken, says
from moonlet.chat.provider import Finish, Provider, TextDelta, Usage
from moonlet.errors import ConfigError, PromptError
from moonlet.server import create_app
from moonlet.server.body import BodyBudget
from moonlet.server.errors import ApiError
from moonlet.server.profiles import OPENAI
from tests.server.running import WAIT_S, Running, serving

HELLO: Any = [{"role": "user", "content": "hi"}]
BODY = {"model": "fake", "messages": HELLO}


def fetch(
    server: Running, path: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """(status, headers in small letters, text) of any request."""
    data = None if body is None else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{server.url}{path}", data, names, method=method)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            status, head, text = response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, head, text = error.code, error.headers, error.read()
    return status, {name.lower(): value for name, value in head.items()}, text.decode()


def test_every_answer_has_an_id() -> None:
    with serving(create_app(FakeProvider(says("ok")))) as server:
        for path, body in (
            ("/health", None),
            ("/v1/chat/completions", BODY),
            ("/v1/chat/completions", {**BODY, "stream": True}),
            ("/v1/chat/completions", {}),
            ("/nowhere", None),
        ):
            status, head, text = fetch(server, path, body)
            assert head["x-request-id"].startswith("req_")
            if status >= 400:
                assert json.loads(text)["request_id"] == head["x-request-id"]
        assert fetch(server, "/health", x_request_id="mine-1")[1]["x-request-id"] == "mine-1"
        assert fetch(server, "/health", x_request_id="a b")[1]["x-request-id"].startswith("req_")
        assert fetch(server, "/health", x_request_id="a" * 65)[1]["x-request-id"].startswith("req_")
    with serving(create_app(FakeProvider([]), profile=OPENAI)) as server:
        assert set(json.loads(fetch(server, "/nowhere")[2])) == {"error"}


def test_an_app_that_breaks_still_answers(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(FakeProvider([]))

    @app.get("/broken")
    async def route() -> None:
        raise RuntimeError("secret")

    with serving(app) as server:
        status, head, text = fetch(server, "/broken")
    assert (status, json.loads(text)["error"]["type"]) == (500, "server_error")
    assert "secret" not in text
    assert "secret" in caplog.text
    assert head["x-request-id"].startswith("req_")


def test_keys() -> None:
    app = create_app(FakeProvider(says("ok")), api_keys=["sk-one", "sk-two"])
    with serving(app) as server, server.client() as client:
        for key in ("sk-one", "sk-two"):
            right = client.with_options(api_key=key)
            assert right.chat.completions.create(**BODY).choices[0].message.content == "ok"
            assert fetch(server, "/v1/models", x_api_key=key)[0] == 200
            assert fetch(server, "/v1/models", Authorization=f"bearer  {key}")[0] == 200
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert (caught.value.type, caught.value.code) == (
            "incorrect_api_key_error",
            "invalid_api_key",
        )
        for wrong in ("sk-on", "sk-one2", "sk-one,sk-two", "\xe9"):
            status, head, text = fetch(server, "/v1/models", Authorization=f"Bearer {wrong}")
            assert (status, head["www-authenticate"]) == (401, "Bearer")
            assert wrong not in text
        for nothing in ({}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer "}):
            status, _, text = fetch(server, "/v1/chat/completions", BODY, **nothing)
            assert status == 401
            assert json.loads(text)["error"]["type"] == "invalid_authentication_error"
        for public in ("/health", "/health/ready", "/metrics", "/openapi.json"):
            assert fetch(server, public)[0] == 200
        assert fetch(server, "/nowhere")[0] == 401


@pytest.mark.parametrize("key", ["", "a b", "\u00e9", "a\n"])
def test_a_key_that_nobody_can_send(key: str) -> None:
    with pytest.raises(ConfigError, match="visible ASCII"):
        create_app(FakeProvider([]), api_keys=[key])


def test_cors_is_off_unless_asked_for() -> None:
    page = {"Origin": "https://page.example"}
    preflight = {**page, "Access-Control-Request-Method": "POST"}
    with serving(create_app(FakeProvider([]))) as server:
        assert "access-control-allow-origin" not in fetch(server, "/health", **page)[1]
        assert fetch(server, "/v1/models", method="OPTIONS", **preflight)[0] == 405
    app = create_app(FakeProvider([]), cors=["https://page.example"], api_keys=["k"])
    with serving(app) as server:
        status, head, _ = fetch(server, "/v1/models", method="OPTIONS", **preflight)
        assert (status, head["access-control-allow-origin"]) == (200, "https://page.example")
        head = fetch(server, "/v1/models", **page)[1]  # without a key: the page may read why
        assert head["access-control-allow-origin"] == "https://page.example"
        assert "x-request-id" in head["access-control-expose-headers"]
        other = fetch(server, "/health", Origin="https://other.example")[1]
        assert "access-control-allow-origin" not in other


def test_from_loading_to_ready() -> None:
    loading: Future[Provider] = Future()
    with serving(create_app(loading)) as server, server.client() as client:
        assert fetch(server, "/health")[0] == 200
        status, head, text = fetch(server, "/health/ready")
        assert (status, json.loads(text)["status"]) == (503, "unavailable")
        assert "loaded" in json.loads(text)["error"]["message"]
        assert fetch(server, "/metrics")[0] == 200
        for path, body in (("/v1/models", None), ("/v1/chat/completions", BODY)):
            status, head, text = fetch(server, path, body)
            assert (status, head["retry-after"]) == (503, "5")
            assert json.loads(text)["error"]["type"] == "server_unavailable"
        loading.set_result(FakeProvider(says("ok")))
        assert json.loads(fetch(server, "/health/ready")[2]) == {"status": "ok", "model": "fake"}
        assert client.chat.completions.create(**BODY).choices[0].message.content == "ok"


def test_a_model_that_could_not_be_loaded() -> None:
    loading: Future[Provider] = Future()
    loading.set_exception(RuntimeError("secret"))
    with serving(create_app(loading)) as server:
        for path in ("/health/ready", "/v1/models"):
            status, head, text = fetch(server, path)
            assert (status, "retry-after" in head) == (503, False)
            assert "could not be loaded" in text
            assert "secret" not in text


def test_too_many_that_wait_are_told_to_come_back() -> None:
    gate = asyncio.Event()
    provider = FakeProvider([gate, *says("ok")])
    with serving(create_app(provider, max_waiting=2)) as server:
        answers: list[Any] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(fetch(server, "/v1/chat/completions", BODY)[0])
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        server.wait(until(lambda: len(provider.requests) == 2))
        assert "num_requests_waiting 2.0" in fetch(server, "/metrics")[2]
        for stream in (False, True):
            status, head, text = fetch(server, "/v1/chat/completions", {**BODY, "stream": stream})
            assert (status, head["retry-after"]) == (429, "5")
            assert json.loads(text)["error"]["type"] == "engine_overloaded_error"
        server.loop.call_soon_threadsafe(gate.set)
        for thread in threads:
            thread.join(WAIT_S)
        assert answers == [200, 200]
        assert fetch(server, "/v1/chat/completions", BODY)[0] == 200
        assert "num_requests_waiting 0.0" in fetch(server, "/metrics")[2]
        assert "num_requests_running 0.0" in fetch(server, "/metrics")[2]


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def metric(server: Running, line: str) -> float:
    """The value of one line of /metrics, 0 when it is not there."""
    for found in fetch(server, "/metrics")[2].splitlines():
        if found.startswith(f"moonlet:{line} "):
            return float(found.rsplit(" ", 1)[1])
    return 0.0


def test_metrics() -> None:
    usage = Usage(10, 3, 0, cached_tokens=6, cached_disk_tokens=2)
    provider = FakeProvider([TextDelta("a"), TextDelta("b"), Finish("stop", usage)])
    provider.stats = lambda: {
        "kv_cache_usage_perc": 0.25,
        "odd name": 1,
        "steps": 7,
        "requests_running": 3,
    }  # type: ignore[attr-defined]
    with serving(create_app(provider)) as server:
        for stream in (False, True):
            assert fetch(server, "/v1/chat/completions", {**BODY, "stream": stream})[0] == 200
        fetch(server, "/v1/chat/completions", {})
        of = '{model_name="fake"}'
        for line, value in {
            f"prompt_tokens_total{of}": 20,
            f"generation_tokens_total{of}": 6,
            f"prefix_cache_queries_total{of}": 20,
            'prefix_cache_hits_total{model_name="fake",source="memory"}': 8,
            'prefix_cache_hits_total{model_name="fake",source="disk"}': 4,
            'request_success_total{finished_reason="stop",model_name="fake"}': 2,
            f"time_to_first_token_seconds_count{of}": 2,
            f"inter_token_latency_seconds_count{of}": 2,
            f"e2e_request_latency_seconds_count{of}": 2,
            f"request_prompt_tokens_sum{of}": 20,
            f"request_generation_tokens_sum{of}": 6,
            'request_refused_total{status="400"}': 1,
            "num_requests_running": 0,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": 0.25,
            "odd_name": 1,
            "steps_total": 7,
            "engine_requests_running": 3,
        }.items():
            assert metric(server, line) == value, line
        assert fetch(server, "/metrics")[1]["content-type"].startswith("text/plain; version=0.0.4")


def ended(reason: str) -> str:
    return f'request_success_total{{finished_reason="{reason}",model_name="fake"}}'


def test_metrics_of_what_goes_wrong() -> None:
    with serving(create_app(FakeProvider([TextDelta("a"), broken()]))) as server:
        assert fetch(server, "/v1/chat/completions", BODY)[0] == 500
        assert metric(server, ended("error")) == 1
    with serving(create_app(FakeProvider([PromptError("no", "messages")]))) as server:
        assert fetch(server, "/v1/chat/completions", BODY)[0] == 400
        assert metric(server, ended("error")) == 0
        assert metric(server, 'request_refused_total{status="400"}') == 1
    provider = FakeProvider([TextDelta("a"), asyncio.Event()])
    with serving(create_app(provider)) as server, server.client() as client:
        stream = client.chat.completions.create(**BODY, stream=True)
        next(iter(stream))
        assert metric(server, "num_requests_running") == 1
        stream.close()
        server.wait(asyncio.wait_for(provider.closed_event.wait(), WAIT_S))
        server.wait(until(lambda: "running 0.0" in fetch_metrics(server.app)))
        assert metric(server, ended("abort")) == 1


def fetch_metrics(app: FastAPI) -> str:
    return app.state.moonlet.metrics.text().decode()


def test_large_bodies_share_what_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moonlet.server.body.SMALL_BODY_BYTES", 5)
    budget = BodyBudget(100, 2)
    one, two, three = {}, {}, {}
    budget.take(100, one)
    budget.take(60, two)
    with pytest.raises(ApiError, match="too many large") as caught:
        budget.take(41, three)
    assert caught.value.status == 429
    budget.take(40, two)
    budget.take(5, three)  # a small one finds room whatever the others take
    for scope in (one, two, three):
        budget.give_back(scope)
    assert budget.held == 0


def test_a_body_counts_until_its_request_is_answered() -> None:
    gate = asyncio.Event()
    provider = FakeProvider([gate, *says("ok")])
    with serving(create_app(provider)) as server:
        bodies = server.app.state.moonlet.bodies
        thread = threading.Thread(target=fetch, args=(server, "/v1/chat/completions", BODY))
        thread.start()
        server.wait(until(lambda: provider.requests))
        assert bodies.held == len(json.dumps(BODY))
        server.loop.call_soon_threadsafe(gate.set)
        thread.join(WAIT_S)
        assert fetch(server, "/v1/chat/completions", {"model": 3})[0] == 400
        server.wait(until(lambda: bodies.held == 0))


def test_a_body_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moonlet.server.body.GRACE_S", 0.02)
    sent: list[Any] = []
    given = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        return given.pop() if given else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    asyncio.run(create_app(FakeProvider([]))(scope | {"query_string": b""}, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("stated", [b"-1", b"1e3", b"9" * 30, b"\xb2", b""])
def test_a_content_length_that_is_none(stated: bytes) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b""}
    headers = [(b"content-length", stated)]
    asyncio.run(create_app(FakeProvider([]))(scope | {"headers": headers}, receive, send))
    assert sent[0]["status"] == 400
