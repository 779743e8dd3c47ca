"""The body of `POST /v1/chat/completions` -> what to ask the provider and how to answer.

Strict about types and ranges, lenient about members it does not know (clients send many); a known
member that would change the answer and is not built yet is refused, never ignored. `null` counts as
absent everywhere.
"""

from dataclasses import dataclass
from typing import Any

from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import ChatRequest, ModelCard, Sampling
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, choice, integer, kind_of, number, obj, text
from moonlet.server.tools import parse_tools

MAX_STOPS = 5
_INT64 = 2**63

# Members that change the answer, with the values that mean "as if absent".
_NOT_YET: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
}


@dataclass(frozen=True)
class ApiRequest:
    """One parsed request: `chat` goes to the provider, the rest says how to answer."""

    chat: ChatRequest
    stream: bool
    include_usage: bool


def parse_request(body: dict[str, Any], card: ModelCard) -> ApiRequest:
    """Raises ApiError or PromptError (both answer 400, an unknown model 404) with the field's name."""
    check_model(text(body, "model", required=True), card)
    _refuse_not_yet(body)
    thinking, preserve_thinking = _thinking(body, card)
    chat = ChatRequest(
        messages=parse_messages(body.get("messages")),
        tools=parse_tools(body),
        thinking=thinking,
        preserve_thinking=preserve_thinking,
        sampling=_sampling(body),
        max_tokens=_max_tokens(body, card),
        stop=_stop(body.get("stop")),
    )
    options = obj(body, "stream_options")
    return ApiRequest(
        chat=chat,
        stream=bool(boolean(body, "stream")),
        include_usage=bool(boolean(options, "include_usage", within="stream_options.")),
    )


def check_model(name: str | None, card: ModelCard) -> None:
    """Raises ApiError (404) unless `name` is the model that is served."""
    if name != card.id:
        raise ApiError(
            f"no model {name!r} here; this server has {card.id!r}",
            "model",
            status=404,
            kind="resource_not_found_error",
            code="model_not_found",
        )


def _refuse_not_yet(body: dict[str, Any]) -> None:
    for name, neutral in _NOT_YET.items():
        value = body.get(name)
        # True == 1 in Python, so the types must agree as well.
        same = (kind_of(value) == kind_of(item) and value == item for item in neutral)
        if value is not None and not any(same):
            raise ApiError(
                f"{name} is not supported yet; leave it out or send {neutral[0]!r}", name
            )
    response_format = obj(body, "response_format")
    if response_format and response_format.get("type") != "text":
        raise ApiError(
            "response_format is not supported yet, other than {'type': 'text'}", "response_format"
        )


def _thinking(body: dict[str, Any], card: ModelCard) -> tuple[bool, bool]:
    """(thinking, preserve_thinking) from Kimi's `thinking` object and vLLM's template arguments."""
    switch = obj(body, "thinking")
    unknown = sorted(set(switch) - {"type", "keep"})
    if unknown:
        raise ApiError(f"thinking has no member {unknown[0]!r}, only type and keep", "thinking")
    kind = choice(switch, "type", ("enabled", "disabled"), within="thinking.")
    keep = choice(switch, "keep", ("all",), within="thinking.")
    arguments = obj(body, "chat_template_kwargs")
    within = "chat_template_kwargs."
    wishes = [
        boolean(arguments, "thinking", within=within),
        boolean(arguments, "enable_thinking", within=within),
        None if kind is None else kind == "enabled",
    ]
    wanted = {wish for wish in wishes if wish is not None}
    if len(wanted) == 2:
        raise ApiError("thinking is switched on and off in the same request", "thinking")
    if True in wanted and not card.supports_reasoning:
        raise ApiError(f"the model {card.id!r} cannot think; leave the switch out", "thinking")
    preserve = boolean(arguments, "preserve_thinking", within=within)
    return (wanted.pop() if wanted else card.supports_reasoning), keep == "all" or bool(preserve)


def _sampling(body: dict[str, Any]) -> Sampling:
    top_p = number(body, "top_p", 0, 1)
    if top_p == 0:
        raise ApiError("top_p must be above 0; for the likeliest token use temperature 0", "top_p")
    top_k = integer(body, "top_k", -1, 2**31 - 1)
    seed = integer(body, "seed", -_INT64, _INT64 - 1)
    return Sampling(
        temperature=number(body, "temperature", 0, 2),
        top_p=top_p,
        top_k=0 if top_k == -1 else top_k,  # both mean "all tokens", -1 is vLLM's spelling
        seed=None if seed is None else seed % 2**64,  # generators take no negative seed
    )


def _max_tokens(body: dict[str, Any], card: ModelCard) -> int | None:
    """The limit on new tokens; `max_tokens` is the old name of `max_completion_tokens`."""
    new = integer(body, "max_completion_tokens", 1, card.context_length)
    old = integer(body, "max_tokens", 1, card.context_length)
    if new is not None and old is not None and new != old:
        raise ApiError(
            f"max_tokens ({old}) and max_completion_tokens ({new}) disagree; send one of them",
            "max_tokens",
        )
    return old if new is None else new


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(item, str) and item for item in stops):
        raise ApiError("stop must be a non-empty string or a list of them", "stop")
    if len(stops) > MAX_STOPS:
        raise ApiError(f"stop has {len(stops)} strings, but at most {MAX_STOPS} are taken", "stop")
    return tuple(stops)
