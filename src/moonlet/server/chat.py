"""`/v1/chat/completions`: what OpenAI's clients and Kimi's talk to."""

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from moonlet.server.answer import Answer
from moonlet.server.chat_schema import CHAT_ANSWER, CHAT_REQUEST
from moonlet.server.encode import ChatEncoder
from moonlet.server.openapi import operation
from moonlet.server.request import ApiRequest, parse_request
from moonlet.server.state import State


def add_chat(app: FastAPI, state: State) -> None:
    @app.post(
        "/v1/chat/completions",
        **operation("Answer a conversation", CHAT_ANSWER, CHAT_REQUEST, streams=True),
    )
    async def chat_completions(request: Request) -> Response:
        def parse(body: dict[str, Any]) -> ApiRequest:
            return parse_request(body, state.provider_for(body).card, state.profile)

        asked = await state.read(request, parse)
        encoder = ChatEncoder(
            asked.model,
            asked.include_usage,
            asked.chat.n,
            asked.chat.logprobs is not None,
            asked.shows_reasoning,
            state.profile.extras,
        )
        events = state.answer(request, asked.model, asked.chat)
        return Answer(state, events, encoder, stream=asked.stream, headers=asked.headers)
