"""What the profiles `kimi` and `openai` refuse, in whose words, and that `open` serves it."""

from dataclasses import replace
from typing import Any

import pytest

from moonlet.chat.fake import CARD
from moonlet.errors import PromptError
from moonlet.server.errors import ApiError
from moonlet.server.profiles import KIMI, OPEN, OPENAI, PROFILES, Profile
from moonlet.server.request import ApiRequest, parse_request

USER: dict[str, Any] = {"role": "user", "content": "hi"}
BODY: dict[str, Any] = {"model": "fake", "messages": [USER]}
INSTANT = {"thinking": {"type": "disabled"}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def tool(name: str = "look", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def parsed(profile: Profile, model: str = "fake", **fields: Any) -> ApiRequest:
    return parse_request({**BODY, **fields}, replace(CARD, id=model), profile)


def refused(profile: Profile, model: str = "fake", **fields: Any) -> str:
    with pytest.raises((ApiError, PromptError)) as caught:
        parsed(profile, model, **fields)
    return f"{caught.value.message} [{caught.value.param}]"


def test_there_are_three() -> None:
    assert list(PROFILES) == ["open", "kimi", "openai"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": 1.1}, "invalid temperature: only 0 or 0.6 or 1 is allowed for this model"),
        ({"temperature": 2.0}, "invalid temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 0.5}, "invalid temperature"),
        ({"temperature": 1.0, **INSTANT}, "invalid temperature: only 0.6 is allowed"),
        ({"temperature": 0, **INSTANT}, "invalid temperature"),
        ({"top_p": 0.8}, "invalid top_p: only 0.95 is allowed for this model"),
        ({"presence_penalty": 0.5}, "invalid presence_penalty: only 0 is allowed"),
        ({"frequency_penalty": 0.5}, "invalid frequency_penalty"),
        ({"n": 2}, "invalid n: only 1 is allowed"),
    ],
)
def test_kimi_fixes_the_sampling_of_k25(fields: dict[str, Any], says: str) -> None:
    assert says in refused(KIMI, **fields)
    if fields.get("temperature") != -0.1:
        parsed(OPEN, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        INSTANT,
        {"temperature": 1.0, "top_p": 0.95, "n": 1, "presence_penalty": 0, "frequency_penalty": 0},
        {"temperature": 1},
        {"temperature": 0.6},
        {"temperature": 0.0},
        {"temperature": 0.6, **INSTANT},
    ],
)
def test_kimi_takes_the_fixed_values(fields: dict[str, Any]) -> None:
    parsed(KIMI, **fields)


@pytest.mark.parametrize(
    ("model", "free"),
    [
        ("Kimi-K2-Instruct-0905", True),
        ("kimi-k2-thinking", True),
        ("moonshot-v1-8k", True),
        ("Moonlight-16B-A3B-Instruct", True),
        ("kimi-k2.5", False),
        ("moonshotai/Kimi-K2.6", False),
        ("nano", False),
    ],
)
def test_other_models_have_a_row_of_their_own(model: str, free: bool) -> None:
    fields = {"temperature": 0.3, "top_p": 0.5, "n": 5, "presence_penalty": 1}
    if free:
        parsed(KIMI, model, **fields)
        assert "n is 6" in refused(KIMI, model, n=6)
        assert "only 1 is allowed" in refused(KIMI, model, n=2, temperature=0)
    else:
        refused(KIMI, model, **fields)


@pytest.mark.parametrize(
    ("choice", "word"),
    [("required", "required"), ({"type": "function", "function": {"name": "look"}}, "specified")],
)
def test_kimi_forces_no_call_while_thinking(choice: Any, word: str) -> None:
    fields = {"tools": [tool(type="object")], "tool_choice": choice}
    said = refused(KIMI, **fields)
    assert said == f"tool_choice '{word}' is incompatible with thinking enabled [tool_choice]"
    assert parsed(KIMI, **fields, **INSTANT).chat.must_call
    assert parsed(OPEN, **fields).chat.must_call


def test_kimi_wants_the_reasoning_of_a_running_loop_back() -> None:
    def loop(**more: Any) -> list[Any]:
        call = {"role": "assistant", "tool_calls": [CALL], **more}
        return [USER, call, {"role": "tool", "tool_call_id": "c", "content": "r"}]

    said = refused(KIMI, messages=loop())
    assert said == (
        "thinking is enabled but reasoning_content is missing in assistant tool call message at "
        "index 1 [messages[1].reasoning_content]"
    )
    parsed(KIMI, messages=loop(reasoning_content=""))
    parsed(KIMI, messages=loop(reasoning="why"))
    parsed(KIMI, messages=loop(), **INSTANT)
    parsed(KIMI, messages=[*loop(), {"role": "assistant", "content": "done"}, USER])
    parsed(OPEN, messages=loop())


@pytest.mark.parametrize("name", ["ab", "1abc", "a.b.c", "-abc", "x" * 65])
def test_kimi_names_its_tools_strictly(name: str) -> None:
    assert "tools[0].function.name" in refused(KIMI, tools=[tool(name)])


def test_kimi_takes_only_its_subset_of_schemas() -> None:
    odd = {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}
    said = refused(KIMI, tools=[tool(**odd)])
    assert "'pattern' is not supported" in said
    assert said.endswith("[tools[0].function.parameters]")
    lax = tool(**odd)
    lax["function"]["strict"] = False
    parsed(KIMI, tools=[lax])
    parsed(OPEN, tools=[tool(**odd)])

    def answer(**more: Any) -> dict[str, Any]:
        spec = {"name": "x", "schema": odd, **more}
        return {"response_format": {"type": "json_schema", "json_schema": spec}}

    assert "'pattern'" in refused(KIMI, **answer())
    assert parsed(KIMI, **answer(strict=False)).chat.schema == {"type": "object"}
    assert parsed(OPEN, **answer()).chat.schema == odd


def test_kimi_counts_the_bytes_of_stop_strings() -> None:
    assert "33 bytes" in refused(KIMI, stop="\u6708" * 11)
    assert "6 strings" in refused(KIMI, stop=list("abcdef"))
    parsed(KIMI, stop=["x" * 32] * 5)
    parsed(OPEN, stop="x" * 33)


def test_kimi_knows_no_budget() -> None:
    assert "no member 'budget_tokens'" in refused(KIMI, thinking={"budget_tokens": 5})
    parsed(KIMI, thinking={"type": "enabled", "keep": None})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"chat_template_kwargs": {}},
            "Unrecognized request argument supplied: chat_template_kwargs",
        ),
        ({"top_k": 3}, "Unrecognized request argument supplied: top_k"),
        ({"stop": list("abcde")}, "at most 4"),
        ({"tool_choice": "auto"}, "'tool_choice' is only allowed when 'tools' are specified"),
        ({"stream_options": {"include_usage": True}}, "only allowed when 'stream' is enabled"),
        ({"tools": [tool("a.b")]}, "tools[0].function.name"),
        ({"response_format": {"type": "json_object"}}, "must contain the word 'json'"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, USER]},
            "must be followed by tool messages",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]},
            "must be followed by tool messages",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "other", "content": "r"},
                ]
            },
            "must be a response to a preceding message",
        ),
    ],
)
def test_openai_refuses(fields: dict[str, Any], says: str) -> None:
    assert says in refused(OPENAI, **fields)
    parsed(OPEN, **fields)


def test_openai_takes_a_loop_in_order() -> None:
    result = {"role": "tool", "tool_call_id": "c", "content": "r"}
    loop = [USER, {"role": "assistant", "tool_calls": [CALL]}, result]
    parsed(OPENAI, messages=loop)
    parsed(OPENAI, messages=[*loop, {"role": "assistant", "content": "done"}, USER])
    assert "must be a response" in refused(OPENAI, messages=[*loop, result])


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object"}, "'additionalProperties' must be supplied"),
        ({"anyOf": [{"type": "null"}]}, "the root must be of type 'object'"),
        (
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {"a": {"type": "null"}},
            },
            "'a' too",
        ),
        (
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["a"],
                "properties": {"a": {"type": "array", "items": {"type": "object"}}},
            },
            "in '.a'",
        ),
    ],
)
def test_openai_closes_strict_schemas(schema: dict[str, Any], says: str) -> None:
    strict = tool(**schema)
    strict["function"]["strict"] = True
    assert says in refused(OPENAI, tools=[strict])
    parsed(OPENAI, tools=[tool(**schema)])
    parsed(OPENAI, reasoning_effort="low", seed=1, store=True)


def test_kimi_refuses_an_empty_text_beside_another() -> None:
    parts = [{"type": "text", "text": text} for text in ("hi", "")]
    said = refused(KIMI, messages=[{"role": "user", "content": parts}])
    assert said == "text content is empty. [messages[0].content[1].text]"


def test_an_effort_is_openais_own() -> None:
    assert parsed(OPENAI, reasoning_effort="none").headers == {}
