"""What those who run the server look at: whether it lives, whether it can answer, what it counts."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from moonlet.server.errors import ApiError
from moonlet.server.metrics import CONTENT_TYPE
from moonlet.server.openapi import HEALTH, operation
from moonlet.server.state import State, json_response


def add_health(app: FastAPI, state: State) -> None:
    @app.get("/health", **operation("Whether the server lives", HEALTH))
    async def health() -> Response:
        return json_response({"status": "ok"})

    @app.get("/health/ready", **operation("Whether the model is loaded: 503 until then", HEALTH))
    async def ready(request: Request) -> Response:
        try:
            model = state.provider.card.id
        except ApiError as error:
            told = {"status": "unavailable", **state.error_body(request.scope, error)}
            return json_response(told, error.status, error.headers)
        return json_response({"status": "ok", "model": model})

    @app.get("/metrics", **operation("Counts for Prometheus", ("text/plain",)))
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)
