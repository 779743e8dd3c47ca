"""A provider whose requests are written down, have a price, and are made only within a budget.

It stands before any other provider, one of this process too. The cost of an answer goes out with its usage.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    Provider,
    ReasoningDelta,
    TextDelta,
    TextProvider,
    TextRequest,
    ToolCallDelta,
    Usage,
    total_usage,
)
from moonlet.errors import MediaError, PromptError
from moonlet.gateway.budgets import Budgets
from moonlet.gateway.ledger import End, Ledger
from moonlet.gateway.upstream import Trail, Upstream
from moonlet.gateway.usage import BYTES_EACH, rough_tokens
from moonlet.plan.prices import FREE, Price

USUAL_ANSWER = 1024  # tokens, to estimate a cost with where a request sets no limit

Ask = Callable[[Trail], AsyncGenerator[Event, None]]


def metered(provider: Provider, ledger: Ledger, budgets: Budgets) -> "Metered":
    """`provider` behind the ledger, with plain text if it has that."""
    if hasattr(provider, "complete"):
        return MeteredText(provider, ledger, budgets)  # pyright: ignore[reportArgumentType]
    return Metered(provider, ledger, budgets)


class Metered:
    """Conversations behind the ledger. What the provider itself counts it tells as before."""

    def __init__(self, provider: Provider, ledger: Ledger, budgets: Budgets) -> None:
        self.card = provider.card
        self._provider = provider
        self._ledger, self._budgets = ledger, budgets

    def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Events of all choices. Raises QuotaError before the first, and what the provider raises."""
        provider = self._provider

        def ask(trail: Trail) -> AsyncGenerator[Event, None]:
            if isinstance(provider, Upstream):
                return provider.answer(request, trail)
            return provider.stream(request)

        return self._kept(request, ask)

    def stats(self) -> dict[str, float]:
        stats = getattr(self._provider, "stats", None)
        return stats() if stats else {}

    async def aclose(self) -> None:
        if isinstance(self._provider, Upstream):
            await self._provider.aclose()

    def close(self) -> None:
        self._provider.close()

    async def _kept(
        self, request: ChatRequest | TextRequest, ask: Ask
    ) -> AsyncGenerator[Event, None]:
        account = _Account(request, self._first_price())
        asked_by, estimate = request.asked_by, account.estimate()
        self._budgets.set_aside(asked_by, estimate)
        row_id = self._ledger.new_id()
        end: End | None = None
        try:
            await self._ledger.begin(
                row_id, self.card.id, asked_by, account.prompt, account.least()
            )
            async with aclosing(ask(account.trail)) as events:
                async for event in events:
                    account.saw(event)
                    if end is None and len(account.usages) == request.n:
                        end = account.end("ok")
                        # In the file before it is told: who has a whole answer has a whole row.
                        await self._ledger.end(row_id, end)
                    if end is not None and isinstance(event, Finish):
                        event = replace(event, usage=replace(event.usage, cost=end.cost))
                    yield event
            end = end or account.end("failed")
        except (PromptError, MediaError):
            end = end or account.end("refused")
            raise
        except Exception:
            end = end or account.end("failed")
            raise
        finally:
            end = end or account.end("left")
            if end.status != "ok":
                self._ledger.end_later(row_id, end)
            self._budgets.settle(asked_by, estimate, end.cost or 0.0)

    def _first_price(self) -> Price | None:
        """Of the endpoint that is asked first; a model of this process costs nothing."""
        if isinstance(self._provider, Upstream):
            return self._provider.endpoints[0].price
        return FREE


class MeteredText(Metered):
    """Plain text too; counting is free."""

    def __init__(self, provider: TextProvider, ledger: Ledger, budgets: Budgets) -> None:
        super().__init__(provider, ledger, budgets)
        self._text = provider
        self.count_tokens, self.prompt_ids = provider.count_tokens, provider.prompt_ids
        self.tokenize, self.detokenize = provider.tokenize, provider.detokenize

    def complete(self, request: TextRequest) -> AsyncGenerator[Event, None]:
        """TextDelta* Finish of each choice. Raises as `stream` does."""
        return self._kept(request, lambda _: self._text.complete(request))


@dataclass
class _Account:
    """What is known of one request so far. written: bytes of UTF-8 of its answer."""

    request: ChatRequest | TextRequest
    first_price: Price | None
    trail: Trail = field(default_factory=Trail)
    usages: list[Usage] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    written: int = 0

    def __post_init__(self) -> None:
        self.prompt = rough_tokens(self.request)

    def estimate(self) -> float:
        """Dollars that it may cost."""
        answer = (self.request.max_tokens or USUAL_ANSWER) * self.request.n
        return self._cost(Usage(self.prompt, answer, 0)) or 0.0

    def least(self) -> float | None:
        """Dollars for the prompt alone."""
        return self._cost(Usage(self.prompt, 0, 0))

    def saw(self, event: Event) -> None:
        match event:
            case ReasoningDelta() | TextDelta():
                self.written += len(event.text.encode("utf-8", "replace"))
            case ToolCallDelta():
                self.written += len(event.arguments.encode("utf-8", "replace"))
            case Finish():
                self.usages.append(event.usage)
            case _:
                return
        if self.first_s is None:
            self.first_s = time.monotonic() - self.began

    def end(self, status: str) -> End:
        """What to write down. Of an answer without an end the tokens are estimated.

        Where nothing had come yet only who has left pays: the prompt is worked on all the same.
        """
        whole = status == "ok"
        if whole:
            usage = total_usage(self.usages)
        elif self.first_s is not None or (status == "left" and self.trail.attempts):
            usage = Usage(self.prompt, -(-self.written // BYTES_EACH), 0)
        else:
            usage = Usage(0, 0, 0)
        place = self.trail.endpoint
        return End(
            status,
            usage,
            self._cost(usage),
            None if place is None else place.host,
            self.trail.attempts,
            self.trail.rough or not whole,
            self.first_s,
            time.monotonic() - self.began,
        )

    def _cost(self, usage: Usage) -> float | None:
        place = self.trail.endpoint
        price = self.first_price if place is None else place.price
        return None if price is None else price.of(usage)
