"""The routes: `create_app(provider)` is the whole server, apart from the socket.

    GET  /health, /health/ready, /metrics       for those who run it
    GET  /openapi.json                          what the routes take and answer
    GET  /v1/models, /v1/models/{id}            the models that are served
    POST /v1/chat/completions                   plain or streamed
    POST /v1/responses, /v1/messages            the same in the words of OpenAI's Responses, of Anthropic
    POST /v1/completions                        plain text, without a template
    POST /v1/tokenizers/estimate-token-count, /tokenize, /detokenize
    POST /v1/files                              images and videos for messages, texts to read back

A request goes body -> request -> answer; every refusal, the router's too, has the shape of its dialect.
Each dialect registers its own routes: `state.py` says how.
"""

from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from moonlet.chat.provider import Provider
from moonlet.errors import MoonletError
from moonlet.server.anthropic import add_messages
from moonlet.server.auth import ApiKeys
from moonlet.server.chat import add_chat
from moonlet.server.completions import add_completions
from moonlet.server.edge import Edge
from moonlet.server.file_store import FileStore
from moonlet.server.files import add_files
from moonlet.server.health import add_health
from moonlet.server.models import add_models
from moonlet.server.openapi import describe
from moonlet.server.profiles import OPEN, Profile
from moonlet.server.responses import add_responses
from moonlet.server.state import KEEP_ALIVE_S, MAX_BODY_BYTES, State
from moonlet.server.tokens import add_tokens
from moonlet.server.watch import MAX_WAITING, Tracing

DIALECTS = (
    add_health,
    add_models,
    add_chat,
    add_responses,
    add_messages,
    add_completions,
    add_tokens,
    add_files,
)
_TOLD_TO_PAGES = (
    "x-request-id",
    "x-moonlet-repairs",
    "x-moonlet-cache",
    "x-moonlet-cost",
    "retry-after",
)


def create_app(
    provider: Provider | Future[Provider],
    others: Sequence[Provider] = (),
    *,
    profile: Profile = OPEN,
    api_keys: Sequence[str] = (),
    cors: Sequence[str] = (),
    max_waiting: int = MAX_WAITING,
    max_body_bytes: int = MAX_BODY_BYTES,
    keep_alive_s: float = KEEP_ALIVE_S,
    tracing: Tracing | None = None,
    files: FileStore | None = None,
) -> FastAPI:
    """The API in front of `provider`, or of the one that is still being loaded: 503 until then.

    others: providers of further models, each under its card's name; those that have an `aclose` are closed
    by it when the server shuts down.
    With `api_keys` a request needs one of them. cors: the origins whose pages may ask, "*" for all.
    A stream that is silent for `keep_alive_s` sends a comment. files: where uploads are kept, by default
    as long as the process lives. Raises ConfigError for an unusable key.
    """
    state = State(
        provider,
        others,
        profile=profile,
        keys=ApiKeys(api_keys),
        max_waiting=max_waiting,
        max_body_bytes=max_body_bytes,
        keep_alive_s=keep_alive_s,
        tracing=tracing,
        files=files,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await state.aclose()

    app = FastAPI(docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)

    async def refuse(request: Request, error: Exception) -> Response:
        return state.refusal(request.scope, error)

    app.add_exception_handler(MoonletError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    app.add_middleware(Edge, state=state)
    if cors:  # around the rest: a page may read refusals too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_TOLD_TO_PAGES,
        )
    for add_routes in DIALECTS:
        add_routes(app, state)
    describe(app)
    app.state.moonlet = state
    return app
