"""A client that means harm: every route answers with one clear refusal or rightly, and goes on serving others."""

import asyncio
import json
import random
import socket
import threading
import time
import urllib.request
from typing import Any

import pytest

from moonlet.chat.fake import FakeProvider, says
from moonlet.chat.provider import (
    Finish,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from moonlet.errors import PromptError
from moonlet.server import create_app
from moonlet.server.dialect import Places
from tests.server.running import WAIT_S, Running, serving

HI: Any = [{"role": "user", "content": "hi"}]
TURN: Any = [{"type": "message", "role": "user", "content": "hi"}]
# A body that each route takes, and where in it a client's own JSON may stand.
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake", "messages": HI},
    "/v1/responses": {"model": "fake", "input": TURN},
    "/v1/responses/input_tokens": {"model": "fake", "input": TURN},
    "/v1/messages": {"model": "fake", "max_tokens": 9, "messages": HI},
    "/anthropic/v1/messages": {"model": "fake", "max_tokens": 9, "messages": HI},
    "/v1/messages/count_tokens": {"model": "fake", "messages": HI},
    "/v1/completions": {"model": "fake", "prompt": "hi"},
    "/v1/tokenizers/estimate-token-count": {"model": "fake", "messages": HI},
    "/tokenize": {"model": "fake", "prompt": "hi"},
    "/detokenize": {"model": "fake", "tokens": [104, 105]},
}


@pytest.fixture(scope="module")
def provider() -> FakeProvider:
    return FakeProvider(says("ok"))


def strict_json(raw: bytes) -> Any:
    """JSON as the standard has it: without the infinities that Python would write."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(raw, parse_constant=refuse)


def message_of(told: Any) -> str:
    return told["error"]["message"]


def post(server: Running, path: str, body: Any) -> tuple[int, Any]:
    return server.post(body if isinstance(body, bytes) else json.dumps(body).encode(), path)


def is_fine(server: Running) -> None:
    with urllib.request.urlopen(f"{server.url}/health", timeout=WAIT_S) as response:
        assert json.load(response) == {"status": "ok"}


def refused(server: Running, path: str, body: Any) -> str:
    """Sends what must not be taken; the one sentence of the refusal."""
    status, told = post(server, path, body)
    assert status == 400, (status, str(told)[:300])
    message = message_of(told)
    assert 0 < len(message) < 600
    assert "\n" not in message
    return message


def with_member(path: str, raw: str) -> bytes:
    """A body that is right but for a member `x`, whose JSON is `raw`."""
    return (json.dumps(ROUTES[path])[:-1] + f', "x": {raw}}}').encode()


# Bodies that are hardly JSON


@pytest.mark.parametrize("path", ROUTES)
def test_texts_that_no_parser_should_survive(server: Running, path: str) -> None:
    for nested in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "[" * 200 + "]" * 200,
    ):
        refused(server, path, nested.encode())
        refused(server, path, with_member(path, nested))
    for number in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "1" * 5000,
        "-" + "9" * 5000,
        "1e",
        "01",
    ):
        assert "not valid JSON" in refused(server, path, with_member(path, number))
    for text in (
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"3",
        b"{",
        b"\xff\xfe{}",
        b'{"a": "\x00"}',
        b"{'a': 1}",
    ):
        refused(server, path, text)
    whole = json.dumps(ROUTES[path]).encode()
    for end in range(len(whole)):
        refused(server, path, whole[:end])


@pytest.mark.parametrize("path", ROUTES)
def test_half_a_character_is_no_character(server: Running, path: str) -> None:
    text = json.dumps(ROUTES[path]).replace('"hi"', '"\\ud800 \\udc00\\ud83d"')
    status, told = post(server, path, text.encode())
    assert status == 200, told


def members(path: str) -> set[str]:
    """What /openapi.json says that a body may have."""
    app = create_app(FakeProvider([]))
    content = app.openapi()["paths"][path]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    shapes = schema.get("anyOf", [schema])
    return {name for shape in shapes for name in shape["properties"]}


WRONG: list[Any] = [
    -1, 0, 1.5, True, False, None, "", "x", "x" * 100_000, [], [[]], [None], [0.5], {}, {"": {}},
    {"type": []}, {"type": "x" * 1000}, 1e308, -1e308, 5e-324, 10**399, -(10**399), 2**31, 2**63, 2**64,
]  # fmt: skip


@pytest.mark.parametrize("path", ROUTES)
def test_every_member_with_every_wrong_value(server: Running, path: str) -> None:
    """Some are right for some members: then the answer is one."""
    for name in sorted(members(path) | ROUTES[path].keys()):
        for value in WRONG:
            if (name, value) == ("stream", True):
                continue  # right
            status, told = post(server, path, {**ROUTES[path], name: value})
            assert status in (200, 400, 404), (name, value, told)
            if status != 200:
                assert 0 < len(message_of(told)) < 600, (name, value)


# Too much of everything


@pytest.mark.parametrize("many", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_hundred_thousand_messages(server: Running, many: int) -> None:
    """Answered or refused, but soon: no work that grows with the square of their number."""
    for path in ROUTES:
        for name, item in (("messages", HI[0]), ("input", TURN[0])):
            if name in ROUTES[path]:
                assert post(server, path, {**ROUTES[path], name: [item] * many})[0] == 200
                items = [item] * (many - 1) + [{"role": "user", "content": 3}]
                message = refused(server, path, {**ROUTES[path], name: items})
                assert f"{name}[{many - 1}]" in message
    thoughts = [{"type": "reasoning", "content": [{"text": "x" * 500}]}] * many
    assert post(server, "/v1/responses", {"model": "fake", "input": thoughts + TURN})[0] == 200


def test_ten_thousand_tools(server: Running) -> None:
    tool = {"type": "function", "name": "f", "function": {"name": "f"}, "input_schema": {}}
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/tokenizers/estimate-token-count"):
        assert "128" in refused(server, path, {**ROUTES[path], "tools": [tool] * 10_000})
    anthropic = [{"name": f"f{i}", "input_schema": {}} for i in range(10_000)]
    assert "128" in refused(server, "/v1/messages", {**ROUTES["/v1/messages"], "tools": anthropic})


@pytest.mark.parametrize(
    "more",
    [
        {"n": 128},
        {"stop": ["x" * 100_000]},
        {"stop": ["x"] * 10_000},
        {"logit_bias": {str(i): 1 for i in range(10_000)}},
        {"logit_bias": {"9" * 400: 1}},
        {"logit_bias": {"-1": 1}},
        {"top_logprobs": 10**6, "logprobs": True},
        {"max_tokens": 10**9},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 1000}]},
    ],
)
def test_too_much_of_a_member(server: Running, more: dict[str, Any]) -> None:
    refused(server, "/v1/chat/completions", {**ROUTES["/v1/chat/completions"], **more})


def test_metadata_is_not_a_store(server: Running) -> None:
    for metadata in ({"a": "x" * 513}, {"x" * 65: "a"}, {str(i): "" for i in range(17)}, {"a": 1}):
        assert "metadata" in refused(
            server, "/v1/responses", {**ROUTES["/v1/responses"], "metadata": metadata}
        )


def test_arguments_that_json_has_no_words_for() -> None:
    """What the model wrote may be read as an infinity; what is sent to the client must be JSON."""
    for arguments in ('{"a": 1e999}', '{"a": NaN}', '{"a": ' + "1" * 5000 + "}", "[" * 100_000):
        script: list[Any] = [
            ToolCallStart(0, "functions.f:0", "f"), ToolCallDelta(0, arguments), ToolCallEnd(0),
            Finish("tool_calls", Usage(1, 1, 0)),
        ]  # fmt: skip
        with serving(create_app(FakeProvider(script))) as server:
            url = f"{server.url}/v1/messages"
            body = json.dumps(ROUTES["/v1/messages"]).encode()
            with urllib.request.urlopen(url, body, timeout=WAIT_S) as response:
                told = strict_json(response.read())
        assert told["content"][0]["input"] == {"_raw": arguments}


# The wire


def raw(server: Running, *pieces: bytes, patience_s: float = WAIT_S) -> bytes:
    """What the server says to these bytes before it hangs up, or before `patience_s` of silence."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
            sock.settimeout(patience_s)
            while patience_s and (piece := sock.recv(65536)):
                received += piece
        except OSError:
            pass  # it hung up while it was still told something, or has no more to say
    return received


def head(*lines: str) -> bytes:
    first = ("POST /v1/chat/completions HTTP/1.1", "Host: a", *lines, "", "")
    return "\r\n".join(first).encode()


BODY = json.dumps(ROUTES["/v1/chat/completions"]).encode()


@pytest.mark.parametrize(
    "pieces",
    [
        [head(*(f"x-{i}: y" for i in range(10_000)))],
        [head("x: " + "y" * 10**6)],
        [b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\n\r\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],  # TLS
        [b"GET / HTTP/9.9\r\n\r\n"],
        [b"\r\n" * 1000 + b"nonsense\r\n\r\n"],
        [head("Content-Length: 5", "Content-Length: 6"), b"12345"],
        [head("Content-Length: -5"), b"12345"],
        [head("Content-Length: 99999999999999999999"), b"12345"],
        [head("Content-Length: 5", "Transfer-Encoding: chunked"), b"5\r\n12345\r\n0\r\n\r\n"],
        [head("Transfer-Encoding: gzip"), b"12345"],
        [head("Transfer-Encoding: chunked"), b"zz\r\n12345\r\n0\r\n\r\n"],
        [head("Transfer-Encoding: chunked"), b"ffffffffffffffffffff\r\n12345"],
        [head("Transfer-Encoding: chunked"), b"5\r\n1234567890\r\n0\r\n\r\n"],
        [head("Transfer-Encoding: chunked"), b"-5\r\n12345\r\n0\r\n\r\n"],
        [head("Transfer-Encoding: chunked"), b"5;" + b"x" * 10**6 + b"\r\n12345\r\n0\r\n\r\n"],
        [head("Expect: 100-continue", f"Content-Length: {len(BODY)}")],
        [head("Upgrade: websocket", "Connection: Upgrade", "Content-Length: 0")],
        [head("Content-Length: 2"), b"{}GET /\x00\xff HTTP/1.1\r\n\r\n"],
    ],
)
def test_nonsense_on_the_wire(server: Running, pieces: list[bytes]) -> None:
    told = raw(server, *pieces, patience_s=0.5)
    statuses = [
        line.split(b" ")[1] for line in told.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")
    ]
    assert all(status[:1] in (b"1", b"4") for status in statuses), told[:500]
    is_fine(server)


def test_a_body_in_ten_thousand_chunks_is_a_body(server: Running) -> None:
    padded = BODY + b" " * (10_000 - len(BODY))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in padded) + b"0\r\n\r\n"
    told = raw(server, head("Transfer-Encoding: chunked", "Connection: close"), chunks)
    assert told.startswith(b"HTTP/1.1 200")


def test_drops_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that comes byte by byte is given up after the grace; one that comes steadily is not."""
    monkeypatch.setattr("moonlet.server.body.GRACE_S", 0.2)
    monkeypatch.setattr("moonlet.server.body.LEAST_RATE", 100_000)
    with serving(create_app(FakeProvider(says("ok")))) as server:
        for path in ("/v1/chat/completions", "/v1/files"):
            start = head(
                f"Content-Length: {len(BODY)}", "Content-Type: multipart/form-data; boundary=b"
            ).replace(b"/v1/chat/completions", path.encode())
            with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as sock:
                sock.sendall(start + BODY[:1])
                told = sock.recv(65536)  # nothing more is sent
            assert told.startswith(b"HTTP/1.1 408"), told
        steady = BODY + b" " * (100_000 - len(BODY))
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as sock:
            sock.sendall(head(f"Content-Length: {len(steady)}"))
            for begin in range(0, len(steady), 10_000):
                sock.sendall(steady[begin : begin + 10_000])
                time.sleep(0.04)  # 0.4 seconds in all, twice the grace
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_many_that_never_finish_keep_nobody_waiting(server: Running) -> None:
    idle = []
    try:
        for number in range(200):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)
            sock.sendall(head("Content-Length: 1000")[: 20 + number])
            idle.append(sock)
        is_fine(server)
        assert post(server, "/v1/chat/completions", BODY)[0] == 200
    finally:
        for sock in idle:
            sock.close()


def test_leaving_at_any_moment_leaves_nothing_behind() -> None:
    """Clients hang up anywhere: in the head, in the body, before and between the events of the answer."""
    gate = asyncio.Event()
    provider = FakeProvider([TextDelta("a"), gate, *says("b")])
    dice = random.Random(1)
    with serving(create_app(provider)) as server:
        whole = [
            head(f"Content-Length: {len(body)}") + body
            for body in (BODY, json.dumps({**json.loads(BODY), "stream": True}).encode())
        ]

        def leave(cut: int, request: bytes) -> None:
            raw(server, request[:cut], patience_s=0)

        threads = [
            threading.Thread(target=leave, args=(dice.randrange(len(request) + 1), request))
            for request in whole * 40
        ]
        threads += [threading.Thread(target=leave, args=(len(r), r)) for r in whole * 10]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)

        async def over() -> None:
            watch = server.app.state.moonlet.watch
            while watch.running or watch.waiting or server.app.state.moonlet.bodies.held:
                await asyncio.sleep(0.01)

        server.wait(over())
        assert provider.finished == 0
        server.loop.call_soon_threadsafe(gate.set)
        assert post(server, "/v1/chat/completions", BODY)[0] == 200


@pytest.mark.timeout(60)  # place by place it would take minutes
def test_a_place_is_found_among_a_hundred_thousand() -> None:
    places = Places({f"messages[{i}]": f"input[{i + 1}]" for i in range(100_000)})
    for _ in range(50):
        error = places.relocated(PromptError("messages[9].content is wrong", "messages[9].content"))
        assert (error.param, error.message) == ("input[10].content", "input[10].content is wrong")
