"""What a request may say: every field's good and bad values, and random bodies that must not hurt."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moonlet.chat.fake import CARD, FakeProvider, says
from moonlet.chat.provider import ChatRequest, Sampling
from moonlet.errors import PromptError
from moonlet.server import create_app
from moonlet.server.body import MAX_DEPTH, MAX_STRUCTURE, parse_object
from moonlet.server.errors import ApiError
from moonlet.server.request import ApiRequest, parse_request
from tests.server.running import Running, serving

BODY: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def json_schema(**fields: Any) -> dict[str, Any]:
    spec = {"name": "answer", "schema": {"type": "object"}, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": spec}}


def parsed(**fields: Any) -> ApiRequest:
    return parse_request({**BODY, **fields}, CARD)


def test_defaults() -> None:
    request = parsed()
    assert request.chat.thinking
    assert not request.chat.preserve_thinking
    assert request.chat.max_tokens is None
    assert request.chat.sampling == Sampling()
    assert request.chat == ChatRequest(request.chat.messages)
    assert (request.stream, request.include_usage, request.chat.stop) == (False, False, ())


def test_null_is_absent() -> None:
    names = "temperature top_p top_k seed stop max_tokens max_completion_tokens n stream tools"
    names += " tool_choice thinking chat_template_kwargs response_format stream_options logprobs"
    assert parsed(**dict.fromkeys(names.split())) == parsed()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"logprobs": False, "top_logprobs": 0, "logit_bias": {}},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
        {"response_format": {"type": "text"}},
        {"user": "me", "store": True, "metadata": {"a": "b"}, "made_up": [1, {}]},
        {"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": True}},
        {"stream_options": {"include_usage": False, "include_obfuscation": True}},
        {"tools": [], "tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": True},
        {"reasoning_effort": "high", "enable_thinking": True, "reasoning": {"enabled": True}},
        {"prompt_cache_key": "session", "safety_identifier": "u", "stream_reasoning": True},
        {
            "functions": [],
            "guided_json": None,
            "reasoning_format": "auto",
            "include_reasoning": True,
        },
    ],
)
def test_what_changes_nothing(fields: dict[str, Any]) -> None:
    assert replace(parsed(**fields), headers={}) == parsed()


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled"}}, True),
        ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False, "other": 3}}, False),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"enabled": False}}, False),
        ({"reasoning": {"max_tokens": 9}}, True),
        ({"thinking_budget": 0}, False),
        ({"thinking": {"budget_tokens": 0}}, False),
    ],
)
def test_the_thinking_switch(fields: dict[str, Any], thinking: bool) -> None:
    assert parsed(**fields).chat.thinking is thinking


def test_reasoning_may_be_preserved_in_either_spelling() -> None:
    assert parsed(thinking={"keep": "all"}).chat.preserve_thinking
    assert parsed(chat_template_kwargs={"preserve_thinking": True}).chat.preserve_thinking


def test_a_model_that_cannot_think() -> None:
    card = replace(CARD, supports_reasoning=False)
    assert not parse_request(BODY, card).chat.thinking
    with pytest.raises(ApiError, match="cannot think"):
        parse_request({**BODY, "thinking": {"type": "enabled"}}, card)


def test_stop_and_limits() -> None:
    assert parsed(stop="a").chat.stop == ("a",)
    assert parsed(stop=list("abcde")).chat.stop == tuple("abcde")
    assert parsed(max_tokens=5).chat.max_tokens == 5
    assert parsed(max_tokens=5, max_completion_tokens=5).chat.max_tokens == 5
    assert parsed(max_completion_tokens=CARD.context_length).chat.max_tokens == CARD.context_length


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_budget": 64},
        {"thinking_token_budget": 64},
        {"thinking_budget_tokens": 64},
        {"thinking": {"type": "enabled", "budget_tokens": 64}},
        {"reasoning": {"max_tokens": 64}},
        {"thinking_budget": 64, "thinking": {"budget_tokens": 64}},
    ],
)
def test_every_spelling_of_the_thinking_budget(fields: dict[str, Any]) -> None:
    assert parsed(**fields).chat.thinking_budget == 64
    off = parsed(**fields, enable_thinking=False) if "type" not in str(fields) else parsed()
    assert off.chat.thinking_budget is None


def test_thinking_can_be_left_out_of_the_answer() -> None:
    assert not parsed(include_reasoning=False).shows_reasoning
    assert not parsed(reasoning={"exclude": True}).shows_reasoning
    assert parsed().shows_reasoning


def test_sampling_reaches_the_provider() -> None:
    sampling = parsed(
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=0.5,
        logit_bias={"0": -100, "17": 2.5},
    ).chat.sampling
    assert sampling == Sampling(
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2.0,
        frequency_penalty=0.5,
        logit_bias=((0, -100.0), (17, 2.5)),
    )


def test_choices_logprobs_and_deadline() -> None:
    assert parsed(n=3, temperature=0).chat.n == 3
    assert parsed(logprobs=True).chat.logprobs == 0
    assert parsed(logprobs=True, top_logprobs=20).chat.logprobs == 20
    assert parsed(deadline_s=1.5).chat.deadline_s == 1.5
    assert not parsed(parallel_tool_calls=False).chat.parallel_tool_calls


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinking", [False, True])
def test_the_matrix_of_tool_choice(stream: bool, thinking: bool) -> None:
    """Open serves every one of them, thinking or not."""
    switch = {"thinking": {"type": "enabled" if thinking else "disabled"}, "stream": stream}
    wanted = {
        "auto": ([TOOL], False, None),
        "none": (None, False, None),
        "required": ([TOOL], True, None),
    }
    for word, expected in wanted.items():
        chat = parsed(tools=[TOOL], tool_choice=word, **switch).chat
        assert (chat.tools, chat.must_call, chat.only_tool) == expected
    chat = parsed(tools=[TOOL], tool_choice=named("f"), **switch).chat
    assert (chat.tools, chat.must_call, chat.only_tool, chat.thinking) == (
        [TOOL], True, "f", thinking,
    )  # fmt: skip


def test_the_schema_of_the_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}
    assert parsed(**json_schema(schema=schema)).chat.schema == schema
    assert parsed(response_format={"type": "json_object"}).chat.schema == {"type": "object"}
    assert parsed(response_format={"type": "text"}).chat.schema is None


def test_a_schema_that_is_not_strict_is_enforced_where_that_is_certain() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert parsed(**json_schema(schema=plain, strict=False)).chat.schema == plain
    odd = {"type": "object", "not": {"type": "string"}}
    assert parsed(**json_schema(schema=odd, strict=False)).chat.schema == {"type": "object"}


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_does_not_go_with_a_prefix(kind: str) -> None:
    fields = {
        **json_schema(),
        "messages": [*BODY["messages"], {"role": "assistant", "content": "{", "partial": True}],
    }
    fields["response_format"]["type"] = kind
    with pytest.raises(ApiError, match="partial") as caught:
        parsed(**fields)
    assert caught.value.param == "response_format"


def call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_a_history_is_repaired_and_that_is_told() -> None:
    loop = [
        *BODY["messages"],
        {"role": "assistant", "tool_calls": [call("call_abc")]},
        {"role": "tool", "tool_call_id": "call_abc", "content": "5"},
    ]
    request = parsed(messages=loop)
    assert request.headers == {"x-moonlet-repairs": "reasoning, tool_ids"}
    assert request.chat.messages[1].tool_calls[0].id == "functions.f:0"
    assert request.chat.messages[2].tool_call_id == "functions.f:0"
    assert parsed().headers == {}


def test_a_partial_message_goes_on() -> None:
    begun = {"role": "assistant", "content": "It is ", "partial": True}
    request = parsed(messages=[*BODY["messages"], begun])
    assert request.chat.messages[-1].partial


def test_tools_go_on_unchanged() -> None:
    assert parsed(tools=[TOOL]).chat.tools == [TOOL]
    assert parsed(tools=[TOOL], tool_choice="none").chat.tools is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.0}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": list("abcdef")}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": CARD.context_length + 1}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"logit_bias": {"01": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "5"}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(5000)}}, "logit_bias"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"user": 3}, "user"),
        ({"prompt_cache_key": []}, "prompt_cache_key"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"guided_json": {}}, "guided_json"),
        ({"separate_reasoning": False}, "separate_reasoning"),
        ({"reasoning_format": "none"}, "reasoning_format"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"schema": {}}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (json_schema(name=None), "response_format.json_schema.name"),
        (json_schema(schema=None), "response_format.json_schema.schema"),
        (json_schema(schema=[]), "response_format.json_schema.schema"),
        (json_schema(strict="yes"), "response_format.json_schema.strict"),
        ({"response_format": "json"}, "response_format"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget": 1}}, "thinking"),
        ({"thinking": {"budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"thinking_budget": 5, "thinking": {"budget_tokens": 6}}, "thinking_budget"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"reasoning": "on"}, "reasoning"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "thinking"),
        ({"reasoning": {"enabled": True}, "thinking_budget": 0}, "thinking"),
        ({"thinking": {"keep": "some"}}, "thinking.keep"),
        ({"chat_template_kwargs": {"thinking": 1}}, "chat_template_kwargs.thinking"),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": True}},
            "thinking",
        ),
        ({"chat_template_kwargs": {"enable_thinking": False, "thinking": True}}, "thinking"),
        ({"tools": {}}, "tools"),
        ({"tools": [TOOL] * 2}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{"type": "builtin_function"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": named("g")}, "tool_choice"),
        ({"tool_choice": named("f")}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": [1]}, "tool_choice"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises((ApiError, PromptError)) as caught:
        parsed(**fields)
    assert caught.value.param == param
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "Infinity is not a JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, f"deeper than {MAX_DEPTH}"),
        (b"[" * 1_000_000, f"deeper than {MAX_DEPTH}"),
    ],
)
def test_bodies_that_are_not_a_json_object(body: bytes, says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        parse_object(body)
    assert caught.value.status == 400


def test_depth_is_counted_exactly() -> None:
    deepest = MAX_DEPTH - 1  # the object itself is the first level
    assert parse_object(b'{"a":' + b"[" * deepest + b"]" * deepest + b"}")
    with pytest.raises(ApiError, match="nested"):
        parse_object(b'{"a":' + b"[" * (deepest + 1) + b"]" * (deepest + 1) + b"}")


def test_lone_surrogates_become_replacement_characters() -> None:
    body = rb'{"lone": "a\ud800b", "\udfff": 1, "pair": "\ud83d\ude00", "escaped": "\\ud800"}'
    assert parse_object(body) == {
        "lone": "a\ufffdb",
        "\ufffd": 1,
        "pair": "\U0001f600",
        "escaped": "\\ud800",
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(create_app(FakeProvider(says("ok")))) as running:
        yield running


def test_lone_surrogates_do_not_hurt_the_answer(server: Running) -> None:
    status, answer = server.post(rb'{"model": "\ud800"}')
    assert status == 404
    assert "\ufffd" in answer["error"]["message"]


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "thinking",
    "chat_template_kwargs",
    "response_format",
    "logprobs",
    "functions",
    "top_logprobs",
    "logit_bias",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "parallel_tool_calls",
    "thinking_budget",
    "reasoning",
    "reasoning_effort",
    "user",
    "prompt_cache_key",
    "deadline_s",
]
PART = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "image_url"]), "text": JSON}
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON},
    optional={"content": JSON | st.lists(PART), "tool_calls": JSON, "name": JSON},
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {
            "model": st.just("fake") | JSON,
            "messages": st.just(BODY["messages"]) | st.lists(MESSAGE),
        },
        optional=dict.fromkeys(FIELDS, JSON),
    )
)
def test_no_body_is_our_fault(server: Running, body: dict[str, Any]) -> None:
    """Whatever a well-formed JSON object holds, the answer is an answer or a refusal with its reason."""
    if body.get("stream") is True:
        body["stream"] = False
    status, answer = server.post(json.dumps(body).encode())
    assert status in (200, 400, 404), answer
    if status == 200:
        assert answer["choices"][0]["message"]["content"] == "ok"
    else:
        assert set(answer["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_are_our_fault(server: Running, body: bytes) -> None:
    status, answer = server.post(body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moonlet.server.body.json.loads", lambda *_, **__: pytest.fail("parsed"))
    for value in (b"[]", b"{}", b"0"):
        body = b'{"messages": [' + b",".join([value] * (MAX_STRUCTURE + 1)) + b"]}"
        with pytest.raises(ApiError, match="the body has more than 1000000") as caught:
            parse_object(body)
        assert caught.value.status == 400


def test_a_long_text_is_no_structure() -> None:
    text = "QUJD" * 1_000_000 + ", " * (MAX_STRUCTURE // 2)
    assert parse_object(json.dumps({"messages": [text]}).encode()) == {"messages": [text]}


def test_a_number_of_thousands_of_digits_is_refused_in_our_words() -> None:
    with pytest.raises(ApiError, match="a number has 5000 digits"):
        parse_object(b'{"seed": ' + b"7" * 5000 + b"}")


def test_every_dialect_that_was_read_is_told() -> None:
    def told(**fields: Any) -> str | None:
        return parsed(**fields).headers.get("x-moonlet-repairs")

    answer = {"role": "assistant", "content": "a"}
    user = BODY["messages"][0]
    assert told(messages=[user, {**answer, "reasoning": "r"}, user]) == "reasoning_renamed"
    both = {**answer, "reasoning": "r", "reasoning_content": "r"}
    assert told(messages=[user, both, user]) is None
    foreign = [
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"reasoning": {"enabled": True}},
    ]
    assert [told(**fields) for fields in foreign] == ["thinking_switch"] * 3
    own = [
        {"thinking": {"type": "disabled"}},
        {"chat_template_kwargs": {"thinking": False}},
        {"reasoning_effort": "low"},
    ]
    assert [told(**fields) for fields in own] == [None] * 3


def test_an_empty_text_beside_another_is_dropped_and_told() -> None:
    parts = [{"type": "text", "text": text} for text in ("", "hi")]
    request = parsed(messages=[{"role": "user", "content": parts}])
    assert request.chat.messages[0].text == "hi"
    assert len(request.chat.messages[0].parts) == 1
    assert request.headers == {"x-moonlet-repairs": "empty_text"}


def test_allowed_tools_narrow_the_tools() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    both = [TOOL, other]

    def asked(mode: str, *names: str) -> Any:
        return {
            "type": "allowed_tools",
            "allowed_tools": {"mode": mode, "tools": [named(n) for n in names]},
        }

    chat = parsed(tools=both, tool_choice=asked("auto", "g")).chat
    assert (chat.tools, chat.must_call, chat.only_tool) == ([other], False, None)
    chat = parsed(tools=both, tool_choice=asked("required", "g", "f")).chat
    assert (chat.tools, chat.must_call, chat.only_tool) == (both, True, None)
    flat = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "f"}],
    }
    chat = parsed(tools=both, tool_choice=flat).chat
    assert (chat.tools, chat.must_call) == ([TOOL], True)
    for wrong, told in (
        (asked("auto", "h"), "names 'h'"),
        (asked("none", "f"), "auto or required"),
        ({"type": "allowed_tools"}, "list of functions"),
        ({"type": "allowed_tools", "tools": ["f"]}, "list of functions"),
    ):
        with pytest.raises(ApiError, match=told):
            parsed(tools=both, tool_choice=wrong)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_tokens": 5}, "min_tokens is not supported; leave it out"),
        ({"ignore_eos": True}, "ignore_eos is not supported; leave it out"),
        (
            {"modalities": ["audio"]},
            "modalities is not supported; leave it out since answers are text",
        ),
        ({"guided_json": {}}, "leave it out and use response_format"),
        ({"n": 0}, "n is 0, but it must be within 1 and 16"),
        ({"n": 1000}, "n is 1000, but it must be within 1 and 16"),
    ],
)
def test_refusals_say_the_way_out(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(**fields)
    assert says in caught.value.message
    parsed(min_tokens=0, ignore_eos=False)
