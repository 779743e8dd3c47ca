"""`/v1/models`: what is served here."""

from fastapi import FastAPI
from starlette.responses import Response

from moonlet.server.encode import model_object
from moonlet.server.openapi import MODEL, MODELS, operation
from moonlet.server.state import State, json_response


def add_models(app: FastAPI, state: State) -> None:
    @app.get("/v1/models", **operation("The models that are served", MODELS))
    async def models() -> Response:
        extras = state.profile.extras
        shown = [model_object(provider.card, extras) for provider in state.providers]
        return json_response({"object": "list", "data": shown})

    @app.get("/v1/models/{name:path}", **operation("One of them", MODEL))
    async def model(name: str) -> Response:
        return json_response(model_object(state.named(name).card, state.profile.extras))
