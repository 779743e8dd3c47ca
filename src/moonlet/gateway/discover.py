"""What an endpoint says of itself in `/models`: what its model is called there, and what it can do.

Asked once, at the start, and not for long: an endpoint that is away then may be back when it is needed, so
it is taken as the command line describes it, with the abilities of the models this is made for.

How it is told whether to think follows from the software that it runs, whose name many put into `owned_by`;
what is none of these understands Kimi's way or ignores it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx2

from moonlet.chat.provider import ModelCard
from moonlet.errors import ConfigError, UpstreamError
from moonlet.gateway.ask import LOST, headers, http_client, lost
from moonlet.gateway.body import Thinking
from moonlet.gateway.endpoint import Endpoint
from moonlet.gateway.refusal import failure
from moonlet.gateway.sse import MAX_LINE, parse_object

PATIENCE_S = 10.0
CONTEXT = 262_144  # tokens, of K2.5: where nobody says it

_THINKING: dict[str, Thinking] = {
    "vllm": "template",
    "sglang": "template",
    "llamacpp": "template",
    "openai": "effort",
    "openai-internal": "effort",
    "system": "effort",  # OpenAI's too
}
_CONTEXT_NAMES = ("context_length", "max_model_len", "context_window", "max_context_length")


@dataclass(frozen=True)
class Listed:
    """One entry of a list; None is what it does not say."""

    id: str
    owner: str | None = None
    created: int | None = None
    context_length: int | None = None
    images: bool | None = None
    video: bool | None = None
    reasoning: bool | None = None


@dataclass(frozen=True)
class Found:
    """The endpoints of one NAME as they will be asked, and what could not be found out, as sentences."""

    endpoints: tuple[Endpoint, ...]
    card: ModelCard
    warnings: tuple[str, ...]


async def discover(endpoints: Sequence[Endpoint]) -> Found:
    """Completes the endpoints of one NAME. Raises ConfigError where it is not clear which model is meant."""
    found: list[Endpoint] = []
    entries: list[Listed] = []
    warnings: list[str] = []
    async with http_client() as client:
        lists = await asyncio.gather(*(_list(client, endpoint) for endpoint in endpoints))
    for endpoint, listed in zip(endpoints, lists, strict=True):
        if isinstance(listed, UpstreamError):
            warnings.append(f"{listed}; it is taken as it was given")
            found.append(replace(endpoint, model=endpoint.model or endpoint.name))
            continue
        entry = _chosen(endpoint, listed)
        thinking = endpoint.thinking or _THINKING.get(entry.owner or "", "type")
        found.append(replace(endpoint, model=entry.id, thinking=thinking))
        entries.append(entry)
    return Found(tuple(found), _card(found, entries), tuple(warnings))


def _chosen(endpoint: Endpoint, listed: list[Listed]) -> Listed:
    wanted = endpoint.model or endpoint.name
    for entry in listed:
        if entry.id == wanted:
            return entry
    if endpoint.model is not None or not listed:
        return Listed(wanted)  # not every list is complete; who names a model knows it
    if len(listed) == 1:
        return listed[0]
    shown = ", ".join(entry.id[:60] for entry in listed[:5])
    raise ConfigError(
        f"{endpoint} has {len(listed)} models ({shown}{', ...' if len(listed) > 5 else ''}) and none is "
        f"called {endpoint.name}: say which with {endpoint.url}#model=..."
    )


def _card(endpoints: Sequence[Endpoint], entries: Sequence[Listed]) -> ModelCard:
    """What all of them can do, as far as they say; the shortest context that any of them has."""
    thinks = any(endpoint.thinking != "none" for endpoint in endpoints)
    return ModelCard(
        id=endpoints[0].name,
        created=next((e.created for e in entries if e.created), int(time.time())),
        context_length=min(
            [e.context_length for e in entries if e.context_length], default=CONTEXT
        ),
        supports_images=all(entry.images is not False for entry in entries),
        supports_video=any(entry.video for entry in entries)
        and all(entry.video is not False for entry in entries),
        supports_reasoning=thinks and all(entry.reasoning is not False for entry in entries),
    )


async def _list(client: httpx2.AsyncClient, endpoint: Endpoint) -> list[Listed] | UpstreamError:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return _entries(await _fetched(client, endpoint), str(endpoint))
    except TimeoutError:
        return UpstreamError(f"{endpoint} did not list its models within {PATIENCE_S:g} seconds")
    except UpstreamError as error:
        return UpstreamError(endpoint.hide(str(error)))
    except LOST as error:
        return lost(error, str(endpoint))


async def _fetched(client: httpx2.AsyncClient, endpoint: Endpoint) -> dict[str, Any]:
    url = f"{endpoint.url}/models"
    async with client.stream("GET", url, headers=headers(endpoint)) as response:
        data = await _bounded(response.aiter_raw(), str(endpoint))
        body = {} if response.status_code != 200 else parse_object(data, str(endpoint))
        if response.status_code != 200:
            problem = failure(response.status_code, body, response.headers, str(endpoint))
            raise UpstreamError(str(problem))
        return body


async def _bounded(pieces: AsyncIterator[bytes], who: str) -> bytes:
    data = bytearray()
    async for piece in pieces:
        data += piece
        if len(data) > MAX_LINE:
            raise UpstreamError(f"{who} sent a list of models of more than {MAX_LINE} bytes")
    return bytes(data)


def _entries(body: dict[str, Any], who: str) -> list[Listed]:
    data = body.get("data")
    if not isinstance(data, list):
        raise UpstreamError(f"{who} sent no list of models")
    return [_entry(item) for item in data if isinstance(item, dict) and _is_id(item.get("id"))]


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _entry(raw: dict[str, Any]) -> Listed:
    """Kimi's, vLLM's and OpenRouter's members; one of another type is as good as none."""
    sizes = [value for name in _CONTEXT_NAMES if _is_size(value := raw.get(name))]
    created, owner = raw.get("created"), raw.get("owned_by")
    return Listed(
        raw["id"],
        owner if isinstance(owner, str) else None,
        created if _is_size(created) else None,
        sizes[0] if sizes else None,
        _flag(raw, "supports_image_in"),
        _flag(raw, "supports_video_in"),
        _flag(raw, "supports_reasoning"),
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**40


def _flag(raw: dict[str, Any], name: str) -> bool | None:
    value = raw.get(name)
    return value if isinstance(value, bool) else None
