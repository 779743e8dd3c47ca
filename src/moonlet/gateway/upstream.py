"""Somebody else's endpoints as a provider: one model, asked for at several places in order.

Until the first event has come nobody has seen anything, so a request that fails may be made again: at the
same place while that promises something, then at the next. After it nothing is tried again, for the
client would get two beginnings.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from moonlet.chat.provider import ChatRequest, Event, ModelCard
from moonlet.chat.sources import DATA_URLS_ONLY, MediaAccess
from moonlet.errors import UpstreamError
from moonlet.gateway.ask import Patience, ask, http_client
from moonlet.gateway.chunks import Chunks
from moonlet.gateway.endpoint import Endpoint
from moonlet.gateway.media import inlined

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # at one endpoint
PAUSE_S = 0.5  # before the second; twice as long before the third
LONGEST_PAUSE_S = 20.0  # an endpoint that wants to be left alone for longer is not waited for
SILENCE_S = 600.0  # as in the official clients: a cold prompt of a large model takes minutes
REST_S = 15.0  # for which an endpoint that failed comes after the others


@dataclass
class Trail:
    """What became of a request, for the ledger. rough: its tokens are estimates."""

    endpoint: Endpoint | None = None
    attempts: int = 0
    rough: bool = False


class Upstream:
    """A provider for `card`, at `endpoints` in the order in which they are to be asked.

    access: where images and videos may come from besides data URLs. The connections belong to the event
    loop that asks; `aclose` ends them there.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        card: ModelCard,
        access: MediaAccess = DATA_URLS_ONLY,
        *,
        silence_s: float = SILENCE_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.card = card
        self.endpoints = tuple(endpoints)
        self._access = access
        self._silence_s, self._pause_s = silence_s, pause_s
        self._client = http_client()
        self._rests_until: dict[Endpoint, float] = {}

    def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Events of all choices. Raises PromptError, MediaError and UpstreamError."""
        return self.answer(request, Trail())

    async def answer(self, request: ChatRequest, trail: Trail) -> AsyncGenerator[Event, None]:
        """The same, writing down in `trail` where it is asked."""
        patience = Patience(self._silence_s)
        if request.deadline_s is not None:
            patience.ends = asyncio.get_running_loop().time() + request.deadline_s
        request = replace(request, messages=await inlined(request.messages, self._access))
        places, tries = self._in_order(), 0
        while True:
            endpoint, tries = places[0], tries + 1
            trail.endpoint, trail.attempts = endpoint, trail.attempts + 1
            chunks, begun = Chunks(str(endpoint), request), False
            try:
                async with aclosing(ask(self._client, endpoint, chunks, patience)) as events:
                    async for event in events:
                        begun, trail.rough = True, chunks.rough
                        yield event
                self._rests_until.pop(endpoint, None)
                return
            except UpstreamError as error:
                failed = error
            logger.warning("%s", failed)
            pause = self._pause(failed, tries)
            if begun or pause is None:
                self._let_rest(places.pop(0), failed)
                if begun or not places:
                    raise failed
                tries = 0
            else:
                await asyncio.sleep(pause)

    async def aclose(self) -> None:
        """Ends the connections that are kept open."""
        await self._client.aclose()

    def close(self) -> None:
        """Nothing is held but connections, which end with their event loop at the latest."""

    def _in_order(self) -> list[Endpoint]:
        """Those that have not just failed first."""
        now = asyncio.get_running_loop().time()
        return sorted(self.endpoints, key=lambda place: self._rests_until.get(place, 0.0) > now)

    def _let_rest(self, endpoint: Endpoint, error: UpstreamError) -> None:
        wanted = error.retry_after_s or 0.0
        now = asyncio.get_running_loop().time()
        self._rests_until[endpoint] = now + max(REST_S, wanted)

    def _pause(self, error: UpstreamError, tries: int) -> float | None:
        """Seconds before the same endpoint is asked again, after so many tries; None when it is not."""
        if not error.retry or tries >= ATTEMPTS:
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= LONGEST_PAUSE_S else None
        return self._pause_s * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
