"""The routes: `create_app(provider)` is the whole server, apart from the socket.

    GET  /health                 alive
    GET  /v1/models              the one model that is served
    GET  /v1/models/{id}
    POST /v1/chat/completions    plain or streamed

A request goes body -> request -> answer; every refusal, the router's too, has OpenAI's shape.
"""

import asyncio

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from moonlet.chat.provider import Provider
from moonlet.errors import MoonletError
from moonlet.server.answer import Answer
from moonlet.server.body import parse_object, read_body
from moonlet.server.encode import model_object, to_json
from moonlet.server.errors import as_api_error
from moonlet.server.request import ApiRequest, check_model, parse_request

MAX_BODY_BYTES = 100 * 2**20  # what the Kimi API takes: a video as a data URL fits
LARGE_BODY_BYTES = 2**20  # from here on parsing would hold up the other requests
KEEP_ALIVE_S = 10.0


def create_app(
    provider: Provider,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> FastAPI:
    """The API in front of `provider`. A stream that is silent for `keep_alive_s` sends a comment."""
    app = FastAPI(
        title="moonlet", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    for kind in (MoonletError, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [model_object(provider.card)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        check_model(name, provider.card)
        return _json(model_object(provider.card))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, max_body_bytes)

        def parse() -> ApiRequest:
            return parse_request(parse_object(body), provider.card)

        large = len(body) > LARGE_BODY_BYTES
        return Answer(provider, await asyncio.to_thread(parse) if large else parse(), keep_alive_s)

    return app


async def _refuse(request: Request, error: Exception) -> Response:
    refusal = as_api_error(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return _json(refusal.body, refusal.status, headers)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, media_type="application/json")
