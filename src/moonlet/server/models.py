"""`/v1/models`: what is served here."""

from fastapi import FastAPI
from starlette.responses import Response

from moonlet.server.encode import model_object
from moonlet.server.openapi import MODEL, MODELS, operation
from moonlet.server.state import State, json_response


def add_models(app: FastAPI, state: State) -> None:
    @app.get("/v1/models", **operation("The models that are served", MODELS))
    async def models() -> Response:
        shown = model_object(state.provider.card, state.profile.extras)
        return json_response({"object": "list", "data": [shown]})

    @app.get("/v1/models/{name:path}", **operation("One of them", MODEL))
    async def model(name: str) -> Response:
        return json_response(model_object(state.named(name).card, state.profile.extras))
