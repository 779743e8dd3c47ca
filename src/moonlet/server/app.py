"""The routes: `create_app(provider)` is the whole server, apart from the socket.

    GET  /health                 alive
    GET  /v1/models              the one model that is served
    GET  /v1/models/{id}
    POST /v1/chat/completions    plain or streamed

A request goes body -> request -> answer; every refusal, the router's too, has the shape of its dialect.
Each dialect registers its own routes: `state.py` says how.
"""

from concurrent.futures import Future

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from moonlet.chat.provider import Provider
from moonlet.errors import MoonletError
from moonlet.server.chat import add_chat
from moonlet.server.edge import Edge
from moonlet.server.models import add_models
from moonlet.server.profiles import OPEN, Profile
from moonlet.server.state import KEEP_ALIVE_S, MAX_BODY_BYTES, State, json_response


def create_app(
    provider: Provider | Future[Provider],
    *,
    profile: Profile = OPEN,
    max_body_bytes: int = MAX_BODY_BYTES,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> FastAPI:
    """The API in front of `provider`, or of the one that is still being loaded: 503 until then.

    A stream that is silent for `keep_alive_s` sends a comment.
    """
    app = FastAPI(
        title="moonlet", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    state = State(provider, profile, max_body_bytes, keep_alive_s)

    async def refuse(request: Request, error: Exception) -> Response:
        return state.refusal(request.scope, error)

    app.add_exception_handler(MoonletError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    app.add_middleware(Edge, state=state)

    @app.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok"})

    for add_routes in (add_models, add_chat):
        add_routes(app, state)
    return app
