"""An agent's conversation, turn by turn: what does the next step cost when all before it was computed already?

Every turn adds a call and its result to the history and asks for one token. Cold is the same history under
another first word, so that no page of it is known: what a server without a prefix cache computes at each step.
"""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.http import Reply, post
from support.served import Served, random_weights

TURNS = 20
COLD_TURNS = (1, 5, 10, 15, 20)


async def run(file: Path, history_tokens: int) -> dict[str, Any]:
    """Times to the first token over TURNS turns that end with about `history_tokens` (one for each byte)."""
    step = history_tokens // TURNS
    warm: list[dict[str, Any]] = []
    cold: dict[int, dict[str, Any]] = {}
    with TemporaryDirectory(prefix="moonlet-replay-") as folder:
        with random_weights(file, Path(folder)) as server:
            await post(server.port, conversation(server, "warming up", 1, step))
            for turn in range(1, TURNS + 1):
                warm.append(
                    told(await post(server.port, conversation(server, "agent", turn, step)))
                )
                if turn in COLD_TURNS:
                    other = conversation(server, f"cold {turn}", turn, step)
                    cold[turn] = told(await post(server.port, other))
            await asyncio.sleep(2)  # the disk is written behind the answers
        with random_weights(file, Path(folder)) as server:
            await post(server.port, conversation(server, "warming up again", 1, step))
            again = told(await post(server.port, conversation(server, "agent", TURNS, step)))
    last = cold[TURNS]["first_s"]
    return {
        "turns": warm, "cold": cold, "after_restart": again,
        "times_faster_at_last_turn": last / warm[-1]["first_s"],
        "times_faster_after_restart": last / again["first_s"],
    }  # fmt: skip


def conversation(server: Served, name: str, turn: int, step: int) -> dict[str, Any]:
    """The history before turn number `turn`, of about `turn` times `step` bytes."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": f"{name}: you mend programs"}]
    messages.append({"role": "user", "content": _text(0, step - 100)})
    for past in range(1, turn):
        call = {"name": "read", "arguments": f'{{"file": "part{past}.py"}}'}
        call_id = f"functions.read:{past - 1}"
        messages.append({"role": "assistant", "content": "", "reasoning_content": f"part {past}",
                         "tool_calls": [{"id": call_id, "type": "function", "function": call}]})  # fmt: skip
        messages.append({"role": "tool", "tool_call_id": call_id, "content": _text(past, step - 100)})  # fmt: skip
    return {"model": server.model, "messages": messages, "max_tokens": 1}


def told(reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        raise RuntimeError(f"a turn failed: {reply}")
    details = reply.usage.get("prompt_tokens_details", {})
    return {
        "first_s": reply.first_s,
        "prompt_tokens": reply.usage["prompt_tokens"],
        "cached_tokens": details.get("cached_tokens", 0),
    }


def _text(part: int, size: int) -> str:
    line = f"part {part}: the quick program jumps over the lazy bug\n"
    return (line * (size // len(line) + 1))[:size]
