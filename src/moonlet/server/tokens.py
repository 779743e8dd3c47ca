"""Counts and token ids of prompts, without an answer.

POST /v1/tokenizers/estimate-token-count    Kimi's: exactly the usage.prompt_tokens of the same chat
POST /tokenize  /detokenize                 vLLM's: plain text, or the prompt of a chat, to token ids; and back
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from moonlet.chat.provider import ChatRequest, TextProvider
from moonlet.server.chat_schema import CHAT_REQUEST
from moonlet.server.completions_in import token_ids
from moonlet.server.completions_schema import IDS
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, text
from moonlet.server.openapi import (
    BOOLEAN,
    COUNT,
    TEXT,
    either,
    listed,
    obj,
    operation,
    optional,
    request_schema,
)
from moonlet.server.request import ApiRequest, parse_request
from moonlet.server.state import State, json_response

_ESTIMATE = obj(("data",), data=obj(("total_tokens",), total_tokens=COUNT))
_CHOSEN = {"model": TEXT, "return_token_strs": BOOLEAN}
_TOKENIZE_REQUEST = either(
    request_schema({"prompt": TEXT}, _CHOSEN),
    request_schema({"messages": CHAT_REQUEST["properties"]["messages"]}, _CHOSEN),
)
_TOKENIZED = obj(
    ("count", "max_model_len", "tokens"),
    count=COUNT,
    max_model_len=COUNT,
    tokens=listed(COUNT),
    token_strs=optional(listed(TEXT)),
)
_DETOKENIZE_REQUEST = request_schema({"tokens": IDS}, {"model": TEXT})
_DETOKENIZED = obj(("prompt",), prompt=TEXT)


@dataclass(frozen=True)
class _Tokenize:
    """What to show the tokens of: a text, or the prompt of a conversation."""

    provider: TextProvider
    what: str | ChatRequest
    with_texts: bool


def add_tokens(app: FastAPI, state: State) -> None:
    @app.post(
        "/v1/tokenizers/estimate-token-count",
        **operation("Count the tokens of a conversation", _ESTIMATE, CHAT_REQUEST),
    )
    async def estimate(request: Request) -> Response:
        def parse(body: dict[str, Any]) -> ApiRequest:
            return parse_request(body, state.provider_for(body).card, state.profile)

        asked = await state.read(request, parse)
        count = await state.text_named(asked.model).count_tokens(asked.chat)
        return json_response({"data": {"total_tokens": count}})

    def provider_of(body: dict[str, Any]) -> TextProvider:
        """vLLM lets the model out; a wrong one is refused all the same."""
        return state.text_named(text(body, "model") or state.provider.card.id)

    def checked(body: dict[str, Any]) -> dict[str, Any]:
        provider_of(body)
        return body

    # The members that a profile takes are those of chat completions.
    profile = replace(state.profile, members=None)

    def asked(body: dict[str, Any]) -> _Tokenize:
        provider = provider_of(body)
        with_texts = bool(boolean(body, "return_token_strs"))
        if body.get("messages") is None:
            return _Tokenize(provider, text(body, "prompt", required=True) or "", with_texts)
        if boolean(body, "add_generation_prompt") is False:
            raise ApiError(
                "add_generation_prompt cannot be false: what is shown is the prompt of an answer",
                "add_generation_prompt",
            )
        chat = parse_request(body, provider.card, profile).chat
        return _Tokenize(provider, chat, with_texts)

    @app.post("/tokenize", **operation("A prompt as token ids", _TOKENIZED, _TOKENIZE_REQUEST))
    async def tokenize(request: Request) -> Response:
        wanted = await state.read(request, asked)
        provider = wanted.provider
        if isinstance(wanted.what, str):
            ids = await asyncio.to_thread(provider.tokenize, wanted.what)
        else:
            ids = await provider.prompt_ids(wanted.what)
        texts = None
        if wanted.with_texts:
            texts = await asyncio.to_thread(lambda: [provider.detokenize([i]) for i in ids])
        window = provider.card.context_length
        told = {"count": len(ids), "max_model_len": window, "tokens": ids, "token_strs": texts}
        return json_response(told)

    @app.post(
        "/detokenize", **operation("Token ids as plain text", _DETOKENIZED, _DETOKENIZE_REQUEST)
    )
    async def detokenize(request: Request) -> Response:
        body = await state.read(request, checked)
        ids = token_ids(body.get("tokens"), "tokens")
        return json_response({"prompt": await asyncio.to_thread(provider_of(body).detokenize, ids)})
