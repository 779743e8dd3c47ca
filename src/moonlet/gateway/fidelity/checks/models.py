"""The list of models, models that do not exist, and keys."""

from dataclasses import replace
from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.client import Reply, shown
from moonlet.gateway.fidelity.discovery import WINDOWS, window_of
from moonlet.gateway.fidelity.endpoint import Endpoint
from moonlet.gateway.fidelity.errors import Failed, Skipped
from moonlet.gateway.fidelity.shape import needed, objects

group = Group("models")
keys = Group("keys")

NO_MODEL = "moonlet-verify-no-such-model"
WRONG_KEY = "sk-moonlet-verify-no-such-key"


@group.check("list", "GET /models")
async def model_list(endpoint: Endpoint) -> None:
    reply = await endpoint.client.send("GET", "/models")
    if reply.status != 200:
        raise Failed(f"the list of models was answered with {reply.told}")
    if needed(reply.json, "object", str) != "list":
        raise Failed(f"the object of the list is {shown(reply.json['object'])}, not 'list'")
    entries = objects(reply.json, "data")
    for entry in entries:
        for name, kind in (("id", str), ("created", int), ("owned_by", str)):
            needed(entry, name, kind, "a model")
        if entry.get("object") != "model":
            raise Failed(f"the object of a model is {shown(entry.get('object'))}, not 'model'")
    if endpoint.model not in [entry["id"] for entry in entries]:
        raise Failed(f"the list does not have {shown(endpoint.model)}")


@group.check("window", "GET /models, to see how long a context may be", ("open", "kimi"))
async def window(endpoint: Endpoint) -> None:
    if window_of(await _entry(endpoint)) is None:
        raise Failed(f"the list does not say how long a context is, as {WINDOWS[0]} or otherwise")


@group.check("kimi-extras", "GET /models", ("kimi",))
async def extras(endpoint: Endpoint) -> None:
    entry = await _entry(endpoint)
    needed(entry, "context_length", int, "the model")
    for name in ("supports_image_in", "supports_video_in", "supports_reasoning"):
        needed(entry, name, bool, "the model")


async def _entry(endpoint: Endpoint) -> dict[str, Any]:
    """What the list says of the model; nothing for one that it does not have."""
    reply = await endpoint.client.send("GET", "/models")
    entries = objects(reply.json, "data")
    return next((entry for entry in entries if entry.get("id") == endpoint.model), {})


@group.check("one", "GET /models/ID")
async def one(endpoint: Endpoint) -> None:
    reply = await endpoint.client.send("GET", f"/models/{endpoint.model}")
    if reply.status in (404, 405):
        raise Skipped("the endpoint has no /models/ID")
    if reply.status != 200 or needed(reply.json, "id", str) != endpoint.model:
        raise Failed(f"its own model was answered with {reply.told}")


@group.check("unknown", "a chat with a model that does not exist")
async def unknown(endpoint: Endpoint) -> None:
    for stream in (False, True):
        reply = await endpoint.refused("an unknown model", 404, model=NO_MODEL, stream=stream)
        _kimi_type(endpoint, reply, "resource_not_found_error")


@keys.check("missing", "a chat without a key")
async def missing(endpoint: Endpoint) -> None:
    reply = await _with_key(endpoint, None).refused("a request without a key", 401)
    _kimi_type(endpoint, reply, "invalid_authentication_error")


@keys.check("wrong", "a chat with a wrong key")
async def wrong(endpoint: Endpoint) -> None:
    reply = await _with_key(endpoint, WRONG_KEY).refused("a wrong key", 401)
    _kimi_type(endpoint, reply, "incorrect_api_key_error", "invalid_authentication_error")


def _with_key(endpoint: Endpoint, key: str | None) -> Endpoint:
    if endpoint.client.key is None:
        raise Skipped("no key was given, so there is none to withhold")
    return replace(endpoint, client=replace(endpoint.client, key=key))


def _kimi_type(endpoint: Endpoint, reply: Reply, *wanted: str) -> None:
    if endpoint.profile != "kimi":
        return
    found = needed(reply.json, "error", dict, "the error body").get("type")
    if found not in wanted:
        raise Failed(f"the type of the error is {shown(found)}, not {' or '.join(wanted)}")
