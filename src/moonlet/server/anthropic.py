"""`/v1/messages`: Anthropic's API, which Claude Code and the `anthropic` client speak.

    POST /v1/messages                 plain or streamed
    POST /v1/messages/count_tokens    how long the prompt is

Both also under `/anthropic`, the base address of the Kimi API for such clients.
"""

import dataclasses
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from moonlet.errors import MediaError, PromptError
from moonlet.server.answer import Answer
from moonlet.server.anthropic_in import to_chat
from moonlet.server.anthropic_out import MessageEncoder, error_body
from moonlet.server.anthropic_schema import (
    COUNT_REQUEST,
    MESSAGES_ANSWER,
    MESSAGES_ERROR,
    MESSAGES_REQUEST,
    TOKENS,
)
from moonlet.server.dialect import Places
from moonlet.server.errors import ApiError
from moonlet.server.openapi import operation
from moonlet.server.profiles import OPEN
from moonlet.server.request import ApiRequest, parse_request
from moonlet.server.state import State, json_response


def add_messages(app: FastAPI, state: State) -> None:
    for prefix in ("/v1/messages", "/anthropic/"):
        state.error_bodies[prefix] = error_body
    # The members that a profile takes are those of chat completions; here all of Anthropic's are.
    profile = dataclasses.replace(
        state.profile, members=None, thinking_members=OPEN.thinking_members
    )

    def parse(body: dict[str, Any], *, counts: bool = False) -> tuple[ApiRequest, Places]:
        card = state.provider_for(body).card
        chat, places = to_chat(body, counts=counts)
        try:
            return parse_request(chat, card, profile), places
        except (ApiError, PromptError, MediaError) as error:
            raise places.relocated(error) from error

    answers = operation(
        "Answer messages", MESSAGES_ANSWER, MESSAGES_REQUEST, streams=True, error=MESSAGES_ERROR
    )
    counts = operation("Count the tokens of messages", TOKENS, COUNT_REQUEST, error=MESSAGES_ERROR)

    @app.post("/v1/messages", **answers)
    @app.post("/anthropic/v1/messages", **answers)
    async def messages(request: Request) -> Response:
        asked, places = await state.read(request, parse)
        encoder = MessageEncoder(asked.model, asked.shows_reasoning)
        events = places.relocate(state.answer(request, asked.model, asked.chat))
        return Answer(state, events, encoder, stream=asked.stream, headers=asked.headers)

    @app.post("/v1/messages/count_tokens", **counts)
    @app.post("/anthropic/v1/messages/count_tokens", **counts)
    async def count_tokens(request: Request) -> Response:
        asked, places = await state.read(request, lambda body: parse(body, counts=True))
        try:
            count = await state.text_named(asked.model).count_tokens(asked.chat)
        except (PromptError, MediaError) as error:
            raise places.relocated(error) from error
        return json_response({"input_tokens": count})
