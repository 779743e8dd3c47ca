"""A small HTTP client for load: one connection a request, events told with the time at which they came.

Not a library: sixty-four of its streams must not cost more time than the server that is measured.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"
LONGEST_LINE = 1 << 24


@dataclass
class Reply:
    """An answer as it came. `times` (seconds, of a monotonic clock) has one entry for each piece of it."""

    status: int = 0
    reasoning: str = ""
    text: str = ""
    calls: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    whole: bool = False  # whether [DONE], or all of a plain answer, has come
    asked: float = 0.0
    times: list[float] = field(default_factory=list)

    @property
    def said(self) -> tuple[str, str, str, str | None]:
        """What another answer to the same request must be equal in."""
        return self.reasoning, self.text, self.calls, self.finish

    @property
    def first_s(self) -> float:
        """Seconds from the request to the first piece."""
        return self.times[0] - self.asked

    def add(self, chunk: dict[str, Any], now: float) -> None:
        if "error" in chunk:
            self.error = json.dumps(chunk["error"])
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", []):
            said = choice.get("delta") or choice.get("message") or {}
            calls = said.get("tool_calls") or []
            pieces = [said.get("reasoning_content"), said.get("content"), json.dumps(calls) if calls else ""]  # fmt: skip
            if any(pieces):
                self.times.append(now)
            self.reasoning += pieces[0] or ""
            self.text += pieces[1] or ""
            self.calls += pieces[2] or ""
            self.finish = choice.get("finish_reason") or self.finish


async def post(
    port: int,
    body: dict[str, Any] | bytes,
    *,
    leave_after_s: float | None = None,
    claim_bytes: int | None = None,
    path: str = CHAT,
) -> Reply:
    """The answer to one request. leave_after_s: hang up then. claim_bytes: of the body, whatever is sent."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = Reply(asked=time.perf_counter())
    async with _connection(port) as (reader, writer):
        writer.write(_head("POST", path, len(raw) if claim_bytes is None else claim_bytes) + raw)
        try:
            async with asyncio.timeout(leave_after_s):
                await _read(reader, reply)
        except TimeoutError:
            pass  # that was asked for
    return reply


async def get(port: int, path: str) -> bytes:
    """The body of a page."""
    async with _connection(port) as (reader, writer):
        writer.write(_head("GET", path, 0))
        return (await reader.read()).partition(b"\r\n\r\n")[2]


async def gauges(port: int) -> dict[str, float]:
    """What /metrics tells that has no labels, without its prefix."""
    lines = (await get(port, "/metrics")).decode().splitlines()
    pairs = [line.removeprefix("moonlet:").split() for line in lines if line.startswith("moonlet:")]
    return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2 and "{" not in pair[0]}


async def _read(reader: asyncio.StreamReader, reply: Reply) -> None:
    reply.status = int((await reader.readline()).split(b" ")[1])
    streams = False
    while (line := await reader.readline()) not in (b"\r\n", b""):
        streams = streams or line.lower().startswith(b"content-type: text/event-stream")
    if not streams:
        text = await reader.read()
        begin, end = text.find(b"{"), text.rfind(b"}")
        reply.add(json.loads(text[begin : end + 1]), time.perf_counter())
        reply.times, reply.whole = [time.perf_counter()], True
        return
    while line := await reader.readline():  # sizes of chunks and blank lines between the events
        if line == b"data: [DONE]\n":
            reply.whole = True
        elif line.startswith(b"data: "):
            reply.add(json.loads(line[6:]), time.perf_counter())


def _head(method: str, path: str, size: int) -> bytes:
    fields = f"Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {size}"
    return f"{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode()


@asynccontextmanager
async def _connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LONGEST_LINE)
    try:
        yield reader, writer
    finally:
        writer.close()
