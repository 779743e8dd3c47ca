"""What an endpoint is asked: the same request in its own words."""

from typing import Any

import pytest

from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import ChatRequest, Sampling
from moonlet.errors import PromptError
from moonlet.gateway.body import Thinking, chat_body

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
HI: list[Any] = [{"role": "user", "content": "hi"}]


def body(raw: list[Any] = HI, thinking: Thinking = "type", **more: Any) -> dict[str, Any]:
    return chat_body(ChatRequest(parse_messages(raw), **more), "theirs", thinking)


def test_what_was_not_asked_for_is_not_said() -> None:
    assert body() == {
        "model": "theirs",
        "messages": HI,
        "stream": True,
        "stream_options": {"include_usage": True},
        "thinking": {"type": "enabled"},
    }


def test_everything_that_can_be_asked_for() -> None:
    sampling = Sampling(
        0.5, 0.9, 40, 0.1, 0.25, -0.25, 1.1, logit_bias=((7, -1.0),), seed=2**64 - 1
    )
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = body(
        sampling=sampling, max_tokens=9, stop=("a", "b"), n=2, logprobs=3, schema=schema,
        tools=[TOOL], must_call=True, parallel_tool_calls=False,
    )  # fmt: skip
    assert {key: asked[key] for key in asked.keys() - {"messages", "stream", "stream_options"}} == {
        "model": "theirs", "thinking": {"type": "enabled"},
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
        "presence_penalty": 0.25, "frequency_penalty": -0.25, "repetition_penalty": 1.1,
        "logit_bias": {"7": -1.0}, "seed": -1, "max_tokens": 9, "stop": ["a", "b"], "n": 2,
        "logprobs": True, "top_logprobs": 3, "tools": [TOOL], "tool_choice": "required",
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    }  # fmt: skip


def test_one_tool_and_any_object() -> None:
    asked = body(tools=[TOOL], must_call=True, only_tool="f", schema={"type": "object"})
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert asked["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("thinking", "on", "off"),
    [
        ("type", {"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}}),
        (
            "template",
            {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}},
            {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}},
        ),
        ("effort", {}, {"reasoning_effort": "none"}),
        ("none", {}, {}),
    ],
)
def test_the_switch_for_thinking(thinking: Thinking, on: Any, off: Any) -> None:
    members = ("thinking", "chat_template_kwargs", "reasoning_effort")
    for wanted, value in ((on, True), (off, False)):
        asked = chat_body(ChatRequest(parse_messages(HI), thinking=value), "m", thinking)
        assert {name: asked[name] for name in members if name in asked} == wanted


def test_budgets_and_kept_thoughts() -> None:
    more: dict[str, Any] = {"thinking_budget": 64, "preserve_thinking": True}
    asked = body(**more)
    assert (asked["thinking"], asked["thinking_budget"]) == ({"type": "enabled", "keep": "all"}, 64)
    asked = body(thinking="template", **more)
    assert asked["chat_template_kwargs"]["preserve_thinking"] is True
    assert asked["thinking_token_budget"] == 64
    for thinking in ("effort", "none"):
        with pytest.raises(PromptError, match="no budget") as caught:
            body(thinking=thinking, **more)
        assert caught.value.param == "thinking_budget"


HISTORY: list[Any] = [
    {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "user", "content": "x", "name": "Ana"},
    {
        "role": "assistant",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": "{ }"}},
            {"id": "toolu_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "toolu_2", "content": "two"},
    {"role": "tool", "tool_call_id": "toolu_1", "content": ""},
    {"role": "assistant", "content": "so"},
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": "data:,"}, {"type": "text", "text": "?"}],
    },
]


def test_a_history_goes_out_whole_with_canonical_ids() -> None:
    messages = body(HISTORY)["messages"]
    assert messages[0] == {"role": "system", "content": "ab"}
    assert messages[1]["name"] == "Ana"
    assert messages[2] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{ }"}},
            {"id": "functions.g:1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }  # fmt: skip
    results = [(m["tool_call_id"], m["content"]) for m in messages if m["role"] == "tool"]
    assert results == [("functions.g:1", "two"), ("functions.f:0", "")]
    assert messages[-1]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "?"},
    ]


def test_thoughts_go_only_to_who_knows_them() -> None:
    by_dialect = {
        thinking: {key for key in body(HISTORY, thinking)["messages"][2] if "reasoning" in key}
        for thinking in ("type", "template", "effort", "none")
    }
    assert by_dialect == {
        "type": {"reasoning_content"},
        "template": {"reasoning_content", "reasoning"},
        "effort": set(),
        "none": set(),
    }


def test_partial_messages() -> None:
    raw = [*HI, {"role": "assistant", "content": "so", "partial": True}]
    assert body(raw)["messages"][-1] == {"role": "assistant", "content": "so", "partial": True}
    asked = body(raw, "template")
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert "partial" not in asked["messages"][-1]
    for thinking in ("effort", "none"):
        with pytest.raises(PromptError, match="partial") as caught:
            body(raw, thinking)
        assert caught.value.param == "messages[1].partial"


def test_limits_have_the_name_that_is_understood() -> None:
    assert body(thinking="effort", max_tokens=3)["max_completion_tokens"] == 3
    assert body(thinking="template", max_tokens=3)["max_tokens"] == 3
