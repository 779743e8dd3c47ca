"""Conversations as clients send them: what is accepted, and where an error points."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.messages import ImagePart, Message, TextPart, ToolCall, VideoPart, parse_messages
from moonlet.errors import PromptError


def parse_one(**raw: Any) -> Message:
    return parse_messages([raw])[0]


def test_plain_conversation() -> None:
    assert parse_messages(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u", "name": "ana"},
            {"role": "assistant", "content": "a", "reasoning_content": ""},
        ]
    ) == [
        Message("system", (TextPart("s"),)),
        Message("user", (TextPart("u"),), name="ana"),
        Message("assistant", (TextPart("a"),), reasoning=""),
    ]


def test_developer_is_system() -> None:
    assert parse_one(role="developer", content="x").role == "system"


@pytest.mark.parametrize("image", ["data:x", {"url": "data:x"}, {"url": "data:x", "detail": "low"}])
def test_parts(image: Any) -> None:
    parts = [
        {"type": "image_url", "image_url": image},
        {"type": "text", "text": "t"},
        {"type": "video_url", "video_url": "v"},
    ]
    message = parse_one(role="user", content=parts)
    assert message.parts == (ImagePart("data:x"), TextPart("t"), VideoPart("v"))
    assert message.text == "t"


def test_reasoning_has_two_names_and_the_official_one_wins() -> None:
    assert parse_one(role="assistant", content="", reasoning="r").reasoning == "r"
    both = parse_one(role="assistant", content="", reasoning="r", reasoning_content="")
    assert both.reasoning == ""
    assert parse_one(role="assistant", content="").reasoning is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"a":1}', '{"a":1}'),
        ("not json", "not json"),
        ({"b": "é", "a": [1]}, '{"b": "é", "a": [1]}'),
        ({}, "{}"),
        (None, "{}"),
    ],
)
def test_tool_calls(arguments: Any, text: str) -> None:
    call = {"id": "functions.f:0", "function": {"name": "f", "arguments": arguments}}
    message = parse_one(role="assistant", content=None, tool_calls=[call])
    assert message.tool_calls == (ToolCall("functions.f:0", "f", text),)
    assert message.parts == ()


def test_tool_result_with_parts() -> None:
    parts = [{"type": "text", "text": ""}, {"type": "image_url", "image_url": "data:x"}]
    call = {"id": "functions.f:0", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "tool", "tool_call_id": "functions.f:0", "name": "f", "content": parts}
    message = parse_messages([{"role": "assistant", "tool_calls": [call]}, answer])[1]
    assert (message.tool_call_id, message.name) == ("functions.f:0", "f")
    assert message.parts == (TextPart(""), ImagePart("data:x"))


def test_partial_is_the_last_message_of_an_assistant() -> None:
    begun = {"role": "assistant", "content": "Sure, ", "partial": True, "name": "Ana"}
    message = parse_messages([{"role": "user", "content": "q"}, begun])[-1]
    assert message == Message("assistant", (TextPart("Sure, "),), name="Ana", partial=True)
    assert parse_one(role="assistant", reasoning_content="r", partial=True).reasoning == "r"
    for no in (False, None):
        assert not parse_one(role="user", content="x", partial=no).partial
        assert not parse_one(role="assistant", content="x", partial=no).partial


CALL = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
BAD = [
    (5, "messages"),
    ([], "messages"),
    (["hi"], "messages[0]"),
    ([{"content": "x"}], "messages[0].role"),
    ([{"role": "wizard", "content": "x"}], "messages[0].role"),
    ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    ([{"role": "user", "content": "ok"}, {"role": "user"}], "messages[1].content"),
    ([{"role": "user", "content": ""}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": 3}], "messages[0].content"),
    ([{"role": "user", "content": {"type": "text"}}], "messages[0].content"),
    ([{"role": "user", "content": "x", "name": 3}], "messages[0].name"),
    ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text", "text": ""}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "audio"}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].image_url"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}],
        "messages[0].content[0].image_url",
    ),
    (
        [{"role": "system", "content": [{"type": "image_url", "image_url": "x"}]}],
        "messages[0].content[0]",
    ),
    ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    ([{"role": "tool", "content": "x", "tool_call_id": 4}], "messages[0].tool_call_id"),
    ([{"role": "tool", "tool_call_id": "c"}], "messages[0].content"),
    (
        [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "c", "content": "x"}],
        "messages[1]",
    ),
    ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
    ([{"role": "assistant", "tool_calls": ["f"]}], "messages[0].tool_calls[0]"),
    (
        [{"role": "assistant", "tool_calls": [CALL, CALL | {"id": None}]}],
        "messages[0].tool_calls[1].id",
    ),
    (
        [{"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]}],
        "messages[0].tool_calls[0].function.name",
    ),
    (
        [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": 1}}]}],
        "messages[0].tool_calls[0].function.arguments",
    ),
    ([{"role": "assistant", "reasoning_content": ["x"]}], "messages[0].reasoning_content"),
    ([{"role": "user", "content": "x", "partial": True}], "messages[0].partial"),
    ([{"role": "assistant", "content": "x", "partial": 1}], "messages[0].partial"),
    ([{"role": "assistant", "tool_calls": [CALL], "partial": True}], "messages[0].partial"),
    (
        [{"role": "assistant", "content": "x", "partial": True}, {"role": "user", "content": "x"}],
        "messages[0].partial",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "param"), BAD)
def test_errors_point_at_the_field(raw: Any, param: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_messages(raw)
    assert caught.value.param == param
    assert str(caught.value).endswith(".")


def test_arguments_nested_too_deeply_for_json() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(PromptError, match="cannot be written as JSON"):
        parse_one(
            role="assistant", tool_calls=[{"id": "c", "function": {"name": "f", "arguments": deep}}]
        )


KEYS = st.sampled_from(
    ["role", "content", "type", "text", "image_url", "url", "name", "id", "function", "arguments"]
)
WORDS = st.sampled_from(["user", "assistant", "tool", "system", "text", "image_url", "x", ""])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)
ALMOST = st.lists(
    st.fixed_dictionaries(
        {"role": WORDS},
        optional={"content": JUNK, "tool_calls": JUNK, "tool_call_id": JUNK, "partial": JUNK},
    ),
    min_size=1,
    max_size=3,
)


@given(JUNK | ALMOST)
def test_junk_gives_messages_or_a_prompt_error(raw: Any) -> None:
    param = "messages"
    try:
        messages = parse_messages(raw)
        assert all(isinstance(message, Message) for message in messages)
    except PromptError as error:
        param = error.param or ""
    assert param.startswith("messages")


def test_a_refusal_is_text_of_the_assistant() -> None:
    part = {"type": "refusal", "refusal": "No."}
    assert parse_one(role="assistant", content=[part]).text == "No."
    with pytest.raises(PromptError, match="not 'refusal'"):
        parse_one(role="user", content=[part])


def test_what_is_missing_is_called_missing() -> None:
    with pytest.raises(PromptError, match=r"messages is missing\."):
        parse_messages(None)
    with pytest.raises(PromptError, match=r"messages\[0\].role is missing\."):
        parse_messages([{"content": "x"}])
