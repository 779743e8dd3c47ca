"""What the endpoint says of itself before anything is checked."""

from dataclasses import replace
from typing import Any

from moonlet.gateway.fidelity.check import Profile
from moonlet.gateway.fidelity.client import Client, Reply
from moonlet.gateway.fidelity.endpoint import FEW_TOKENS, Endpoint
from moonlet.gateway.fidelity.errors import Failed, Unreachable, VerifyError

# How servers call the context of a model in their list.
WINDOWS = ("context_length", "max_model_len", "context_window", "max_context_length")


async def discover(client: Client, model: str | None, profile: Profile) -> Endpoint:
    """The endpoint with `model`, or with the first one that it lists. Raises what `find_model` raises."""
    name, entry = await find_model(client, model)
    images, thinks = entry.get("supports_image_in"), entry.get("supports_reasoning")
    endpoint = Endpoint(
        client,
        name,
        profile,
        window_of(entry),
        images if isinstance(images, bool) else None,
        thinks is not False,
    )
    if isinstance(thinks, bool) or await _seen_thinking(endpoint):
        return endpoint
    return replace(endpoint, thinks=False)


async def find_model(client: Client, model: str | None) -> tuple[str, dict[str, Any]]:
    """The name of `model`, or of the first that is listed, and what the list says of it.

    Raises VerifyError when nobody answers there, the key is refused, or no model can be told.
    """
    entry = _entry(await _models(client), model)
    name = model or entry.get("id")
    if not isinstance(name, str) or not name:
        raise VerifyError(f"{client.base} lists no model; name one with --model")
    return name, entry


def window_of(entry: dict[str, Any]) -> int | None:
    """The context of a model in tokens, as an entry of the list tells it."""
    meta = entry.get("meta")
    told = [entry.get(name) for name in WINDOWS]
    told.append(meta.get("n_ctx_train") if isinstance(meta, dict) else None)
    sizes = (size for size in told if isinstance(size, int) and not isinstance(size, bool))
    return next((size for size in sizes if 0 < size < 2**40), None)


async def _models(client: Client) -> Reply:
    try:
        reply = await client.send("GET", "/models")
    except Unreachable as error:
        raise VerifyError(
            f"cannot reach {client.base}: {error}; is a server running there?"
        ) from error
    except Failed as error:
        raise VerifyError(f"{client.base} does not speak the OpenAI API: {error}") from error
    if reply.status in (401, 403):
        wanted = "another API key" if client.key else "an API key"
        raise VerifyError(
            f"{client.base} wants {wanted}: give one with --api-key, or in MOONLET_API_KEY"
        )
    if reply.status >= 500:
        raise VerifyError(f"{client.base} cannot answer now: it said {reply.told}; try again later")
    return reply


def _entry(reply: Reply, model: str | None) -> dict[str, Any]:
    """The entry of `model`, or the first; empty without one. Vendors do not list all that they serve."""
    try:
        data = reply.json["data"]
        entries = [entry for entry in data if isinstance(entry, dict)]
    except (Failed, KeyError, TypeError):
        return {}
    return next((entry for entry in entries if model in (None, entry.get("id"))), {})


async def _seen_thinking(endpoint: Endpoint) -> bool:
    """Whether a small request with the switch on is answered with reasoning.

    Three tries, because a sampled answer may also end at once. Raises VerifyError when even this cannot
    be asked.
    """
    try:
        for seed in range(3):
            answer = await endpoint.ask(
                "What is 2+3?", think=True, tokens=4 * FEW_TOKENS, seed=seed
            )
            if answer.first.reasoning or (answer.usages and answer.reasoning_tokens):
                return True
    except Unreachable as error:
        raise VerifyError(f"{endpoint.client.base} broke off: {error}") from error
    except Failed:
        pass  # the checks will tell what is wrong with it
    return False
