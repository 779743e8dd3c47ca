"""A client that hangs up frees the real engine: within one piece of the prompt, or one token."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from moonlet.engine import LocalProvider, Stream, load
from moonlet.model import Model
from moonlet.server import create_app
from tests.server.running import WAIT_S, Running, serving
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalProvider]:
    provider = load(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), "tiny")
    yield provider
    provider.close()


class Gate:
    """Stops the model at its `nth` run over `width` tokens, until the generation was cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, decoding: bool, nth: int) -> None:
        self.reached, self.cancelled = threading.Event(), threading.Event()
        self.widths: list[int] = []
        hidden, cancel = Model.hidden, Stream.cancel

        def watched(model: Model, input_ids: Any, **more: Any) -> Any:
            self.widths.append(input_ids.shape[1])
            if sum((width == 1) == decoding for width in self.widths) == nth:
                self.reached.set()
                assert self.cancelled.wait(WAIT_S), "nobody told the engine"
            return hidden(model, input_ids, **more)

        def told(stream: Stream) -> None:
            cancel(stream)
            self.cancelled.set()

        monkeypatch.setattr(Model, "hidden", watched)
        monkeypatch.setattr(Stream, "cancel", told)


def request(text: str, max_tokens: int, **more: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps(
        {"model": "tiny", "messages": messages, "max_tokens": max_tokens, "seed": 1, **more}
    ).encode()


def ask_and_leave(server: Running, body: bytes, reached: threading.Event) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as sock:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sock.sendall(head.encode() + body)
        assert reached.wait(WAIT_S), "the model did not get there"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("decoding", [False, True])
def test_leaving_frees_the_engine(
    provider: LocalProvider, monkeypatch: pytest.MonkeyPatch, decoding: bool, stream: bool
) -> None:
    gate = Gate(monkeypatch, decoding, nth=2)
    text = "xy"[stream] * (10 if decoding else 5000)  # the cache must not know it yet
    body = request(text, max_tokens=500, stream=stream)
    with serving(create_app(provider)) as server:
        ask_and_leave(server, body, gate.reached)
        assert gate.cancelled.wait(WAIT_S)
        done = len(gate.widths)
        status, answer = server.post(request("hi", max_tokens=1))
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 1
    [prompt] = gate.widths[done:]
    assert prompt == answer["usage"]["prompt_tokens"]
