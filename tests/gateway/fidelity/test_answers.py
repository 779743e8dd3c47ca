"""One form for plain and streamed answers, and that nothing an endpoint sends breaks the reading of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.gateway.fidelity.answers import Answer, Call, read_plain, read_stream
from moonlet.gateway.fidelity.check import Notebook, Seen
from moonlet.gateway.fidelity.client import Reply
from moonlet.gateway.fidelity.errors import Failed
from moonlet.gateway.fidelity.suite import rules_of

USAGE = {
    "prompt_tokens": 2,
    "completion_tokens": 3,
    "total_tokens": 5,
    "cached_tokens": 1,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def delta(finish: str | None = None, **members: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "delta": members, "finish_reason": finish}]}


def call(index: int, **members: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, **members}])


STREAM: list[dict[str, Any]] = [
    delta(role="assistant", content=""),
    delta(reasoning_content="Hm."),
    delta(content="So"),
    call(0, id="functions.f:0", type="function", function={"name": "f", "arguments": ""}),
    call(0, function={"arguments": '{"a"'}),
    call(1, id="functions.f:1", type="function", function={"name": "f", "arguments": "{}"}),
    call(0, function={"arguments": ":1}"}),
    delta("tool_calls"),
    {**HEAD, "choices": [], "usage": USAGE},
]
PLAIN: dict[str, Any] = {
    **HEAD,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "So",
                "reasoning_content": "Hm.",
                "reasoning": "Hm.",
                "tool_calls": [
                    {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                    {"id": "functions.f:1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USAGE,
}  # fmt: skip
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"type": "function", "function": {"name": "f"}}],
}


def stream(events: list[Any], done: bool = True) -> Reply:
    raw = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    head = {"content-type": "text/event-stream"}
    return Reply(200, head, f"{raw}{'data: [DONE]' if done else ''}\n\n".encode())


def plain(value: Any) -> Reply:
    return Reply(200, {}, json.dumps(value).encode())


def broken(reply: Reply, answer: Answer | None, streamed: bool) -> dict[str, str]:
    notebook = Notebook(rules_of("kimi"))
    options = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    notebook.look(Seen({**BODY, **options}, reply, answer, "kimi"), "a check")
    return notebook.broken


def test_a_stream_is_the_plain_answer_in_pieces() -> None:
    whole, pieces = read_plain(plain(PLAIN)), read_stream(stream(STREAM))
    assert whole.first == pieces.first
    assert whole.first.calls[0] == Call("functions.f:0", "function", "f", '{"a":1}')
    assert whole.usage == pieces.usage == USAGE
    assert pieces.after_done == 0
    assert read_stream(stream(STREAM, done=False)).after_done is None


def test_both_keep_every_rule() -> None:
    reply = stream(STREAM)
    assert broken(reply, read_stream(reply), streamed=True) == {}
    assert broken(plain(PLAIN), read_plain(plain(PLAIN)), streamed=False) == {}


def test_chunks_need_not_be_kept() -> None:
    answer = read_stream(stream(STREAM), keep_chunks=False)
    assert answer.first == read_stream(stream(STREAM)).first
    assert (answer.chunks, answer.pieces) == ([], [])


def test_an_error_in_the_stream_is_told() -> None:
    with pytest.raises(Failed, match=r"broke off with the error .*boom"):
        read_stream(stream([STREAM[0], {"error": {"message": "boom"}}]))


JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=3)
    | st.just([])
    | st.just({})
    | st.just([None])
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of everything inside a JSON value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [place for key, part in items for place in ((*path, key), *places(part, (*path, key)))]


@given(st.data(), st.booleans())
def test_one_thing_that_is_something_else_is_a_sentence_at_most(
    data: st.DataObject, streamed: bool
) -> None:
    value: Any = json.loads(json.dumps(STREAM if streamed else PLAIN))
    *path, last = data.draw(st.sampled_from(places(value)))
    parent = value
    for key in path:
        parent = parent[key]
    parent[last] = data.draw(JUNK)
    reply = stream(value) if streamed else plain(value)
    try:
        answer = read_stream(reply) if streamed else read_plain(reply)
        told = list(broken(reply, answer, streamed).values())
    except Failed as error:
        told = [str(error)]
    assert all(len(sentence) < 600 for sentence in told)


@given(JUNK | st.dictionaries(st.sampled_from(["error", "message"]), JUNK))
def test_any_refusal_can_be_looked_at(body: Any) -> None:
    reply = Reply(400, {}, json.dumps(body).encode())
    assert broken(reply, None, streamed=False)
    assert reply.told.startswith("400 (")
