"""Many streams at once against one, and against llama.cpp's batched decoding, on one file, in turn.

Our side is the whole way: requests over HTTP, prompts, scheduler, sampler, parser, events. The peer's is its own
benchmark of the bare library, which neither samples nor speaks HTTP.
"""

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

from support.http import Reply, post
from support.peer import Peer
from support.served import Served, random_weights

STREAMS, PROMPT, STEPS = 16, 64, 64
PAUSE = 6.0  # seconds, as in cpu.py


def run(file: Path, peer: Peer | None, repeat: int) -> dict[str, Any]:
    """Tokens per second while all streams run, of one stream and of STREAMS; medians of `repeat` turns."""
    ours: dict[int, list[float]] = {1: [], STREAMS: []}
    theirs: dict[int, list[float]] = {1: [], STREAMS: []}
    with random_weights(file) as server:
        asyncio.run(speed(server, 1, "warming up"))
        for turn in range(repeat):
            for count, samples in ours.items():
                time.sleep(PAUSE)
                samples.append(asyncio.run(speed(server, count, f"{turn} {count}")))
                if peer:
                    time.sleep(PAUSE)
                    theirs[count].append(peer.decode_batch(file, count, PROMPT, STEPS))
    result: dict[str, Any] = {
        "streams": STREAMS,
        "prompt": PROMPT,
        "ours": ours,
        "llama.cpp": theirs,
    }
    middle = {count: median(samples) for count, samples in ours.items()}
    result["many_over_one"] = middle[STREAMS] / middle[1]
    if peer:
        for count, samples in theirs.items():
            result[f"times_llama.cpp_at_{count}"] = middle[count] / median(samples)
    return result


async def speed(server: Served, count: int, name: str) -> float:
    """Tokens per second of `count` streams, from when the last has begun until the first ends."""
    replies = await asyncio.gather(
        *(post(server.port, _ask(server, name, n)) for n in range(count))
    )
    begin = max(reply.times[0] for reply in replies)
    end = min(reply.times[-1] for reply in replies)
    if end <= begin:
        raise RuntimeError(f"{count} streams never ran at the same time: {_shown(replies)}")
    return sum(begin < now <= end for reply in replies for now in reply.times) / (end - begin)


def _ask(server: Served, name: str, number: int) -> dict[str, Any]:
    start = f"{number} {name} "
    messages = [{"role": "user", "content": start + "x" * max(PROMPT - 16 - len(start), 0)}]
    return {"model": server.model, "messages": messages, "stream": True, "max_tokens": STEPS * 2}


def _shown(replies: list[Reply]) -> str:
    return ", ".join(
        f"{len(reply.times)} pieces, {reply.error or reply.finish}" for reply in replies
    )
