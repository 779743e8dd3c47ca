"""A scripted provider, so that servers and agents are tested without a model."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from moonlet.chat.provider import ChatRequest, Event, Finish, ModelCard, TextDelta, Usage
from moonlet.errors import EngineError

CARD = ModelCard(
    id="fake",
    created=1_700_000_000,
    context_length=4096,
    supports_images=True,
    supports_reasoning=True,
)


class FakeProvider:
    """Answers every request with the same script.

    A script holds events, which are yielded; `asyncio.Event`s, which are waited for; and
    exceptions, which are raised. `requests` records what was asked, `finished` and `closed` count
    the generators that ran to their end and those that were closed or cancelled before it.
    """

    def __init__(
        self, script: Sequence[Event | asyncio.Event | Exception], card: ModelCard = CARD
    ) -> None:
        self.script = list(script)
        self.card = card
        self.requests: list[ChatRequest] = []
        self.finished = 0
        self.closed = 0
        self.closed_event = asyncio.Event()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        try:
            for step in self.script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        except (GeneratorExit, asyncio.CancelledError):
            self.closed += 1
            self.closed_event.set()
            raise
        self.finished += 1

    def close(self) -> None: ...


def says(text: str, prompt_tokens: int = 1) -> list[Event]:
    """The script of a provider that answers `text`, one event per word, and stops."""
    words = text.split(" ")
    deltas = [TextDelta(word if i == 0 else f" {word}") for i, word in enumerate(words)]
    return [*deltas, Finish("stop", Usage(prompt_tokens, len(words), 0))]


def broken(message: str = "The fake engine broke.") -> EngineError:
    """What a script raises when the engine of a test fails."""
    return EngineError(message)
