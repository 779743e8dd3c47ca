"""What all routes share, and how a dialect joins.

A dialect (chat completions, Responses, Anthropic messages, ...) is a file with one function:

    def add_messages(app: FastAPI, state: State) -> None:
        state.error_bodies["/v1/messages"] = error_body  # only where its errors have a shape of their own

        @app.post("/v1/messages", **operation(...))  # openapi.py
        async def messages(request: Request) -> Response:
            def parse(body: dict[str, Any]) -> Asked:  # raises ApiError, PromptError, MediaError
                return parse_message_request(body, state.provider_for(body).card, state.profile)

            asked = await state.read(request, parse)
            events = state.answer(request, asked.model, asked.chat)
            return Answer(state, events, MessageEncoder(...), stream=asked.stream, headers=asked.headers)

`create_app` calls it. What is raised, before the route or in it, becomes the error object of the path.
`answer.py` says what an encoder is; `chat.py` is the model to follow.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from moonlet.chat.provider import ChatRequest, Event, Provider, TextProvider
from moonlet.server.auth import ApiKeys
from moonlet.server.body import SMALL_BODY_BYTES, BodyBudget, parse_object, read_body
from moonlet.server.closing import Closing
from moonlet.server.encode import to_json
from moonlet.server.errors import ApiError, as_api_error, error_body
from moonlet.server.fields import text
from moonlet.server.file_store import FileStore
from moonlet.server.metrics import Metrics
from moonlet.server.profiles import OPEN, Profile
from moonlet.server.watch import MAX_WAITING, Tracing, Watch

MAX_BODY_BYTES = 100 * 2**20  # what the Kimi API takes: a video as a data URL fits
BODIES_AT_ONCE = 8  # of the largest size, in memory at the same time
KEEP_ALIVE_S = 10.0

ErrorBody = Callable[[ApiError, str | None], dict[str, Any]]
T = TypeVar("T")


class State:
    """One server. `loading` is the provider, or the promise of one; `others` answer beside it, from the start.

    error_bodies: path prefix -> how errors are told there, where not as OpenAI tells them. public: the
    paths that need no API key.
    """

    def __init__(
        self,
        loading: Provider | Future[Provider],
        others: Sequence[Provider] = (),
        *,
        profile: Profile = OPEN,
        keys: ApiKeys | None = None,
        max_waiting: int = MAX_WAITING,
        max_body_bytes: int = MAX_BODY_BYTES,
        keep_alive_s: float = KEEP_ALIVE_S,
        tracing: Tracing | None = None,
        files: FileStore | None = None,
    ) -> None:
        self.loading = loading
        self.others = tuple(others)
        self.profile = profile
        self.keys = keys or ApiKeys()
        self.keep_alive_s = keep_alive_s
        self.files = files or FileStore()
        self.bodies = BodyBudget(max_body_bytes, BODIES_AT_ONCE)
        self.metrics = Metrics(self._stats)
        self.closing = Closing()
        self.watch = Watch(self.metrics, max_waiting, tracing)
        self.error_bodies: dict[str, ErrorBody] = {}
        self.public = {"/health", "/health/ready", "/metrics", "/openapi.json"}

    @property
    def provider(self) -> Provider:
        """The first of those who answer. Raises ApiError (503) as long as it is being loaded."""
        if not isinstance(self.loading, Future):
            return self.loading
        if not self.loading.done():
            raise _unavailable("the model is still being loaded", {"Retry-After": "5"})
        if self.loading.cancelled() or self.loading.exception() is not None:
            raise _unavailable("the model could not be loaded; the server's log says why", {})
        return self.loading.result()

    @property
    def providers(self) -> list[Provider]:
        """All who can answer now. Raises ApiError (503) where nobody can yet."""
        try:
            return [self.provider, *self.others]
        except ApiError:
            if not self.others:
                raise
            return [*self.others]

    def provider_for(self, body: dict[str, Any]) -> Provider:
        """Who answers as the `model` of `body`. Raises ApiError: 400 without a name, 404 for another."""
        return self.named(text(body, "model", required=True) or "")

    def named(self, model: str) -> Provider:
        """Who answers as that model. Raises ApiError: 404, or 503 if it may be the one that is loaded."""
        for provider in self.others:
            if provider.card.id == model:
                return provider
        if self.provider.card.id == model:
            return self.provider
        names = ", ".join(repr(provider.card.id) for provider in self.providers)
        raise ApiError(
            f"Not found the model {model[:200]} or Permission denied: this server has {names}",
            "model",
            status=404,
            kind="resource_not_found_error",
            code="model_not_found",
        )

    def text_named(self, model: str) -> TextProvider:
        """The same, where plain text and counts are needed. Raises ApiError (404) if it has none."""
        provider = self.named(model)
        if not hasattr(provider, "complete"):
            raise ApiError(
                f"the model {model!r} takes conversations only, no plain text, and does not count tokens",
                "model",
                status=404,
                kind="resource_not_found_error",
            )
        return provider  # pyright: ignore[reportReturnType]

    def answer(
        self, request: Request, model: str, chat: ChatRequest
    ) -> AsyncGenerator[Event, None]:
        """The events of the answer of `model`, on the account of who sent `request`. Raises as `named`."""
        return self.named(model).stream(replace(chat, asked_by=asked_by(request)))

    async def aclose(self) -> None:
        """Ends what providers keep open in this event loop, for those that do."""
        with suppress(ApiError):
            for provider in self.providers:
                if close := getattr(provider, "aclose", None):
                    await close()

    async def read(self, request: Request, parse: Callable[[dict[str, Any]], T]) -> T:
        """What `parse` makes of the JSON object in the body, off the event loop if the body is large.

        Raises ApiError and whatever `parse` raises.
        """
        self.watch.check_room()  # before the body takes memory
        body = await read_body(request, self.bodies)

        def work() -> T:
            return parse(parse_object(body))

        # From there on parsing would hold up the other requests.
        return await asyncio.to_thread(work) if len(body) > SMALL_BODY_BYTES else work()

    def refusal(self, scope: Scope, error: Exception) -> Response:
        """`error` as the whole answer to the request of `scope`."""
        known = as_api_error(error)
        self.metrics.refused.labels(str(known.status)).inc()
        return json_response(self.error_body(scope, known), known.status, known.headers)

    def error_body(self, scope: Scope, error: ApiError) -> dict[str, Any]:
        """The error object of the dialect that is spoken at the request's path."""
        path = scope["path"]
        tellers = (tell for prefix, tell in self.error_bodies.items() if path.startswith(prefix))
        request_id = scope.get("state", {}).get("request_id") if self.profile.extras else None
        return next(tellers, error_body)(error, request_id)

    def _stats(self) -> dict[str, float]:
        """What the provider counts itself, if it does."""
        try:
            stats = getattr(self.provider, "stats", None)
        except ApiError:
            return {}
        return stats() if stats else {}


def asked_by(request: Request) -> str | None:
    """The digest of the API key that `request` was sent with."""
    return request.scope.get("state", {}).get("asked_by")


def json_response(
    value: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`value` as compact JSON."""
    return Response(to_json(value), status, headers, media_type="application/json")


def _unavailable(message: str, headers: dict[str, str]) -> ApiError:
    return ApiError(message, status=503, kind="server_unavailable", headers=headers)
