"""Plain and streamed answers: that both work, agree, and end where they should."""

from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.endpoint import Endpoint, user
from moonlet.gateway.fidelity.errors import Failed, Skipped
from moonlet.gateway.fidelity.forced import json_schema
from moonlet.gateway.fidelity.schemas import fixed

group = Group("chat")

COUNT = "Count from one to one hundred in words."
SYSTEM = {"role": "system", "content": "Be brief."}
MESSAGES: dict[str, list[dict[str, Any]]] = {
    "system": [SYSTEM, user("Say OK.")],
    "developer": [{"role": "developer", "content": "Be brief."}, user("Say OK.")],
    "turns": [user("Hi."), {"role": "assistant", "content": "Hello."}, user("Say OK.")],
    "parts": [user([{"type": "text", "text": "Say "}, {"type": "text", "text": "OK."}])],
    "names": [{**SYSTEM, "name": "rules"}, {**user("Say OK."), "name": "ann"}],
    "unicode": [user("Say 月之暗面 😀 \u2028 café.")],
}


@group.check("plain", "one user message")
async def plain(endpoint: Endpoint) -> None:
    answer = await endpoint.ask()
    if answer.completion_tokens < 1:
        raise Failed("no token was made")


@group.check("stream", "one user message, streamed with include_usage")
async def stream(endpoint: Endpoint) -> None:
    answer = await endpoint.ask(stream=True)
    if answer.completion_tokens < 1:
        raise Failed("no token was made")


@group.check("stream-without-usage", "one user message, streamed without stream_options")
async def without_usage(endpoint: Endpoint) -> None:
    await endpoint.ask(stream=True, stream_options=None)


async def _messages(endpoint: Endpoint, name: str) -> None:
    await endpoint.ask(messages=MESSAGES[name])


for _name in MESSAGES:
    group.add(
        f"messages-{_name}",
        f"a conversation with {_name}",
        lambda endpoint, name=_name: _messages(endpoint, name),
    )


@group.check("same-streamed", "the same request plain, plain again and streamed, with a seed")
async def same(endpoint: Endpoint) -> None:
    asked = {"tokens": 24, **endpoint.cold}
    first = await endpoint.ask(COUNT, **asked)
    again = await endpoint.ask(COUNT, **asked)
    streamed = await endpoint.ask(COUNT, stream=True, **asked)
    if streamed.prompt_tokens != first.prompt_tokens:
        raise Failed(
            f"the prompt has {first.prompt_tokens} tokens plain, {streamed.prompt_tokens} streamed"
        )
    if first.first != again.first:
        raise Skipped("the endpoint does not repeat itself, so there is nothing to compare with")
    if streamed.first != first.first:
        raise Failed(
            f"the stream says {shown(streamed.first.content)}, the plain answer "
            f"{shown(first.first.content)}"
        )


@group.check("repeats", "the same request twice, with a seed, at temperature 0 where that is free")
async def repeats(endpoint: Endpoint) -> None:
    first, second = [await endpoint.ask(COUNT, tokens=24, **endpoint.cold) for _ in range(2)]
    if first.first == second.first:
        return
    if endpoint.profile == "kimi":
        raise Skipped("the answers differ; Kimi's API promises no seed")
    raise Failed(
        f"one seed gave {shown(first.first.content)} and then {shown(second.first.content)}"
    )


@group.check("length", "a long answer with room for three tokens, plain and streamed")
async def length(endpoint: Endpoint) -> None:
    for streamed in (False, True):
        answer = await endpoint.ask(COUNT, tokens=3, stream=streamed)
        if answer.first.finish == "stop" and answer.completion_tokens <= 3:
            raise Skipped("the answer ended by itself within three tokens")
        if answer.first.finish != "length":
            raise Failed(f"an answer that was cut off finished with {shown(answer.first.finish)}")


@group.check("both-limits", "max_tokens and max_completion_tokens, one at a time", ("open", "kimi"))
async def both_limits(endpoint: Endpoint) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = await endpoint.ask(COUNT, **{"max_tokens": None, name: 3})
        if answer.completion_tokens > 3:
            raise Failed(f"{name} 3 was answered with {answer.completion_tokens} tokens")


@group.check("over-window", "more new tokens than the context holds")
async def over_window(endpoint: Endpoint) -> None:
    if endpoint.window is None:
        raise Skipped("the endpoint does not say how long its context is")
    for stream in (False, True):
        await endpoint.refused(
            "a limit above the context", tokens=endpoint.window + 1, stream=stream
        )


async def _stopped(endpoint: Endpoint, stop: Any, stream: bool) -> None:
    """A text that is known beforehand is stopped in the middle."""
    answer = await endpoint.ask(
        "Answer in JSON.",
        stream=stream,
        tokens=endpoint.room,
        response_format=json_schema(fixed("alpha-beta-gamma-delta")),
        stop=stop,
    )
    choice = answer.first
    if not choice.content.endswith("alpha-beta-") or choice.finish != "stop":
        raise Failed(
            f"stopped at 'gamma', the answer is {shown(choice.content)} and finished with "
            f"{shown(choice.finish)}"
        )


@group.check("stop", "a stop string inside a text that a schema fixes, plain and streamed")
async def stop(endpoint: Endpoint) -> None:
    for streamed in (False, True):
        await _stopped(endpoint, "gamma", streamed)


@group.check("stop-list", "as many stop strings as the API takes, the last one met")
async def stop_list(endpoint: Endpoint) -> None:
    others = ["1", "2", "3", "4"] if endpoint.profile != "openai" else ["1", "2", "3"]
    for streamed in (False, True):
        await _stopped(endpoint, [*others, "gamma"], streamed)


@group.check("stop-too-many", "one stop string more than the API takes", ("kimi", "openai"))
async def too_many_stops(endpoint: Endpoint) -> None:
    stops = list("123456") if endpoint.profile == "kimi" else list("12345")
    await endpoint.refused(f"{len(stops)} stop strings", stop=stops)


@group.check("stop-too-long", "a stop string of 33 bytes", ("kimi",))
async def too_long_a_stop(endpoint: Endpoint) -> None:
    await endpoint.refused("a stop string of 33 bytes", stop="x" * 33)


@group.check("logprobs", "logprobs with two alternatives, plain and streamed")
async def logprobs(endpoint: Endpoint) -> None:
    for streamed in (False, True):
        body = endpoint.body(stream=streamed, logprobs=True, top_logprobs=2)
        reply = await endpoint.send(body)
        if reply.status == 400 and endpoint.profile == "kimi":
            raise Skipped("the endpoint has no logprobs; Kimi's API does not promise any")
        if reply.status != 200:
            raise Failed(f"logprobs were answered with {reply.told}")
        answer = endpoint.read(body, reply)
        told = answer.first.logprobs
        if answer.first.content and not told:
            raise Failed("logprobs were asked for and none were told")
        for token in told:
            _check_logprob(token)


def _check_logprob(token: dict[str, Any]) -> None:
    others = token.get("top_logprobs")
    if not isinstance(others, list) or len(others) > 2:
        raise Failed(f"top_logprobs of a token is {shown(others)}, not a list of at most two")
    for one in (token, *others):
        if not isinstance(one, dict) or not isinstance(one.get("token"), str):
            raise Failed(f"a token of logprobs is {shown(one)}, not an object with a token")
        value = one.get("logprob")
        if isinstance(value, bool) or not isinstance(value, int | float) or value > 1e-6:
            raise Failed(f"a logprob is {shown(value)}, not a number up to 0")
        data = one.get("bytes")
        if data is not None and not (
            isinstance(data, list) and all(isinstance(x, int) and 0 <= x < 256 for x in data)
        ):
            raise Failed(f"the bytes of a token are {shown(data)}")
    values = [one["logprob"] for one in others]
    if values != sorted(values, reverse=True):
        raise Failed(f"the alternatives of a token are not sorted: {shown(values)}")
