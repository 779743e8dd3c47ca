"""Many streams at once: each gets its own answer, and nothing of anybody else's."""

import asyncio

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.endpoint import Endpoint
from moonlet.gateway.fidelity.forced import forced_call, json_answer
from moonlet.gateway.fidelity.schemas import Case, fixed

group = Group("parallel")

# Each schema has one value only, so that an answer which satisfies it can be nobody else's.
STREAMS = 16
CASES = [
    Case("word", fixed(f"{letter}{letter.upper()}-{number:02}"))
    for number, letter in enumerate("abcdefghijklmnop")
]


@group.check("answers", f"{STREAMS} streams at once, each with a schema that fixes another word")
async def answers(endpoint: Endpoint) -> None:
    await asyncio.gather(*(json_answer(endpoint, case, stream=True) for case in CASES))


@group.check(
    "calls", f"{STREAMS} forced calls at once, each of another word, half of them streamed"
)
async def calls(endpoint: Endpoint) -> None:
    await asyncio.gather(
        *(forced_call(endpoint, case, stream=number % 2 == 0) for number, case in enumerate(CASES))
    )
