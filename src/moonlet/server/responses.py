"""`/v1/responses`: OpenAI's newer API, which Codex and the agents of its SDK speak.

    POST   /v1/responses                plain or streamed
    POST   /v1/responses/input_tokens   how long the prompt is
    GET    /v1/responses/{id}           of those that are still kept
    DELETE /v1/responses/{id}

Its clients may send only what is new and name the response before it. That they can do here as well,
while both are kept (`responses_store.py`); a conversation sent whole never depends on it.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from moonlet.chat.provider import ModelCard
from moonlet.errors import MediaError, PromptError
from moonlet.server.answer import Answer
from moonlet.server.dialect import Places
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, choice, obj, text
from moonlet.server.openapi import operation
from moonlet.server.profiles import Profile
from moonlet.server.request import ApiRequest, parse_request
from moonlet.server.responses_in import input_items, to_chat, wants_opaque_reasoning
from moonlet.server.responses_items import Item
from moonlet.server.responses_out import ResponsesEncoder
from moonlet.server.responses_schema import (
    INPUT_TOKENS,
    RESPONSE_DELETED,
    RESPONSES_ANSWER,
    RESPONSES_REQUEST,
)
from moonlet.server.responses_store import ResponseStore
from moonlet.server.state import State, json_response

MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_TEXT = 16, 64, 512


def add_responses(app: FastAPI, state: State) -> None:
    store = ResponseStore()

    async def read(request: Request) -> "_Asked":
        body = await state.read(request, lambda body: body)
        card = state.provider_for(body).card
        history = store.history(text(body, "previous_response_id"))
        # Off the loop whatever the length of the body: the history may be much longer.
        return await asyncio.to_thread(_parse, body, history, card, state.profile)

    @app.post(
        "/v1/responses",
        **operation("Answer items", RESPONSES_ANSWER, RESPONSES_REQUEST, streams=True),
    )
    async def responses(request: Request) -> Response:
        asked = await read(request)
        encoder = ResponsesEncoder(
            asked.api.model,
            asked.echo,
            asked.api.shows_reasoning,
            asked.opaque_reasoning,
            keep=lambda response: store.put(response, asked.items) if asked.store else None,
        )
        events = asked.places.relocate(state.answer(request, asked.api.model, asked.api.chat))
        return Answer(state, events, encoder, stream=asked.api.stream, headers=asked.api.headers)

    @app.post(
        "/v1/responses/input_tokens",
        **operation("Count the tokens of items", INPUT_TOKENS, RESPONSES_REQUEST),
    )
    async def input_tokens(request: Request) -> Response:
        asked = await read(request)
        try:
            count = await state.text_named(asked.api.model).count_tokens(asked.api.chat)
        except (PromptError, MediaError) as error:
            raise asked.places.relocated(error) from error
        return json_response({"object": "response.input_tokens", "input_tokens": count})

    @app.get(
        "/v1/responses/{response_id}", **operation("A response that is kept", RESPONSES_ANSWER)
    )
    async def response(response_id: str) -> Response:
        return json_response(store.get(response_id))

    @app.delete("/v1/responses/{response_id}", **operation("Keep it no longer", RESPONSE_DELETED))
    async def delete_response(response_id: str) -> Response:
        store.delete(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})


@dataclass(frozen=True)
class _Asked:
    """One parsed request; `items` are those of its own input."""

    api: ApiRequest
    places: Places
    items: list[Item]
    store: bool
    opaque_reasoning: bool
    echo: dict[str, Any]


def _parse(body: dict[str, Any], history: list[Item], card: ModelCard, profile: Profile) -> _Asked:
    chat, places = to_chat(body, history)
    try:
        # The members of the profile are those of chat completions.
        api = parse_request(chat, card, replace(profile, members=None))
    except (ApiError, PromptError, MediaError) as error:
        raise places.relocated(error) from error
    return _Asked(
        api,
        places,
        input_items(body),
        boolean(body, "store") is not False,
        wants_opaque_reasoning(body),
        _echo(body),
    )


def _echo(body: dict[str, Any]) -> dict[str, Any]:
    """What the response object repeats of the request, with OpenAI's defaults. Raises ApiError."""
    _check_metadata(obj(body, "metadata"))
    choice(body, "truncation", ("auto", "disabled"))
    reasoning = obj(body, "reasoning")
    form = obj(body, "text").get("format") or {"type": "text"}
    defaults = {
        "background": False,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
    }
    sent = {name: body[name] for name in defaults if body.get(name) is not None}
    told = {"effort": reasoning.get("effort"), "summary": None}
    return {**defaults, **sent, "reasoning": told, "text": {"format": form}}


def _check_metadata(metadata: dict[str, Any]) -> None:
    """OpenAI's limits: what is said back in several events is not to be megabytes."""
    if len(metadata) > MAX_METADATA:
        raise ApiError(
            f"metadata has {len(metadata)} members, at most {MAX_METADATA} are kept", "metadata"
        )
    for name, value in metadata.items():
        if (
            not isinstance(value, str)
            or len(name) > MAX_METADATA_NAME
            or len(value) > MAX_METADATA_TEXT
        ):
            raise ApiError(
                f"metadata must hold strings of at most {MAX_METADATA_TEXT} characters under names of at most "
                f"{MAX_METADATA_NAME}",
                "metadata",
            )
