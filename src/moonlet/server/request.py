"""The body of `POST /v1/chat/completions` -> what to ask the provider and how to answer.

Strict about types and ranges, lenient about members it does not know (clients send many); a known
member that would change the answer and is not served here is refused, never ignored. `null` counts as
absent everywhere. What else a `compat` profile refuses is said in profiles.py. Other dialects may write
their request as such a body and parse it here.
"""

from dataclasses import dataclass, field
from typing import Any

from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import ChatRequest, ModelCard
from moonlet.chat.repair import repair
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, integer, kind_of, number, obj, text
from moonlet.server.formats import parse_format
from moonlet.server.history import check_history
from moonlet.server.profiles import OPEN, Profile
from moonlet.server.sampling import parse_logprobs, parse_n, parse_sampling, parse_stop
from moonlet.server.thinking import parse_thinking
from moonlet.server.tools import parse_tools

MAX_DEADLINE_S = 7 * 86400.0

# Members that change the answer and are not served: what means the same as leaving them out, and the
# way to get what they are for.
_NOT_HERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": (([],), "and use tools"),
    "function_call": (("none", "auto"), "and use tool_choice"),
    "modalities": ((["text"],), "since answers are text"),
    "audio": ((), "since answers are text"),
    "web_search_options": ((), "and declare a search tool"),
    "structured_outputs": (({},), "and use response_format"),
    "guided_json": ((), "and use response_format"),
    "guided_regex": ((), "and use response_format"),
    "guided_choice": ((), "and use response_format with an enum"),
    "guided_grammar": ((), "and use response_format"),
    "grammar": (("",), "and use response_format"),
    "json_schema": ((), "and use response_format"),
    "stop_token_ids": (([],), "and use stop"),
    "prompt_logprobs": ((0, False), "and use logprobs"),
    "separate_reasoning": ((True,), "since the thinking always comes in a member of its own"),
    "reasoning_format": (
        ("auto", "deepseek"),
        "since the thinking always comes in a member of its own",
    ),
    "min_tokens": ((0,), "since an answer ends where the model ends it"),
    "ignore_eos": ((False,), "since an answer ends where the model ends it"),
}


@dataclass(frozen=True)
class ApiRequest:
    """One parsed request: `chat` goes to the provider, the rest says how to answer.

    headers: what the answer's head says about the request, apart from what the answer itself is.
    """

    model: str
    chat: ChatRequest
    stream: bool
    include_usage: bool
    shows_reasoning: bool = True
    headers: dict[str, str] = field(default_factory=dict)


def parse_request(body: dict[str, Any], card: ModelCard, profile: Profile = OPEN) -> ApiRequest:
    """Raises ApiError or PromptError (both answer 400) with the name of the field."""
    _refuse_unknown(body, profile)
    refuse_not_here(body)
    for name in ("user", "prompt_cache_key", "safety_identifier"):
        text(body, name)
    rules = profile.rules(card.id)
    thinking = parse_thinking(body, card, profile)
    tools = parse_tools(body, profile, thinking.on)
    sampling = parse_sampling(body, rules, thinking.on)
    messages = parse_messages(body.get("messages"))
    check_history(messages, profile, thinking.on)
    schema = parse_format(body, messages, profile)
    messages, repairs = repair(messages)
    renamed = any(map(_says_reasoning, body["messages"]))
    told = [*repairs, *["reasoning_renamed"] * renamed, *["thinking_switch"] * thinking.foreign]
    chat = ChatRequest(
        messages=messages,
        tools=tools.declared,
        must_call=tools.must_call,
        only_tool=tools.only,
        parallel_tool_calls=boolean(body, "parallel_tool_calls") is not False,
        schema=schema,
        thinking=thinking.on,
        preserve_thinking=thinking.preserve,
        thinking_budget=thinking.budget,
        sampling=sampling,
        max_tokens=_max_tokens(body, card),
        stop=parse_stop(body.get("stop"), profile),
        n=parse_n(body, rules, sampling),
        logprobs=parse_logprobs(body),
        deadline_s=number(body, "deadline_s", 0, MAX_DEADLINE_S),
    )
    stream = bool(boolean(body, "stream"))
    return ApiRequest(
        model=card.id,
        chat=chat,
        stream=stream,
        include_usage=_include_usage(body, stream, profile),
        shows_reasoning=thinking.shown,
        headers=repair_headers(told),
    )


def repair_headers(repairs: list[str]) -> dict[str, str]:
    """The header that tells what was mended in a request; none when nothing was.

    Beside the words of `repair`: `reasoning_renamed` (`reasoning` was read as `reasoning_content`) and
    `thinking_switch` (another API's switch was read as `thinking`).
    """
    return {"x-moonlet-repairs": ", ".join(repairs)} if repairs else {}


def _says_reasoning(message: dict[str, Any]) -> bool:
    return (
        message.get("role") == "assistant"
        and message.get("reasoning_content") is None
        and message.get("reasoning") is not None
    )


def _refuse_unknown(body: dict[str, Any], profile: Profile) -> None:
    if profile.members is not None and (unknown := sorted(body.keys() - profile.members)):
        name = unknown[0][:80]
        raise ApiError(f"Unrecognized request argument supplied: {name}", code="unknown_parameter")


def refuse_not_here(body: dict[str, Any]) -> None:
    """Raises ApiError for a member that would change the answer and is not served."""
    for name, (neutral, instead) in _NOT_HERE.items():
        value = body.get(name)
        # True == 1 in Python, so the types must agree as well.
        same = (kind_of(value) == kind_of(item) and value == item for item in neutral)
        if value is not None and not any(same):
            raise ApiError(f"{name} is not supported; leave it out {instead}", name)


def _include_usage(body: dict[str, Any], stream: bool, profile: Profile) -> bool:
    options = obj(body, "stream_options")
    if profile.openai_rules and options and not stream:
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
        )
    return bool(boolean(options, "include_usage", within="stream_options."))


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
