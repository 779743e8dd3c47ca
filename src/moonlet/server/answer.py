"""From a provider's events to the bytes on the wire, watching the client all the while.

    provider.stream -> with_pauses -> Answer -> plain JSON, or server-sent events

The status line waits for the first event, so that a prompt that cannot be rendered is still a plain
400. When nothing has come after `keep_alive_s` a stream starts all the same, with a comment line,
and a later failure travels as `data: {"error": ...}`. The moment the client hangs up, the task is
cancelled and the generator closed, which is what stops the generation.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moonlet.chat.provider import Event, Finish, Provider, collect
from moonlet.errors import EngineError
from moonlet.server.encode import Encoder, to_json
from moonlet.server.errors import as_api_error
from moonlet.server.request import ApiRequest

KEEP_ALIVE = b": keep-alive\n\n"
_SSE_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # or nginx would hold the events back
    ],
}


class Answer(Response):
    """The answer to one request, plain or streamed; it runs the generation while it is sent."""

    media_type = "application/json"

    def __init__(self, provider: Provider, request: ApiRequest, keep_alive_s: float) -> None:
        super().__init__()
        self.provider = provider
        self.request = request
        self.keep_alive_s = keep_alive_s
        self.encoder = Encoder(provider.card.id, request.include_usage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = self.provider.stream(self.request.chat)
        work = self._stream(events, send) if self.request.stream else self._plain(events, send)
        await until_disconnect(receive, work)

    async def _plain(self, events: AsyncGenerator[Event, None], send: Send) -> None:
        async with aclosing(events):
            answer = await collect(events)
        self.body = to_json(self.encoder.completion(answer))
        self.init_headers()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})

    async def _stream(self, events: AsyncGenerator[Event, None], send: Send) -> None:
        started = False
        try:
            async with aclosing(self._pieces(events)) as pieces:
                async for piece in pieces:
                    if not started:
                        started = True
                        await send(_SSE_START)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            if not started:
                raise  # there is still a status line to tell it with
            piece = _data(as_api_error(error).body)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _pieces(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
        """The stream as it is sent, from the role to [DONE]. Raises what the provider raises."""
        opened = False
        finish: Finish | None = None
        async with aclosing(with_pauses(events, self.keep_alive_s)) as steps:
            async for event in steps:
                if event is None:
                    yield KEEP_ALIVE
                    continue
                if not opened:
                    opened = True
                    yield _data(self.encoder.first())
                if (chunk := self.encoder.chunk(event)) is not None:
                    yield _data(chunk)
                finish = event if isinstance(event, Finish) else None
        if finish is None:
            raise EngineError("the answer broke off before it was finished")
        if self.request.include_usage:
            yield _data(self.encoder.usage(finish.usage))
        yield b"data: [DONE]\n\n"


async def with_pauses(
    events: AsyncGenerator[Event, None], pause_s: float
) -> AsyncGenerator[Event | None, None]:
    """The events, and None each time that `pause_s` seconds went by without one. Closes `events`."""
    pending: asyncio.Future[Event | None] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(anext(events, None))
            while not (await asyncio.wait({pending}, timeout=pause_s))[0]:
                yield None
            event = pending.result()
            if event is None:
                return
            yield event
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait({pending})
        await events.aclose()


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, and cancels it as soon as the client hangs up. Returns when it has ended."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.wait({working, gone})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _data(value: object) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
