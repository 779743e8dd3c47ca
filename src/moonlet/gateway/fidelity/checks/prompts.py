"""Prompts: how many tokens they have, and answers that begin where the client says."""

from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.checks.media import RED, TEXT, image
from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.endpoint import Endpoint, user
from moonlet.gateway.fidelity.errors import Failed, Refusal, Skipped
from moonlet.gateway.fidelity.shape import needed

group = Group("tokens")
partial = Group("partial")

ESTIMATE = "/tokenizers/estimate-token-count"
PREFIX = "The three primary colours are"


async def _estimate(endpoint: Endpoint, messages: list[dict[str, Any]]) -> None:
    """Kimi's route: exactly what the same chat will be billed."""
    told = await endpoint.route(ESTIMATE, {"model": endpoint.model, "messages": messages})
    if told.status != 200:
        raise Failed(f"the estimate was answered with {told.told}")
    count = needed(needed(told.json, "data", dict), "total_tokens", int, "data")
    for stream in (False, True):
        answer = await endpoint.ask(messages=messages, think=None, tokens=1, stream=stream)
        if answer.prompt_tokens != count:
            raise Failed(
                f"the estimate is {count} tokens, and usage.prompt_tokens {answer.prompt_tokens}"
            )


@group.check("estimate", "a conversation, counted and asked")
async def estimate(endpoint: Endpoint) -> None:
    system = {"role": "system", "content": "Be brief, and say 月之暗面 now and then."}
    turns = [user("Hi."), {"role": "assistant", "content": "Hello."}, user("Say OK. 😀")]
    await _estimate(endpoint, [system, *turns])


@group.check("estimate-image", "a conversation with an image, counted and asked")
async def estimate_image(endpoint: Endpoint) -> None:
    if not endpoint.images:
        raise Skipped("the model does not see, or does not say that it does")
    await _estimate(endpoint, [user([image(RED), TEXT, image(RED)])])


@group.check("grows", "a prompt and a longer one")
async def grows(endpoint: Endpoint) -> None:
    short, long = [await endpoint.ask(text, tokens=1) for text in ("Hi.", "Hi there, " * 8)]
    if long.prompt_tokens <= short.prompt_tokens:
        raise Failed(f"both have {long.prompt_tokens} tokens")


@group.check("tools-count", "a prompt with a tool and without")
async def tools_count(endpoint: Endpoint) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    function = {"name": "keep", "parameters": schema, "strict": False}
    bare = await endpoint.ask(tokens=1)
    declared = await endpoint.ask(tokens=1, tools=[{"type": "function", "function": function}])
    if declared.prompt_tokens <= bare.prompt_tokens:
        raise Failed("a declared tool takes no tokens, so the model cannot see it")


def _begun(**more: Any) -> list[dict[str, Any]]:
    last = {"role": "assistant", "content": PREFIX, "partial": True, **more}
    return [user("Name the primary colours."), last]


@partial.check("continues", "an answer that is begun, plain and streamed", ("open", "kimi"))
async def continues(endpoint: Endpoint) -> None:
    for stream in (False, True):
        try:
            answer = await endpoint.ask(messages=_begun(), stream=stream)
        except Refusal as refusal:
            if endpoint.profile == "open" and refusal.status == 400:
                raise Skipped("the endpoint has no partial mode") from None
            raise
        if answer.first.content.lstrip().startswith(PREFIX):
            raise Failed(f"the answer repeats how it was begun: {shown(answer.first.content)}")


@partial.check("named", "a partial message with a name", ("kimi",))
async def named(endpoint: Endpoint) -> None:
    await endpoint.ask(messages=_begun(name="Ann"))


@partial.check("with-json", "a partial message together with json_object", ("kimi",))
async def with_json(endpoint: Endpoint) -> None:
    await endpoint.refused(
        "partial mode together with json_object",
        messages=_begun(content="{"),
        response_format={"type": "json_object"},
    )
