"""`RemoteSource` against endpoints that are broken or mean harm: always one sentence, never the key."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from moonlet.chat.provider import Finish, TextDelta, Usage
from moonlet.cli import sources
from moonlet.cli.main import main
from moonlet.cli.sources import KEY_VARIABLE, RemoteSource
from moonlet.errors import EngineError

HI = [{"role": "user", "content": "hi"}]
DONE = b"data: [DONE]\n\n"


@contextmanager
def endpoint(
    body: bytes, *, status: int = 200, headers: dict[str, str] | None = None
) -> Iterator[tuple[str, list[Any]]]:
    """A server that gives every request the same answer; its URL and the headers it was sent."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(self.headers)
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", seen
        finally:
            server.shutdown()
            thread.join()


def answer(url: str) -> list[Any]:
    return list(RemoteSource(url, "m").answer(HI, thinking=True))


@pytest.mark.parametrize(
    "chunk",
    [
        b'{"choices": [1]}',
        b'{"choices": 1}',
        b'{"choices": {"a": 1}}',
        b'{"choices": [{"delta": "x"}]}',
        b'{"choices": [{"delta": {"content": [1]}}]}',
        b'{"choices": [{"delta": {"content": 1}}]}',
        b'{"choices": [{"delta": {"reasoning_content": {}}}]}',
        b'{"choices": [{"delta": {}, "finish_reason": [1]}]}',
        b'{"usage": [1]}',
        b'{"usage": {"prompt_tokens": "many"}}',
        b'{"usage": {"prompt_tokens": 1e999}}',
        b"[1]",
        b"{",
        b"[" * 100_000,
    ],
)
def test_chunks_of_another_shape(chunk: bytes) -> None:
    with endpoint(b"data: " + chunk + b"\n\n" + DONE) as (url, _), pytest.raises(EngineError) as e:
        answer(url)
    assert f"{url} does not speak the OpenAI API: it sent " in str(e.value)
    assert len(str(e.value)) < 250


def test_what_may_be_left_out_or_null() -> None:
    chunks = [
        b"{}",
        b'{"error": null}',
        b'{"choices": null, "usage": null}',
        b'{"choices": [{}]}',
        b'{"choices": [{"delta": null, "finish_reason": null}]}',
        b'{"choices": [{"delta": {"content": "a", "reasoning": null}, "finish_reason": "length"}]}',
        b'{"choices": [], "usage": {"completion_tokens": 2}}',
    ]
    with endpoint(b"".join(b"data: %b\n\n" % chunk for chunk in chunks) + DONE) as (url, _):
        assert answer(url) == [TextDelta("a"), Finish("length", Usage(0, 2, 0))]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (b'{"error": {"message": "too hot"}}', "the answer broke off: too hot"),
        (b'{"error": "too hot"}', "the answer broke off: too hot"),
        (b'{"error": [1]}', "the answer broke off without a reason"),
        (b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}", "the answer broke off without a reason"),
    ],
)
def test_errors_in_the_stream(error: bytes, says: str) -> None:
    with (
        endpoint(b"data: " + error + b"\n\n" + DONE) as (url, _),
        pytest.raises(EngineError, match=says),
    ):
        answer(url)


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (200, {"Content-Length": "100"}, "does not speak the OpenAI API|connection to .* broke"),
        (200, {"Transfer-Encoding": "chunked"}, "the connection to .* broke"),
        (500, {"Transfer-Encoding": "chunked"}, "answered 500: Internal Server Error"),
    ],
)
def test_bodies_that_break_off(status: int, headers: dict[str, str], says: str) -> None:
    with (
        endpoint(b'{"data"', status=status, headers=headers) as (url, _),
        pytest.raises(EngineError, match=says),
    ):
        RemoteSource(url)


def test_no_answer_is_read_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 1000)
    with (
        endpoint(b'{"data": [{"id": "' + b"x" * 1000 + b'"}]}') as (url, _),
        pytest.raises(EngineError, match="more than 1000 bytes"),
    ):
        RemoteSource(url)
    with (
        endpoint(b"data: " + b"x" * 1000 + b"\n\n" + DONE) as (url, _),
        pytest.raises(EngineError, match="more than 1000 bytes"),
    ):
        answer(url)


def test_the_key_is_sent_without_the_blanks_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, " sk-secret\r\n")
    with endpoint(b'{"data": [{"id": "m"}]}') as (url, seen):
        RemoteSource(url)
    assert seen[0]["Authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    "key", ["sk-\rsecret", "sk-secret\u20ac", "sk-secret\u00e9", "sk-\x7fsecret"]
)
def test_a_key_that_cannot_be_sent_is_not_printed(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert main(["chat", "http://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err
    assert KEY_VARIABLE in error
    assert "secret" not in error
    assert "sk-" not in error


def test_the_key_does_not_follow_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    with (
        endpoint(b'{"data": [{"id": "m"}]}') as (there, seen_there),
        endpoint(b"", status=302, headers={"Location": f"{there}/models"}) as (here, seen),
    ):
        RemoteSource(here)
    assert seen[0]["Authorization"] == "Bearer sk-secret"
    assert seen_there[0]["Authorization"] is None


def test_an_answer_that_is_no_http(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        assert main(["chat", f"http://127.0.0.1:{listener.getsockname()[1]}"]) == 1
        thread.join()
    assert "does not speak HTTP" in capsys.readouterr().err
