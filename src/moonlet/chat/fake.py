"""A scripted provider, so that servers and agents are tested without a model."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    ModelCard,
    TextDelta,
    TextRequest,
    Usage,
)
from moonlet.errors import EngineError, PromptError

CARD = ModelCard(
    id="fake",
    created=1_700_000_000,
    context_length=4096,
    supports_images=True,
    supports_reasoning=True,
)


class FakeProvider:
    """Answers every request, of either kind, with the same script; its tokens are bytes of UTF-8.

    A script holds events, which are yielded; `asyncio.Event`s, which are waited for; and
    exceptions, which are raised. `requests` and `texts` record what was asked, `finished` and `closed`
    count the generators that ran to their end and those that were closed or cancelled before it.
    """

    def __init__(
        self, script: Sequence[Event | asyncio.Event | Exception], card: ModelCard = CARD
    ) -> None:
        self.script = list(script)
        self.card = card
        self.requests: list[ChatRequest] = []
        self.texts: list[TextRequest] = []
        self.finished = 0
        self.closed = 0
        self.closed_event = asyncio.Event()

    def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        return self._play()

    def complete(self, request: TextRequest) -> AsyncGenerator[Event, None]:
        self.texts.append(request)
        return self._play()

    async def prompt_ids(self, request: ChatRequest) -> list[int]:
        """As many as the script says, all alike."""
        return [0] * await self.count_tokens(request)

    async def count_tokens(self, request: ChatRequest) -> int:
        """What the script says, as for every request. Raises what the script raises."""
        self.requests.append(request)
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Finish):
                return step.usage.prompt_tokens
        raise broken()

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def detokenize(self, token_ids: list[int]) -> str:
        if any(token_id > 255 for token_id in token_ids):
            raise PromptError("There is no such token.", "tokens")
        return bytes(token_ids).decode(errors="replace")

    async def _play(self) -> AsyncGenerator[Event, None]:
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
