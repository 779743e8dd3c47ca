"""An endpoint that says what a test wants it to say, in a thread on 127.0.0.1."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moonlet.gateway.endpoint import Endpoint
from tests.server.running import serving

STREAM = {"content-type": "text/event-stream"}
DONE = b"data: [DONE]\n\n"


class Break(Exception):
    """The connection breaks here."""


@dataclass
class Says:
    """One answer: bytes are sent, numbers are seconds to wait, `Break` ends the connection."""

    pieces: list[bytes | float | Break]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(STREAM))


class FakeEndpoint:
    """Answers the first request with the first of `answers`, and so on; the last one stays.

    `bodies` and `headers` are those of the requests; `models` is what `/models` says.
    """

    def __init__(self, *answers: Says, models: Any = None) -> None:
        self.answers = answers
        self.models = models
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        if scope["path"].endswith("/models"):
            says = refuses(200, self.models)
        else:
            body = b""
            while (message := await receive()).get("more_body"):
                body += message["body"]
            self.bodies.append(json.loads(body + message["body"]))
            says = self.answers[min(len(self.bodies), len(self.answers)) - 1]
        headers = [(name.encode(), value.encode()) for name, value in says.headers.items()]
        await send({"type": "http.response.start", "status": says.status, "headers": headers})
        for piece in says.pieces:
            if isinstance(piece, Break):
                raise piece
            if isinstance(piece, bytes):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            else:
                await asyncio.sleep(piece)
        await send({"type": "http.response.body", "body": b""})


def refuses(status: int, body: Any, **headers: str) -> Says:
    """An answer that is no stream."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Says([json.dumps(body).encode()], status, {"content-type": "application/json", **named})


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> bytes:
    """One chunk of choice 0."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return event({"choices": [choice], **more})


def usage(prompt: int, written: int, **more: Any) -> bytes:
    return event(
        {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": written, **more}}
    )


def text(words: str = "hello", prompt: int = 10, written: int = 5, **more: Any) -> Says:
    """A whole answer."""
    pieces = [chunk({"content": words}), chunk(finish="stop"), usage(prompt, written, **more), DONE]
    return Says([*pieces])


@contextmanager
def running(fake: FakeEndpoint, name: str = "m", **more: Any) -> Iterator[Endpoint]:
    with serving(fake) as server:  # type: ignore[arg-type]
        yield Endpoint(name, f"{server.url}/v1", "theirs", **more)
