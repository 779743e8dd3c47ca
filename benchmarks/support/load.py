"""Many clients at once for many minutes, some of them rude: does anything break, mix or stay behind?

Each client asks again and again, at random one of KINDS. Two kinds of answers are known beforehand, so that a
token in the wrong stream shows: what the same request said when it was alone (same seed, same tokens), and a
word that only this request's schema allows.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.http import Reply, gauges, post
from support.served import Served

# kind -> how often, of 100
KINDS = {"stream": 50, "plain": 10, "word": 18, "leaves": 12, "malformed": 4, "too long": 3, "too large": 3}  # fmt: skip
QUESTIONS = 48
LATE_S = 120.0  # an answer that takes longer counts as an error
BODY_BYTES = 1 << 30
BROKEN: list[tuple[dict[str, Any] | bytes, int]] = [
    (b'{"model": ', 400),
    (b"\xff\xfe\x00", 400),
    (b"[1, 2]", 400),
    ({"model": "nobody", "messages": [{"role": "user", "content": "1+1"}]}, 404),
    ({"messages": "hello"}, 400),
    ({"messages": [{"role": "user", "content": 5}]}, 400),
    ({"messages": [{"role": "user", "content": "1+1"}], "temperature": "hot"}, 400),
    ({"messages": [{"role": "user", "content": "1+1"}], "tools": [{"type": "function"}]}, 400),
]  # fmt: skip


@dataclass
class Load:
    """What came of it."""

    clients: int
    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)  # seconds to the first piece of a stream
    gaps: list[float] = field(default_factory=list)  # seconds between two pieces
    tokens: int = 0
    resident: list[int] = field(default_factory=list)  # bytes: before, after warming up, at the end
    pages: list[tuple[float, float]] = field(default_factory=list)  # (free, all), at the same times

    def result(self) -> dict[str, Any]:
        return {
            "clients": self.clients,
            "seconds": round(self.seconds, 1),
            "requests": sum(self.outcomes.values()),
            "outcomes": dict(sorted(self.outcomes.items())),
            "errors": self.errors[:20],
            "error_count": len(self.errors),
            "tokens_per_s": self.tokens / self.seconds,
            "first_token_s": percentiles(self.firsts),
            "between_tokens_s": percentiles(self.gaps),
            "resident_mb": [round(size / 1e6, 1) for size in self.resident],
            "pages_free_of": self.pages,
        }


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [float("nan")]
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[round(last * 0.99)], "max": ordered[last]}


async def run(server: Served, clients: int, warm_s: float, seconds: float) -> Load:
    """The same load twice: until everything that is made once is made, then for the figures."""
    load = Load(clients, seconds)
    alone = [await post(server.port, question(server, n)) for n in range(QUESTIONS)]
    if broken := [reply for reply in alone if reply.status != 200 or not reply.whole]:
        raise RuntimeError(f"alone on the server, a request failed: {broken[0]}")
    await _settle(server, load)
    for part, duration in ((Load(clients, warm_s), warm_s), (load, seconds)):
        until = time.monotonic() + duration
        await asyncio.gather(*(_client(server, part, n, until, alone) for n in range(clients)))
        load.errors += part.errors if part is not load else []
        await _settle(server, load)
    return load


def question(server: Served, number: int, stream: bool = True) -> dict[str, Any]:
    a, b = random.Random(number).choices(range(10, 999), k=2)
    return {
        "model": server.model, "messages": [{"role": "user", "content": f"{a}+{b}"}], "seed": number,
        "stream": stream, "stream_options": {"include_usage": True}, "temperature": 1.0,
        "thinking": {"type": "enabled" if number % 3 else "disabled"}, "max_tokens": 400,
    }  # fmt: skip


async def _client(
    server: Served, load: Load, client: int, until: float, alone: list[Reply]
) -> None:
    rng = random.Random(client * 7919 + int(until))
    while time.monotonic() < until:
        kind = rng.choices(list(KINDS), KINDS.values())[0]  # type: ignore[arg-type]
        with _reported(load, kind):
            async with asyncio.timeout(LATE_S):
                await _ask(server, load, kind, rng, alone)


@contextmanager
def _reported(load: Load, kind: str) -> Iterator[None]:
    """Whatever goes wrong is an error, told with its kind."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  the others go on
        load.errors.append(f"{kind}: {type(error).__name__}: {error}"[:300])
        load.outcomes[f"{kind}: ERROR"] += 1
    else:
        load.outcomes[kind] += 1


async def _ask(
    server: Served, load: Load, kind: str, rng: random.Random, alone: list[Reply]
) -> None:
    number = rng.randrange(QUESTIONS)
    match kind:
        case "stream" | "plain":
            reply = await post(server.port, question(server, number, kind == "stream"))
            _must(reply.status == 200 and reply.whole and not reply.error, reply)
            _must(reply.said == alone[number].said, reply, alone[number])
            load.tokens += reply.usage["completion_tokens"]
            if kind == "stream":
                load.firsts.append(reply.first_s)
                load.gaps += [b - a for a, b in zip(reply.times, reply.times[1:], strict=False)]
        case "word":
            word = f"word-{rng.getrandbits(60):x}"
            form = {"type": "json_schema", "json_schema": {"name": "w", "schema": {"const": word}}}
            asked = question(server, number, rng.random() < 0.5) | {"response_format": form}
            reply = await post(server.port, asked | {"thinking": {"type": "disabled"}})
            _must(reply.status == 200 and reply.whole and reply.text == f'"{word}"', reply, word)
        case "leaves":
            after = rng.random() * 2
            reply = await post(server.port, question(server, number), leave_after_s=after)
            _must(reply.status in (0, 200) and not reply.error, reply)
        case "malformed":
            body, status = rng.choice(BROKEN)
            if isinstance(body, dict):
                body = {"model": server.model} | body
            _must((reply := await post(server.port, body)).status == status, reply)
        case "too long":
            long = question(server, number) | {
                "messages": [{"role": "user", "content": "1+" * 60_000}]
            }
            _must((reply := await post(server.port, long)).status == 400, reply)
        case "too large":
            reply = await post(server.port, b"{", claim_bytes=BODY_BYTES)
            _must(reply.status == 413, reply)


def _must(holds: bool, *shown: object) -> None:
    if not holds:
        raise AssertionError(" / ".join(map(repr, shown)))


async def _settle(server: Served, load: Load) -> None:
    """Waits until nothing runs any more, and reads what the server holds."""
    for _ in range(100):
        await asyncio.sleep(0.3)
        now = await gauges(server.port)
        if now["engine_requests_running"] + now["engine_requests_waiting"] == 0:
            load.resident.append(server.resident_bytes())
            load.pages.append((now["cache_pages_available"], now["cache_pages"]))
            return
    raise RuntimeError("requests still run half a minute after all clients have left")
