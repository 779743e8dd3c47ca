"""Every answer is watched while it is made: admitted, counted, timed and traced.

A request waits until its answer begins and runs from then on. More than `max_waiting` of them are not
taken: a client that is told to come back later is better off than one in an endless queue.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

from starlette.types import Scope

from moonlet.chat.provider import Event, Finish, Started, Usage, total_usage
from moonlet.errors import MediaError, PromptError, QuotaError
from moonlet.server.errors import ApiError
from moonlet.server.metrics import Metrics

MAX_WAITING = 128
RETRY_AFTER_S = 5


class Span(Protocol):
    """What is told of one request to a tracing system; see trace.py."""

    def end(
        self, reasons: list[str], usage: Usage | None, failure: BaseException | None
    ) -> None: ...


class Tracing(Protocol):
    """Where spans come from."""

    def start(self, scope: Scope, model: str) -> Span: ...


class Watch:
    """Who waits and who runs on one server."""

    def __init__(
        self, metrics: Metrics, max_waiting: int = MAX_WAITING, tracing: Tracing | None = None
    ) -> None:
        self.metrics = metrics
        self.max_waiting = max_waiting
        self.tracing = tracing
        self.waiting = self.running = 0
        metrics.waiting.set_function(lambda: self.waiting)
        metrics.running.set_function(lambda: self.running)

    def check_room(self) -> None:
        """Raises ApiError (429) while as many wait as may."""
        if self.waiting >= self.max_waiting:
            raise ApiError(
                f"{self.waiting} requests are waiting already; try again later",
                status=429,
                kind="engine_overloaded_error",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )

    async def over(
        self, events: AsyncGenerator[Event, None], scope: Scope, model: str
    ) -> AsyncGenerator[Event, None]:
        """The same events. Raises ApiError (429) before the first when there is no room."""
        self.check_room()
        request = _Request(self, model, self.tracing and self.tracing.start(scope, model))
        try:
            async with aclosing(events):
                async for event in events:
                    request.saw(event)
                    yield event
        except (GeneratorExit, asyncio.CancelledError) as gone:
            request.end("abort", gone)
            raise
        except (ApiError, PromptError, MediaError, QuotaError) as refusal:
            request.end(None, refusal)  # the client's error, which is counted as a refusal
            raise
        except Exception as error:
            request.end("error", error)
            raise
        request.end()


class _Request:
    """One request from its arrival to its end."""

    def __init__(self, watch: Watch, model: str, span: Any) -> None:
        self.watch, self.metrics, self.model, self.span = watch, watch.metrics, model, span
        self.between = watch.metrics.between.labels(model)  # looked up once, not for every token
        self.began = time.monotonic()
        self.last: dict[int, float] = {}
        self.usages: list[Usage] = []
        self.reasons: list[str] = []
        watch.waiting += 1

    def saw(self, event: Event) -> None:
        if isinstance(event, Started):
            return  # there is no token yet
        now = time.monotonic()
        if not self.last:
            self.watch.waiting -= 1
            self.watch.running += 1
            self.metrics.first.labels(self.model).observe(now - self.began)
        elif event.choice in self.last and not isinstance(event, Finish):
            self.between.observe(now - self.last[event.choice])
        self.last[event.choice] = now
        if isinstance(event, Finish):
            self.usages.append(event.usage)
            self.reasons.append(event.reason)

    def end(self, outcome: str | None = None, failure: BaseException | None = None) -> None:
        if self.last:
            self.watch.running -= 1
        else:
            self.watch.waiting -= 1
        usage = total_usage(self.usages) if self.usages else None
        if usage is not None:
            self.metrics.used(self.model, usage)
        for reason in self.reasons or filter(None, [outcome]):
            self.metrics.ended.labels(self.model, reason).inc()
        self.metrics.whole.labels(self.model).observe(time.monotonic() - self.began)
        if self.span is not None:
            self.span.end(self.reasons, usage, failure)
