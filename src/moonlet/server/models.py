"""`/v1/models`: what is served here."""

from fastapi import FastAPI
from starlette.responses import Response

from moonlet.server.encode import model_object
from moonlet.server.state import State, json_response


def add_models(app: FastAPI, state: State) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [model_object(state.provider.card)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return json_response(model_object(state.named(name).card))
