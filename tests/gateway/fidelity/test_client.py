"""Raw HTTP: URLs, keys, sizes, waiting, and connections that break."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest

from moonlet.gateway.fidelity import client as client_module
from moonlet.gateway.fidelity.client import (
    MAX_DELAY_S,
    Client,
    Reply,
    delay_s,
    open_client,
    open_http,
    parse_json,
)
from moonlet.gateway.fidelity.errors import Failed, Unreachable, VerifyError


def asked(handler: Callable[[httpx2.Request], httpx2.Response], **more: Any) -> Reply:
    async def run() -> Reply:
        async with open_http(httpx2.MockTransport(handler)) as http:
            return await Client(http, "http://x/v1", **more).send("POST", "/p", {"a": 1})

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "base", "root"),
    [
        ("http://h:1", "http://h:1/v1", "http://h:1"),
        ("http://h:1/", "http://h:1/v1", "http://h:1"),
        ("https://h/v1/", "https://h/v1", "https://h"),
        ("https://h/api/v2", "https://h/api/v2", "https://h/api/v2"),
    ],
)
def test_urls(url: str, base: str, root: str) -> None:
    async def run() -> None:
        async with open_http() as http:
            client = open_client(http, url, None)
            assert (client.base, client.root) == (base, root)

    asyncio.run(run())


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://", "file:///etc", "\x00"])
def test_what_is_no_url(url: str) -> None:
    async def run() -> None:
        async with open_http() as http:
            open_client(http, url, None)

    with pytest.raises(VerifyError):
        asyncio.run(run())


@pytest.mark.parametrize("key", ["", "a b", "é", "a\nb"])
def test_keys_that_cannot_be_sent(key: str) -> None:
    async def run() -> None:
        async with open_http() as http:
            open_client(http, "http://h", key)

    with pytest.raises(VerifyError, match="API key"):
        asyncio.run(run())


def test_what_is_sent() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["authorization"] == "Bearer k"
        assert request.headers["content-type"] == "application/json"
        assert (str(request.url), request.content) == ("http://x/v1/p", b'{"a": 1}')
        return httpx2.Response(200, json={"ok": True}, headers={"X-Y": "z"})

    reply = asked(handler, key="k")
    assert (reply.status, reply.json, reply.headers["x-y"]) == (200, {"ok": True}, "z")


def test_no_redirect_is_followed() -> None:
    """The key belongs to one host."""
    reply = asked(lambda _: httpx2.Response(307, headers={"location": "http://evil/"}), key="k")
    assert reply.status == 307


def test_too_many_requests_are_asked_again() -> None:
    replies = [httpx2.Response(429, headers={"retry-after": "0"})] * 2
    replies.append(httpx2.Response(200, json={}))
    assert asked(lambda _: replies.pop(0)).status == 200
    always = [0]

    def never(_: httpx2.Request) -> httpx2.Response:
        always[0] += 1
        return httpx2.Response(429, headers={"retry-after": "0"})

    assert asked(never).status == 429
    assert always[0] == client_module.MAX_ATTEMPTS


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_BYTES", 100)
    assert asked(lambda _: httpx2.Response(200, content=b"x" * 100)).status == 200
    with pytest.raises(Failed, match="more than 100 bytes"):
        asked(lambda _: httpx2.Response(200, content=b"x" * 101))


def test_too_many_lines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_LINES", 6)
    assert len(Reply(200, {}, b"data: 1\n\n" * 3).events) == 3
    with pytest.raises(Failed, match="more than 6 lines"):
        _ = Reply(200, {}, b"data: 1\n\n" * 4).events


@pytest.mark.parametrize(
    "error", [httpx2.ConnectError("no"), httpx2.ConnectTimeout(""), httpx2.ReadError("")]
)
def test_a_broken_connection_says_so(error: Exception) -> None:
    def handler(_: httpx2.Request) -> httpx2.Response:
        raise error

    with pytest.raises(Unreachable, match="connection"):
        asked(handler)


def test_nobody_there() -> None:
    async def run() -> None:
        async with open_http() as http:
            await Client(http, "http://127.0.0.1:1/v1").send("GET", "/models")

    with pytest.raises(Unreachable):
        asyncio.run(run())


@pytest.mark.parametrize("proxy", ["gopher://x", "http://[::", "socks5://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(VerifyError, match="proxy"):
        open_http()


@pytest.mark.parametrize(
    "raw", [b'{"error":{"message":"why"}}', b'{"error":"why"}', b"why", b'{"detail":"why"}']
)
def test_an_error_can_be_told(raw: bytes) -> None:
    told = Reply(418, {}, raw).told
    assert told.startswith("418 (")
    assert "why" in told


@pytest.mark.parametrize("raw", [b"", b"{", b"NaN", b"[Infinity]", b"\xff", b"[" * 100_000])
def test_what_is_no_json(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  that it is one is all that matters
        parse_json(raw)
    with pytest.raises(Failed, match="no JSON"):
        _ = Reply(200, {}, raw).json


def test_retry_after() -> None:
    assert delay_s({"retry-after": "7"}, 1) == 7
    assert delay_s({"retry-after": "999999999999"}, 1) == MAX_DELAY_S
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < delay_s({"retry-after": soon}, 1) <= 60
    past = format_datetime(datetime.now(UTC) - timedelta(days=9), usegmt=True)
    assert delay_s({"retry-after": past}, 1) == 0
    for nonsense in ("soon", "-3", "1e9", "²"):
        assert 0.5 <= delay_s({"retry-after": nonsense}, 1) <= 1
    assert 4 <= delay_s({}, 4) <= 8
