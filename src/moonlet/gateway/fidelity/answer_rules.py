"""What holds for every chat answer, plain or streamed, and for every refusal."""

import re

from moonlet.gateway.fidelity.answers import Answer
from moonlet.gateway.fidelity.check import Group, Seen
from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.errors import Failed
from moonlet.gateway.fidelity.shape import member, needed, objects

answers = Group("answer")
errors = Group("error")

# Nothing that is asked here holds any of them, so that none can be a quotation.
MARKERS = re.compile(r"<\|tool_call|<\|im_|<\|media_|</?think>|<\|end")
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")
_CANONICAL = re.compile(r"functions\.(.+):(\d+)", re.DOTALL)


def _answer(seen: Seen) -> Answer:
    assert seen.answer is not None, "a rule about answers sees answers only"
    return seen.answer


@answers.rule("shape", "object is chat.completion, with id, created and model", "plain")
def shape(seen: Seen) -> str | None:
    body = _answer(seen).body
    for name, kind in (("id", str), ("created", int), ("model", str)):
        needed(body, name, kind)
    if body.get("object") != "chat.completion":
        return f"object is {shown(body.get('object'))}, not chat.completion"
    for choice in objects(body, "choices"):
        message = choice["message"]
        if message.get("role") != "assistant":
            return f"the role of an answer is {shown(message.get('role'))}"
        if message.get("content") is None and not (message.get("tool_calls") or _reasons(message)):
            return "content is null in an answer without calls"
        if message.get("tool_calls") == []:
            return "tool_calls is an empty list in an answer without calls"
    return None


def _reasons(message: dict[str, object]) -> bool:
    return bool(message.get("reasoning_content") or message.get("reasoning"))


@answers.rule("choices", "there are n choices, numbered from 0", "answer")
def choices(seen: Seen) -> str | None:
    wanted = list(range(seen.body.get("n") or 1))
    found = sorted(_answer(seen).choices)
    return None if found == wanted else f"the choices are {found}, not {wanted}"


@answers.rule("markers", "no marker of the model's format is in any text", "answer")
def markers(seen: Seen) -> str | None:
    for choice in _answer(seen).choices.values():
        names = [text for call in choice.calls for text in (call.id, call.name, call.arguments)]
        for text in (choice.content, choice.reasoning, *names):
            if match := MARKERS.search(text):
                begin = max(0, match.start() - 20)
                return f"a marker leaked into the answer: {shown(text[begin : begin + 80])}"
    return None


@answers.rule(
    "finish", "finish_reason is usual, and tool_calls exactly when there are calls", "answer"
)
def finish(seen: Seen) -> str | None:
    for index, choice in _answer(seen).choices.items():
        if choice.finish not in FINISH_REASONS:
            return f"finish_reason of choice {index} is {shown(choice.finish)}"
        if choice.finish == "tool_calls" and not choice.calls:
            return f"choice {index} finished with tool_calls but has none"
        if choice.finish == "stop" and choice.calls:
            return f"choice {index} has calls but finished with stop"
    return None


@answers.rule(
    "calls", "calls have an id of their own, the type function and a declared name", "answer"
)
def calls(seen: Seen) -> str | None:
    declared = {tool["function"]["name"] for tool in seen.body.get("tools") or []}
    for choice in _answer(seen).choices.values():
        ids = [call.id for call in choice.calls]
        if "" in ids or len(set(ids)) < len(ids):
            return f"the calls have the ids {shown(ids)}"
        for call in choice.calls:
            if call.type != "function":
                return f"a call has the type {shown(call.type)}"
            if call.name not in declared:
                return f"a call names {shown(call.name)}, which was not declared"
    return None


@answers.rule(
    "ids", "ids are functions.NAME:N, N counted over the conversation", "answer", ("open", "kimi")
)
def ids(seen: Seen) -> str | None:
    before = sum(len(message.get("tool_calls") or ()) for message in seen.body["messages"])
    for choice in _answer(seen).choices.values():
        for number, call in enumerate(choice.calls, before):
            wanted = f"functions.{call.name}:{number}"
            if call.id != wanted:
                form = "" if _CANONICAL.fullmatch(call.id) else ", a foreign form"
                return f"a call has the id {shown(call.id)}{form}, where {shown(wanted)} was due"
    return None


@answers.rule("reasoning", "reasoning says the same under both of its names", "plain")
def reasoning(seen: Seen) -> str | None:
    for choice in objects(_answer(seen).body, "choices"):
        message = choice["message"]
        official, other = message.get("reasoning_content"), message.get("reasoning")
        if official and other and official != other:
            return "reasoning_content and reasoning differ"
    return None


@answers.rule("usage", "the parts of usage add up, however often and under whatever name", "answer")
def usage(seen: Seen) -> str | None:
    answer = _answer(seen)
    if not answer.usages and not seen.body.get("stream"):
        return "the answer has no usage"
    for told in answer.usages:
        prompt, completion, total = (
            needed(told, f"{name}_tokens", int, "usage")
            for name in ("prompt", "completion", "total")
        )
        if min(prompt, completion) < 0 or prompt + completion != total:
            return f"usage says {prompt} + {completion} = {total} tokens"
        details = member(told, "prompt_tokens_details", dict, "usage") or {}
        cached = member(details, "cached_tokens", int, "usage.prompt_tokens_details")
        kimi = member(told, "cached_tokens", int, "usage")
        if None not in (cached, kimi) and cached != kimi:
            return f"usage says {kimi} cached tokens, and {cached} in its details"
        if not 0 <= (cached or kimi or 0) <= prompt:
            return f"usage says {cached or kimi} cached tokens in a prompt of {prompt}"
        spent = member(told, "completion_tokens_details", dict, "usage") or {}
        thought = member(spent, "reasoning_tokens", int, "usage.completion_tokens_details") or 0
        if not 0 <= thought <= completion:
            return f"usage says {thought} reasoning tokens among {completion} of the answer"
    if any(told["total_tokens"] != answer.usage["total_tokens"] for told in answer.usages):
        return "the usage inside the last choice differs from the one of the answer"
    return None


@answers.rule("limit", "no more tokens were made than asked for", "answer")
def limit(seen: Seen) -> str | None:
    answer = _answer(seen)
    most = seen.body.get("max_completion_tokens") or seen.body.get("max_tokens")
    if most is None or not answer.usages:
        return None
    made = answer.completion_tokens
    return f"{made} tokens were made, {most} asked for" if made > most * _n(seen) else None


def _n(seen: Seen) -> int:
    return seen.body.get("n") or 1


@errors.rule("status", "what the client did wrong is a 4xx", "error")
def status(seen: Seen) -> str | None:
    code = seen.reply.status
    return f"a request was answered with {seen.reply.told}" if not 400 <= code < 500 else None


@errors.rule("shape", "an error is {error: {message, type, ...}}", "error")
def error_shape(seen: Seen) -> str | None:
    try:
        body = seen.reply.json
    except Failed:
        return f"an error came as {shown(seen.reply.raw)}, not as JSON"
    error = needed(body, "error", dict, "the error body")
    if not needed(error, "message", str, "error"):
        return "the error has no message"
    if not needed(error, "type", str, "error"):
        return "the error has no type"
    member(error, "param", str, "error")
    code = error.get("code")
    if code is not None and not isinstance(code, str | int):
        return f"the error's code is {shown(code)}"
    return None


@errors.rule("kimi-type", "a wrong request has the type invalid_request_error", "error", ("kimi",))
def kimi_type(seen: Seen) -> str | None:
    if seen.reply.status != 400:
        return None
    error = needed(seen.reply.json, "error", dict, "the error body")
    if error.get("type") not in ("invalid_request_error", "content_filter"):
        return f"a 400 has the type {shown(error.get('type'))}"
    return None
