"""Many streams at once: each gets its own answer, and nothing of anybody else's."""

import asyncio

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.endpoint import Endpoint
from moonlet.gateway.fidelity.errors import Failed
from moonlet.gateway.fidelity.forced import forced_call, json_answer, value_of
from moonlet.gateway.fidelity.schemas import Case, fixed

group = Group("parallel")

STREAMS = 16
WORDS = [
    f"{letter}{letter.upper()}-{number:02}" for number, letter in enumerate("abcdefghijklmnop")
]


async def _answer(endpoint: Endpoint, word: str, stream: bool) -> tuple[str, str]:
    found = await json_answer(endpoint, Case("word", fixed(word)), stream=stream)
    return word, value_of(found)


async def _call(endpoint: Endpoint, word: str, stream: bool) -> tuple[str, str]:
    call = await forced_call(endpoint, Case("word", fixed(word)), stream=stream)
    return word, value_of(call.arguments)


def _check(pairs: list[tuple[str, str]]) -> None:
    for wanted, found in pairs:
        if wanted != found:
            raise Failed(f"the stream that had to say {wanted} said {shown(found)}")


@group.check("answers", f"{STREAMS} streams at once, each with a schema that fixes another word")
async def answers(endpoint: Endpoint) -> None:
    _check(await asyncio.gather(*(_answer(endpoint, word, True) for word in WORDS)))


@group.check(
    "calls", f"{STREAMS} forced calls at once, each fixed to another word, half of them streamed"
)
async def calls(endpoint: Endpoint) -> None:
    asked = (_call(endpoint, word, number % 2 == 0) for number, word in enumerate(WORDS))
    _check(await asyncio.gather(*asked))
