"""Ways to break an endpoint, one rule each, and the checks that have to notice."""

import json
from collections.abc import Callable
from typing import Any

Sent = dict[str, Any]
Change = Callable[[Sent, list[Any]], None]


def blocks(raw: bytes) -> list[Any]:
    """The values of a stream in order; [DONE] is a string."""
    parts = [block.removeprefix("data: ") for block in raw.decode().split("\n\n") if block]
    return ["[DONE]" if part == "[DONE]" else json.loads(part) for part in parts]


def written(values: list[Any]) -> bytes:
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def streamed(change: Change) -> Any:
    """`change` edits the values of every stream of chat chunks."""

    def bend(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
        if status != 200 or not sent.get("stream") or "messages" not in sent or b"event:" in raw:
            return status, raw
        values = blocks(raw)
        change(sent, values)
        return status, written(values)

    return bend


def plain(change: Callable[[Sent, dict[str, Any]], None]) -> Any:
    """`change` edits every plain chat answer."""

    def bend(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
        if status != 200 or sent.get("stream") or b'"chat.completion"' not in raw:
            return status, raw
        body = json.loads(raw)
        change(sent, body)
        return status, json.dumps(body).encode()

    return bend


def chunks(values: list[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)]


def deltas(values: list[Any]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks(values) for choice in chunk["choices"]]


def _another_id(sent: Sent, values: list[Any]) -> None:
    chunks(values)[2]["id"] = "chatcmpl-other"


def _no_done(sent: Sent, values: list[Any]) -> None:
    values.remove("[DONE]")


def _after_done(sent: Sent, values: list[Any]) -> None:
    values.append(values[0])


def _no_role(sent: Sent, values: list[Any]) -> None:
    for delta in deltas(values):
        delta.pop("role", None)


def _finish_twice(sent: Sent, values: list[Any]) -> None:
    chunks(values)[1]["choices"][0]["finish_reason"] = "stop"


def _no_finish(sent: Sent, values: list[Any]) -> None:
    for chunk in chunks(values):
        for choice in chunk["choices"]:
            choice["finish_reason"] = None


def _content_first(sent: Sent, values: list[Any]) -> None:
    """The first piece of content changes its place with the first of the reasoning."""
    found = deltas(values)
    thought = next((delta for delta in found if delta.get("reasoning_content")), None)
    said = next((delta for delta in found if delta.get("content")), None)
    if thought is not None and said is not None:
        copy = dict(thought)
        thought.clear()
        thought.update(said)
        said.clear()
        said.update(copy)


def _usage_early(sent: Sent, values: list[Any]) -> None:
    if sent.get("stream_options"):
        values.insert(1, values.pop(-2))


def _no_usage_chunk(sent: Sent, values: list[Any]) -> None:
    if sent.get("stream_options"):
        del values[-2]


def _other_object(sent: Sent, body: dict[str, Any]) -> None:
    body["object"] = "completion"


def _undeclared(sent: Sent, body: dict[str, Any]) -> None:
    for call in body["choices"][0]["message"].get("tool_calls") or []:
        call["function"]["name"] = "rec0rd"
        call["id"] = "functions.rec0rd:0"


def _two_reasonings(sent: Sent, body: dict[str, Any]) -> None:
    if "reasoning" in body["choices"][0]["message"]:
        body["choices"][0]["message"]["reasoning"] += "!"


def _cached_twice(sent: Sent, body: dict[str, Any]) -> None:
    body["usage"]["cached_tokens"] = 1


def _repeats_prefix(sent: Sent, body: dict[str, Any]) -> None:
    begun = sent["messages"][-1]
    if begun.get("partial"):
        message = body["choices"][0]["message"]
        message["content"] = begun["content"] + message["content"]


def _blind(sent: Sent, body: dict[str, Any]) -> None:
    body["usage"] |= {"prompt_tokens": 9, "total_tokens": 9 + body["usage"]["completion_tokens"]}


def _never_cut(sent: Sent, body: dict[str, Any]) -> None:
    body["choices"][0]["finish_reason"] = "stop"
    body["usage"]["completion_tokens"] += 1
    body["usage"]["total_tokens"] += 1


def _wrong_sum(sent: Sent, body: dict[str, Any]) -> None:
    body["usage"]["total_tokens"] += 1


def _more_prompt(sent: Sent, body: dict[str, Any]) -> None:
    body["usage"]["prompt_tokens"] += 3
    body["usage"]["total_tokens"] += 3


def _many_tokens(sent: Sent, body: dict[str, Any]) -> None:
    body["usage"]["completion_tokens"] += 900
    body["usage"]["total_tokens"] += 900


def _leak(sent: Sent, body: dict[str, Any]) -> None:
    message = body["choices"][0]["message"]
    if message.get("tool_calls"):
        message["content"] = "<|tool_call_begin|>functions.record:0"


def _foreign_id(sent: Sent, body: dict[str, Any]) -> None:
    for number, call in enumerate(body["choices"][0]["message"].get("tool_calls") or []):
        call["id"] = f"call_{number}f3"


def _restarted_ids(sent: Sent, body: dict[str, Any]) -> None:
    for number, call in enumerate(body["choices"][0]["message"].get("tool_calls") or []):
        call["id"] = f"functions.{call['function']['name']}:{number}"


def _bad_arguments(sent: Sent, body: dict[str, Any]) -> None:
    for call in body["choices"][0]["message"].get("tool_calls") or []:
        call["function"]["arguments"] = call["function"]["arguments"].replace("é", "ééé")


def _cut_arguments(sent: Sent, body: dict[str, Any]) -> None:
    for call in body["choices"][0]["message"].get("tool_calls") or []:
        call["function"]["arguments"] = call["function"]["arguments"][:-1]


def _other_arguments(sent: Sent, values: list[Any]) -> None:
    for delta in deltas(values):
        for call in delta.get("tool_calls", ()):
            text = call["function"].get("arguments", "")
            call["function"]["arguments"] = text.replace("0", "1")


def _call_without_index(sent: Sent, values: list[Any]) -> None:
    for delta in deltas(values):
        for call in delta.get("tool_calls", ()):
            del call["index"]


def _finish_stop(sent: Sent, body: dict[str, Any]) -> None:
    if body["choices"][0]["message"].get("tool_calls"):
        body["choices"][0]["finish_reason"] = "stop"


def _no_calls(sent: Sent, body: dict[str, Any]) -> None:
    if body["choices"][0]["message"].pop("tool_calls", None):
        body["choices"][0]["message"]["content"] = "I would rather not."
        body["choices"][0]["finish_reason"] = "stop"


def _spaced(sent: Sent, body: dict[str, Any]) -> None:
    if "response_format" in sent:
        text = body["choices"][0]["message"]["content"]
        body["choices"][0]["message"]["content"] = json.dumps(json.loads(text), indent=1)


def _thinks_always(sent: Sent, body: dict[str, Any]) -> None:
    body["choices"][0]["message"] |= {"reasoning_content": "Hm.", "reasoning": "Hm."}


def _never_thinks(sent: Sent, body: dict[str, Any]) -> None:
    for name in ("reasoning_content", "reasoning"):
        body["choices"][0]["message"].pop(name, None)


def _stop_left(sent: Sent, body: dict[str, Any]) -> None:
    if "stop" in sent:
        body["choices"][0]["message"]["content"] += "gamma"


def _one_choice(sent: Sent, body: dict[str, Any]) -> None:
    del body["choices"][1:]


def _bad_logprobs(sent: Sent, body: dict[str, Any]) -> None:
    for choice in body["choices"]:
        for token in (choice.get("logprobs") or {}).get("content", []):
            token["logprob"] = 0.7


def _mixed(sent: Sent, values: list[Any]) -> None:
    """A piece of an answer ends up in another stream."""
    for delta in deltas(values):
        if delta.get("content") == "c":
            delta["content"] = "d"


def _drifts() -> Any:
    """Each answer differs from the one before."""
    count = 0

    def change(sent: Sent, body: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        body["choices"][0]["message"]["content"] = f"number {count}"

    return plain(change)


def serves_anyway(name: str, value: Any = None) -> Any:
    """What should have been refused because of the member `name` is served."""

    def bend(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
        wrong = name in sent if value is None else sent.get(name) == value
        if status == 400 and wrong:
            return 200, b'{"id":"x","object":"chat.completion","choices":[]}'
        return status, raw

    return bend


def answers_500(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    return (500, raw) if b"no image" in raw else (status, raw)


def bare_error(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    return (status, b'{"detail":"no"}') if status == 400 else (status, raw)


def unknown_model_200(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    return (200 if status == 404 else status), raw


def another_type(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    return status, raw.replace(b'"invalid_request_error"', b'"bad"') if status == 400 else raw


def dies_in_the_stream(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    if status != 200 or not sent.get("stream"):
        return status, raw
    return status, raw[:900].rpartition(b"\n\n")[0] + b'\n\ndata: {"error":{"message":"x"}}\n\n'


def serves_everything(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    return (200, b"{}") if 400 <= status < 500 else (status, raw)


def breaks_always(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    """Once it has listed its models."""
    is_list = b'"object":"list"' in raw
    return (status, raw) if is_list else (500, b'{"error":{"message":"m","type":"t"}}')


def swapped_events(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    """In the dialects with named events the last two change places."""
    if b"event: " not in raw or status != 200:
        return status, raw
    *rest, first, second, end = raw.split(b"\n\n")
    return status, b"\n\n".join((*rest, second, first, end))


def lost_event(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    if b"event: " not in raw or status != 200:
        return status, raw
    found = [
        one
        for one in raw.split(b"\n\n")
        if b"content_block_stop" not in one and b"output_item.done" not in one
    ]
    return status, b"\n\n".join(found)


def lost_ending(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    if b"event: " not in raw or status != 200:
        return status, raw
    *found, _, end = raw.split(b"\n\n")
    return status, b"\n\n".join((*found, end))


def wrong_place(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    """The pieces of all dialects with named events belong to an item that never began."""
    raw = raw.replace(b'"content_block_delta","index":0', b'"content_block_delta","index":7')
    return status, raw.replace(
        b'"output_index":0,"content_index"', b'"output_index":7,"content_index"'
    )


def _other_text(sent: Sent, body: dict[str, Any]) -> None:
    message = body["choices"][0]["message"]
    message["content"] = (message["content"] or "").replace("é", "ééé")


def _another_stream(sent: Sent, values: list[Any]) -> None:
    """A piece of the arguments ends up in another stream."""
    for delta in deltas(values):
        for call in delta.get("tool_calls", ()):
            text = call["function"].get("arguments", "")
            call["function"]["arguments"] = text.replace("cC", "dD")


def half_a_chunk(sent: Sent, status: int, raw: bytes) -> tuple[int, bytes]:
    return status, raw.replace(b'"delta":{', b'"delta":', 1) if sent.get("stream") else raw


# Name -> how the endpoint is broken, which checks are run, which of them and of the rules fail.
BENDS: dict[str, tuple[Any, str, set[str]]] = {
    "id changes": (streamed(_another_id), "chat/stream", {"stream/head"}),
    "no [DONE]": (streamed(_no_done), "chat/stream", {"stream/done"}),
    "goes on after [DONE]": (streamed(_after_done), "chat/stream", {"stream/done"}),
    "no role": (streamed(_no_role), "chat/stream", {"stream/role"}),
    "finish twice": (streamed(_finish_twice), "chat/stream", {"stream/finish"}),
    "no finish": (streamed(_no_finish), "chat/stream", {"stream/finish", "answer/finish"}),
    "content first": (streamed(_content_first), "thinking/then-answer", {"stream/reasoning-first"}),
    "usage too early": (streamed(_usage_early), "chat/stream", {"stream/usage"}),
    "no usage chunk": (streamed(_no_usage_chunk), "chat/stream", {"stream/usage"}),
    "half a chunk": (half_a_chunk, "chat/stream", {"chat/stream", "chat/stream-without-usage"}),
    "error in the stream": (dies_in_the_stream, "chat/stream-*", {"chat/stream-without-usage"}),
    "another object": (plain(_other_object), "chat/plain", {"answer/shape"}),
    "undeclared call": (plain(_undeclared), "tools/required-plain-instant",
                        {"tools/required-plain-instant", "answer/calls"}),
    "two reasonings": (plain(_two_reasonings), "thinking/type-on", {"answer/reasoning"}),
    "two cached counts": (plain(_cached_twice), "chat/plain", {"answer/usage"}),
    "prefix repeated": (plain(_repeats_prefix), "partial", {"partial/continues"}),
    "image not seen": (plain(_blind), "images/one", {"images/one"}),
    "tools not seen": (plain(_blind), "tokens/tools-count", {"tokens/tools-count"}),
    "length not told": (plain(_never_cut), "chat/length", {"chat/length", "answer/limit"}),
    "wrong sum": (plain(_wrong_sum), "chat/plain", {"answer/usage"}),
    "more than the limit": (plain(_many_tokens), "chat/plain", {"answer/limit"}),
    "estimate differs": (plain(_more_prompt), "tokens/estimate", {"tokens/estimate", "tokens/estimate-image"}),
    "marker leaks": (plain(_leak), "tools/required-plain-instant", {"answer/markers"}),
    "foreign id": (plain(_foreign_id), "tools/required-plain-instant", {"answer/ids"}),
    "ids restart": (plain(_restarted_ids), "history/next-id", {"answer/ids"}),
    "arguments do not fit": (plain(_bad_arguments), "schemas/tool-string-exact", {"schemas/tool-string-exact"}),
    "arguments cut off": (plain(_cut_arguments), "tools/named-plain-instant", {"tools/named-plain-instant"}),
    "other arguments streamed": (streamed(_other_arguments), "tools/same-streamed", {"tools/same-streamed"}),
    "call without index": (streamed(_call_without_index), "tools/required-stream-instant", {"stream/calls"}),
    "calls end with stop": (plain(_finish_stop), "tools/required-plain-instant", {"answer/finish"}),
    "required ignored": (plain(_no_calls), "tools/required-plain-instant", {"tools/required-plain-instant"}),
    "not compact": (plain(_spaced), "json/compact", {"json/compact"}),
    "instant thinks": (plain(_thinks_always), "thinking/type-off", {"thinking/type-off"}),
    "thinking does not": (plain(_never_thinks), "thinking/type-on", {"thinking/type-on"}),
    "stop string stays": (plain(_stop_left), "chat/stop", {"chat/stop", "chat/stop-list"}),
    "n ignored": (plain(_one_choice), "sampling/two-choices", {"answer/choices"}),
    "probability over 1": (plain(_bad_logprobs), "chat/logprobs", {"chat/logprobs"}),
    "streams mixed": (streamed(_mixed), "parallel/answers", {"parallel/answers"}),
    "seed ignored": (_drifts(), "chat/repeats", {"chat/repeats"}),
    "bogus choice served": (serves_anyway("tool_choice", "maybe"), "tools/bogus-choice", {"tools/bogus-choice"}),
    "required without tools served": (serves_anyway("tool_choice", "required"), "tools/required-*",
                                      {"tools/required-without-tools", "tools/required-empty-tools"}),
    "conflict served": (serves_anyway("chat_template_kwargs"), "thinking/conflict", {"thinking/conflict"}),
    "bad format served": (serves_anyway("response_format"), "json/no-schema", {"json/no-schema"}),
    "500 for an image": (answers_500, "images/wrong-base64", {"images/wrong-base64", "error/status"}),
    "error without shape": (bare_error, "requests/no-messages", {"error/shape"}),
    "unknown model served": (unknown_model_200, "models/unknown", {"models/unknown"}),
    "events swapped": (swapped_events, "*/stream", {"responses/stream", "messages/stream"}),
    "ending lost": (lost_ending, "*/stream", {"responses/stream", "messages/stream"}),
    "piece in a wrong place": (wrong_place, "*/stream", {"responses/stream", "messages/stream"}),
    "answer does not fit": (plain(_other_text), "schemas/answer-string-exact", {"schemas/answer-string-exact"}),
    "calls mixed": (streamed(_another_stream), "parallel/calls", {"parallel/calls"}),
    "event lost": (lost_event, "*/stream", {"responses/stream", "messages/stream"}),
}  # fmt: skip
