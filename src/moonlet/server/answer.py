"""From a provider's events to the bytes on the wire, watching the client all the while.

    provider.stream -> with_pauses -> Answer, in the words of an Encoder -> JSON, or server-sent events

The status line waits for the first event, so that a prompt that cannot be rendered is still a plain
400. A provider that says Started does so before it computes the prompt: the head of a stream does not wait
for minutes of that. When nothing has come after `keep_alive_s` (media are fetched and decoded) a stream
starts all the same, with a comment line. A later failure travels in the stream, in the dialect's own
shape. The moment the client hangs up, the task is cancelled and the generator closed, which is what
stops the generation. When the server ends before the answer does, the same happens, and the client is told:
503, or the dialect's error in the stream.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moonlet.chat.provider import (
    Completion,
    Event,
    Finish,
    Started,
    Usage,
    collect_all,
    total_usage,
)
from moonlet.errors import EngineError
from moonlet.server.closing import Closing
from moonlet.server.encode import to_json
from moonlet.server.errors import ApiError, as_api_error
from moonlet.server.state import State

KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which every reader of server-sent events skips
_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx would hold the events back
]


class Encoder(Protocol):
    """One answer in the words of one dialect: a new object for every answer.

    Either `plain` is asked, with the whole answer of each choice; or `start`, `event` for each
    event in order, and `end`, whose bytes are sent as they are (`encode.sse` makes them; empty ones say
    nothing). `start` comes before the first event, with the tokens of the prompt if they are known yet, `end`
    after every choice has had its Finish; in place of the rest comes `error`, once, when the answer breaks
    off. `model`: the name for statistics.
    """

    model: str

    def plain(self, answers: list[Completion]) -> dict[str, Any]: ...

    def start(self, prompt_tokens: int = 0) -> bytes: ...

    def event(self, event: Event) -> bytes: ...

    def end(self) -> bytes: ...

    def error(self, error: ApiError, body: dict[str, Any]) -> bytes:
        """`body` is what a plain answer to the same path would have told of the error."""
        ...


class Answer(Response):
    """The answer to one request, plain or streamed; it runs the generation while it is sent."""

    media_type = "application/json"

    def __init__(
        self,
        state: State,
        events: AsyncGenerator[Event, None],
        encoder: Encoder,
        *,
        stream: bool,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(headers=headers)
        self.state = state
        self.events = events
        self.encoder = encoder
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.events = self.state.watch.over(self.events, scope, self.encoder.model)
        work = self._stream(scope, send) if self.stream else self._plain(send)
        await until_disconnect(receive, work, self.state.closing)

    async def _plain(self, send: Send) -> None:
        with self._told_of_the_end():
            async with aclosing(self.events) as events:
                answers = await collect_all(events)
        body = to_json(self.encoder.plain(answers))
        usage = total_usage(answer.usage for answer in answers)
        headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        headers += [
            (b"content-length", str(len(body)).encode()),
            (b"x-moonlet-cache", cache_header(usage)),
        ]
        if usage.cost is not None:
            headers.append((b"x-moonlet-cost", f"{usage.cost:.8f}".encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, scope: Scope, send: Send) -> None:
        started = False
        try:
            with self._told_of_the_end():
                async with aclosing(self._pieces()) as pieces:
                    async for piece in pieces:
                        if not started:
                            started = True
                            await send(self._sse_start())
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            if not started:
                raise  # there is still a status line to tell it with
            known = as_api_error(error)
            piece = self.encoder.error(known, self.state.error_body(scope, known))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    @contextmanager
    def _told_of_the_end(self) -> Iterator[None]:
        """Being cancelled because the server ends is told to the client as any failure is."""
        try:
            yield
        except asyncio.CancelledError:
            if self.state.closing.begun:
                raise self.state.closing.refusal() from None
            raise  # the client has gone

    def _sse_start(self) -> dict[str, Any]:
        ours = {name for name, _ in _SSE_HEADERS} | {b"content-length"}
        headers = [pair for pair in self.raw_headers if pair[0] not in ours]
        return {"type": "http.response.start", "status": 200, "headers": headers + _SSE_HEADERS}

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        """The stream as it is sent. Raises what the provider raises."""
        opened = False
        running: set[int] = set()
        async with aclosing(with_pauses(self.events, self.state.keep_alive_s)) as steps:
            async for event in steps:
                if event is None:
                    yield KEEP_ALIVE
                    continue
                if not opened:
                    opened = True
                    yield self.encoder.start(
                        event.prompt_tokens if isinstance(event, Started) else 0
                    )
                (running.discard if isinstance(event, Finish) else running.add)(event.choice)
                if piece := self.encoder.event(event):
                    yield piece
        if running or not opened:
            raise EngineError("the answer broke off before it was finished")
        yield self.encoder.end()


def cache_header(usage: Usage) -> bytes:
    """How many tokens of the prompt came from where, and why not more, as far as that is known."""
    in_memory = usage.cached_tokens - usage.cached_disk_tokens
    told = f"memory={in_memory}, disk={usage.cached_disk_tokens}"
    if usage.cache_break:
        told += f", break={usage.cache_break}"
    return told.encode("ascii", "replace")


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


async def until_disconnect(
    receive: Receive, work: Coroutine[Any, Any, None], closing: Closing
) -> None:
    """Runs `work`, and cancels it as soon as the client hangs up or the server ends.

    Returns when it has ended. Raises what it raises: when the server ends that is `work`'s to say.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    over = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait({working, gone, over}, return_when=asyncio.FIRST_COMPLETED)
        if over.done() and not gone.done():
            working.cancel()
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, gone, over):
            task.cancel()
        await asyncio.wait({working, gone, over})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
