"""One request to one endpoint, over HTTP: what is posted, and the events of what comes back.

Nothing is waited for without an end: neither a connection, nor the next event, nor, where the request has a
deadline, the whole. Redirects are not followed, or a key could go where it was not meant to.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2

from moonlet import __version__
from moonlet.chat.provider import ChatRequest, Event
from moonlet.errors import PromptError, UpstreamError
from moonlet.gateway.body import chat_body
from moonlet.gateway.chunks import Chunks
from moonlet.gateway.endpoint import Endpoint
from moonlet.gateway.refusal import failure, failure_in_stream
from moonlet.gateway.sse import Events, parse_object

CONNECT_S = 10.0
WRITE_S = 60.0  # for one piece of a body
AFTER_S = 2.0  # for what may come after the end: usage, [DONE], the last bytes of HTTP
MAX_REFUSAL = 64 * 1024  # bytes of an error's body
IDLE_CONNECTIONS = 64

# All that httpx raises for the network and for what comes over it; TimeoutError is one of OSError.
LOST = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError)
_TIMEOUT = httpx2.Timeout(None, connect=CONNECT_S, write=WRITE_S)


def http_client() -> httpx2.AsyncClient:
    """For any number of requests; it belongs to the event loop in which it is first asked with."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=IDLE_CONNECTIONS)
    return httpx2.AsyncClient(timeout=_TIMEOUT, limits=limits)


def headers(endpoint: Endpoint) -> dict[str, str]:
    """Those of every request. No compression: a few bytes could unfold to many."""
    told = {"accept-encoding": "identity", "user-agent": f"moonlet/{__version__}"}
    return told if endpoint.key is None else {**told, "authorization": f"Bearer {endpoint.key}"}


@dataclass
class Patience:
    """How long to wait: `silence_s` without an event, and no longer than `ends`, by the loop's clock."""

    silence_s: float
    ends: float | None = None

    def limit(self, heard: float) -> float:
        """Until when to wait for the next event, if the last one came at `heard`."""
        limit = heard + self.silence_s
        return limit if self.ends is None else min(limit, self.ends)

    @property
    def over(self) -> bool:
        return self.ends is not None and asyncio.get_running_loop().time() >= self.ends


async def ask(
    client: httpx2.AsyncClient, endpoint: Endpoint, chunks: Chunks, patience: Patience
) -> AsyncGenerator[Event, None]:
    """The events of the answer to `chunks.request`, whose media must be data URLs.

    When the time is over the answer ends as if the token limit were reached. Raises PromptError where the
    client is at fault, UpstreamError for everything else; neither ever repeats the key.
    """
    try:
        async with aclosing(_answer(client, endpoint, chunks, patience)) as events:
            async for event in events:
                yield event
    except TimeoutError:
        if not patience.over:
            raise UpstreamError(
                f"{endpoint} sent nothing of an answer for {patience.silence_s:g} seconds", 504
            ) from None
        for event in chunks.cut():
            yield event
    except PromptError as error:
        param = error.param and endpoint.hide(error.param)
        raise PromptError(endpoint.hide(error.message), param) from None
    except UpstreamError as error:
        error.args = (endpoint.hide(str(error)),)
        raise


async def _answer(
    client: httpx2.AsyncClient, endpoint: Endpoint, chunks: Chunks, patience: Patience
) -> AsyncGenerator[Event, None]:
    """The same. Raises TimeoutError too."""
    now = asyncio.get_running_loop().time
    wire = Events(str(endpoint))
    heard, last = now(), None
    body = await asyncio.to_thread(_encoded, chunks.request, endpoint)
    async with _posted(client, endpoint, body, patience.limit(heard)) as pieces:
        more = True
        while more and not wire.done:
            if chunks.complete and last is None:
                last = now() + AFTER_S
            try:
                piece = await _next(pieces, last or patience.limit(heard))
            except LOST:
                if not chunks.complete:
                    raise
                break  # all was said before
            more = bool(piece)
            for chunk in wire.push(piece) if more else wire.end():
                for event in chunks.push(chunk):
                    yield event
                    heard = now()  # after it: a slow client is no silent endpoint
        for event in chunks.finish():
            yield event
        with suppress(*LOST):  # read to its end a connection serves again
            await _next(pieces, now() + AFTER_S)


def _encoded(request: ChatRequest, endpoint: Endpoint) -> bytes:
    body = chat_body(request, endpoint.model or endpoint.name, endpoint.thinking or "type")
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def _next(pieces: AsyncIterator[bytes], until: float) -> bytes:
    """The next bytes, none at the end. Raises TimeoutError."""
    async with asyncio.timeout_at(until):
        return await anext(pieces, b"")


@asynccontextmanager
async def _posted(
    client: httpx2.AsyncClient, endpoint: Endpoint, body: bytes, until: float
) -> AsyncGenerator[AsyncIterator[bytes], None]:
    """The bytes of the stream that answers. Raises TimeoutError, PromptError and UpstreamError."""
    told = {**headers(endpoint), "content-type": "application/json", "accept": "text/event-stream"}
    try:
        request = client.build_request(
            "POST", f"{endpoint.url}/chat/completions", content=body, headers=told
        )
        async with asyncio.timeout_at(until):
            response = await client.send(request, stream=True)
        try:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if response.status_code != 200 or kind != "text/event-stream":
                async with asyncio.timeout_at(until):
                    raise await _no_answer(response, kind, endpoint)
            yield response.aiter_raw()
        finally:
            await response.aclose()
    except TimeoutError:
        raise
    except LOST as error:
        raise lost(error, str(endpoint)) from error


async def _no_answer(
    response: httpx2.Response, kind: str, endpoint: Endpoint
) -> PromptError | UpstreamError:
    """What to raise for a response that is no stream."""
    who, data = str(endpoint), bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > MAX_REFUSAL:
            break
    body: dict[str, Any] = {}
    with suppress(UpstreamError):
        body = parse_object(bytes(data), who)
    if response.status_code != 200:
        return failure(response.status_code, body, response.headers, who)
    if body.get("error") is not None:
        return failure_in_stream(body, who)
    return UpstreamError(
        f"{who} answered with {kind[:60]!r} where a stream of events was asked for"
    )


def lost(error: Exception, who: str) -> UpstreamError:
    """A connection that was not made, or broke."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, httpx2.ConnectTimeout):
        return UpstreamError(
            f"{who} cannot be reached within {CONNECT_S:g} seconds", 504, retry=True
        )
    if isinstance(error, httpx2.ConnectError):
        return UpstreamError(f"{who} cannot be reached: {reason}", retry=True)
    return UpstreamError(f"the connection to {who} broke: {reason}", retry=True)
