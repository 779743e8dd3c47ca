"""Anthropic's messages: through the official client, and their parts on their own."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.fake import CARD, FakeProvider, broken
from moonlet.chat.messages import ImagePart, TextPart
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    collect_all,
)
from moonlet.errors import MediaError, MoonletError
from moonlet.server import create_app
from moonlet.server.anthropic_in import to_chat
from moonlet.server.anthropic_out import MessageEncoder, error_body
from moonlet.server.errors import ApiError
from moonlet.server.request import parse_request
from tests.server.running import WAIT_S, Running, serving
from tests.server.stream import ANSWER, scripts, told

HELLO: Any = [{"role": "user", "content": "347+285?"}]
ASKED: Any = {"model": "fake", "max_tokens": 99, "messages": HELLO}
CALLS: list[Event] = [
    ReasoningDelta("Look."),
    TextDelta("Let me look."),
    ToolCallStart(0, "functions.weather:0", "weather"),
    ToolCallDelta(0, '{"city": '),
    ToolCallDelta(0, '"Lisboa"}'),
    ToolCallEnd(0),
    ToolCallStart(1, "functions.time:1", "time"),
    ToolCallDelta(1, "{}"),
    ToolCallEnd(1),
    Finish("tool_calls", Usage(20, 12, 2)),
]
TOOL: Any = {
    "name": "weather",
    "description": "The weather now",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    "cache_control": {"type": "ephemeral"},
}


@pytest.fixture(scope="module")
def provider() -> FakeProvider:
    return FakeProvider(ANSWER)


def client_of(server: Running, path: str = "") -> Anthropic:
    return Anthropic(base_url=server.url + path, api_key="none", max_retries=0, timeout=WAIT_S)


@pytest.fixture(params=["", "/anthropic"])
def client(server: Running, request: pytest.FixtureRequest) -> Iterator[Anthropic]:
    with client_of(server, request.param) as client:
        yield client


def chat(**fields: Any) -> ChatRequest:
    """What a request asks of the provider."""
    try:
        body, places = to_chat({**ASKED, **fields})
        try:
            return parse_request(body, CARD).chat
        except MoonletError as error:
            raise places.relocated(error) from error  # type: ignore[arg-type]
    finally:
        pass


def test_plain_answer(client: Anthropic) -> None:
    message = client.messages.create(**ASKED)
    assert message.to_dict() == {
        "id": message.id,
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [
            {"type": "thinking", "thinking": "7+5=12, carry 1.", "signature": "moonlet"},
            {"type": "text", "text": "It is 632."},
        ],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 6,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "output_tokens": 9,
        },
    }


def test_the_stream_has_every_event_in_its_place(server: Running) -> None:
    with client_of(server) as client:
        raw = client.messages.with_streaming_response.create(**ASKED, stream=True)
        with raw as response:
            lines = list(response.iter_lines())
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    block = ["content_block_start", "content_block_delta", "content_block_delta"]
    assert names == [
        "message_start",
        "ping",
        *block,
        "content_block_delta",  # the signature
        "content_block_stop",
        *block,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_prompt_is_counted_before_the_answer_comes() -> None:
    """What the cache spared is known at the end only, where it is told."""
    gate = asyncio.Event()
    with (
        serving(create_app(FakeProvider([Started(10), gate, *ANSWER]))) as server,
        client_of(server) as client,
        client.messages.create(**ASKED, stream=True) as stream,
    ):
        events = iter(stream)
        first = next(events)
        assert first.type == "message_start"
        assert (first.message.usage.input_tokens, first.message.usage.output_tokens) == (10, 0)
        server.loop.call_soon_threadsafe(gate.set)
        [last] = [event for event in events if event.type == "message_delta"]
    assert (last.usage.input_tokens, last.usage.cache_read_input_tokens) == (6, 4)


def test_the_clients_own_collector_agrees(client: Anthropic) -> None:
    plain = client.messages.create(**ASKED)
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "It is 632."
    assert {**message.model_dump(), "id": None} == {**plain.model_dump(), "id": None}


def test_calls_go_out_and_their_results_come_back() -> None:
    provider = FakeProvider(CALLS)
    with serving(create_app(provider)) as server, client_of(server) as client:
        asked: Any = {
            **ASKED,
            "tools": [TOOL],
            "thinking": {"type": "enabled", "budget_tokens": 50},
        }
        with client.messages.stream(**asked) as stream:
            first = stream.get_final_message()
        plain = client.messages.create(**asked)
        calls: Any = [block for block in first.content if block.type == "tool_use"]
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": f"r{i}"}
            for i, call in enumerate(calls)
        ]
        turns = [
            *HELLO,
            {"role": "assistant", "content": [block.to_dict() for block in first.content]},
            {"role": "user", "content": [*results, {"type": "text", "text": "Well?"}]},
        ]
        client.messages.create(**{**asked, "messages": turns})
    assert first.stop_reason == plain.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [
        ("weather", {"city": "Lisboa"}),
        ("time", {}),
    ]
    assert all(call.id.startswith("toolu_") for call in calls)
    assert [{**block.to_dict(), "id": None} for block in plain.content] == [
        {**block.to_dict(), "id": None} for block in first.content
    ]
    request = provider.requests[-1]
    assert request.thinking_budget == 50
    assert [m.role for m in request.messages] == ["user", "assistant", "tool", "tool", "user"]
    turn, *told_results = request.messages[1:4]
    assert (turn.reasoning, turn.text) == ("Look.", "Let me look.")
    assert [(call.name, call.arguments) for call in turn.tool_calls] == [
        ("weather", '{"city": "Lisboa"}'),
        ("time", "{}"),
    ]
    assert [m.tool_call_id for m in told_results] == [call.id for call in turn.tool_calls]
    assert [m.text for m in told_results] == ["r0", "r1"]
    assert request.tools == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather now",
                "parameters": TOOL["input_schema"],
            },
        }
    ]


def test_counting(client: Anthropic) -> None:
    count = client.messages.count_tokens(model="fake", messages=HELLO, tools=[TOOL])
    assert count.input_tokens == 10
    usage = client.messages.create(**ASKED).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == 10


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (Finish("length", Usage(1, 1, 0)), "max_tokens", None),
        (Finish("stop", Usage(1, 1, 0), stop="END"), "stop_sequence", "END"),
    ],
)
def test_why_an_answer_ended(finish: Finish, reason: str, sequence: str | None) -> None:
    app = create_app(FakeProvider([TextDelta("a"), finish]))
    with serving(app) as server, client_of(server) as client:
        plain = client.messages.create(**ASKED, stop_sequences=["END"])
        with client.messages.stream(**ASKED) as stream:
            streamed = stream.get_final_message()
    for message in (plain, streamed):
        assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_have_anthropics_shape(server: Running, stream: bool) -> None:
    with client_of(server, "/anthropic") as client:
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(**{**ASKED, "model": "claude"}, stream=stream)
        with pytest.raises(anthropic.BadRequestError) as wrong:
            client.messages.create(**{**ASKED, "max_tokens": 0}, stream=stream)
        with pytest.raises(anthropic.NotFoundError):
            client.get("/v1/nothing", cast_to=object)
    assert missing.value.body["type"] == "error"  # type: ignore[index]
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert wrong.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    assert wrong.value.body["error"]["message"].startswith("max_tokens")  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
def test_an_image_that_cannot_be_used_is_found_where_the_client_put_it(stream: bool) -> None:
    script = [MediaError("It is no image.", "messages[1].content[0]")]
    with serving(create_app(FakeProvider(script))) as server, client_of(server) as client:
        with pytest.raises(
            anthropic.BadRequestError, match=r"messages\[0\].content: It is no image"
        ):
            client.messages.create(**ASKED, system="Look.", stream=stream)
        with pytest.raises(
            anthropic.BadRequestError, match=r"messages\[0\].content: It is no image"
        ):
            client.messages.count_tokens(model="fake", messages=HELLO, system="Look.")


def test_a_failure_in_a_stream_is_an_event() -> None:
    provider = FakeProvider([TextDelta("a"), broken("the cache is full")])
    with (
        serving(create_app(provider)) as server,
        client_of(server) as client,
        client.messages.stream(**ASKED) as stream,
        pytest.raises(anthropic.APIStatusError, match="the cache is full") as caught,
    ):
        stream.until_done()
    assert caught.value.body["error"]["type"] == "api_error"  # type: ignore[index]


def test_every_status_has_its_word() -> None:
    kinds = {
        status: error_body(ApiError("x", status=status), None)["error"]["type"]
        for status in (400, 401, 404, 405, 413, 429, 500, 503)
    }
    assert kinds == {
        400: "invalid_request_error",
        401: "authentication_error",
        404: "not_found_error",
        405: "invalid_request_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        503: "overloaded_error",
    }


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {"thinking": False, "max_tokens": 99, "tools": None}),
        ({"thinking": {"type": "disabled"}}, {"thinking": False}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": True, "thinking_budget": None}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"thinking": True, "thinking_budget": 1024},
        ),
        ({"stop_sequences": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {"must_call": False}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"must_call": True, "only_tool": None}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}},
            {"must_call": True, "only_tool": "weather"},
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": None}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"parallel_tool_calls": False},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "null"}}}},
            {"schema": {"type": "null"}},
        ),
        (
            {
                "metadata": {"user_id": "u"},
                "service_tier": "auto",
                "cache_control": {},
                "made_up": 1,
            },
            {"schema": None},
        ),
    ],
)
def test_fields(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    asked = chat(**fields)
    assert {name: getattr(asked, name) for name in wanted} == wanted


def test_sampling() -> None:
    sampling = chat(temperature=0.5, top_p=0.9, top_k=7).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)


def test_blocks_become_turns() -> None:
    image = {"type": "base64", "media_type": "image/png", "data": "AA=="}
    asked = chat(
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=2;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        messages=[
            {"role": "user", "content": [
                {"type": "text", "text": "Look", "cache_control": {"type": "ephemeral"}},
                {"type": "image", "source": image},
                {"type": "image", "source": {"type": "url", "url": "http://a/b.png"}},
                {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "xx"},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1]}},
            ]},
            {"role": "system", "content": "Be quick."},
            {"role": "user", "content": [
                {"type": "text", "text": "There."},
                {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True,
                 "content": [{"type": "text", "text": "R"}, {"type": "image", "source": image}]},
            ]},
        ],
    )  # fmt: skip
    assert [(m.role, m.text) for m in asked.messages] == [
        ("system", "Be brief."),
        ("user", "Look"),
        ("assistant", ""),
        ("system", "Be quick."),
        ("tool", "R"),
        ("user", "There."),
    ]
    data = ImagePart("data:image/png;base64,AA==")
    assert asked.messages[1].parts == (
        TextPart("Look"),
        data,
        ImagePart("http://a/b.png"),
        ImagePart("ms://file-1"),
    )
    assert asked.messages[2].reasoning == "Hm"
    assert asked.messages[2].tool_calls[0].arguments == '{"a": [1]}'
    assert asked.messages[4].parts == (TextPart("R"), data)


def test_a_result_may_be_empty_and_an_answer_may_be_begun() -> None:
    turns = [
        *HELLO,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
        {"role": "assistant", "content": "It is"},
    ]
    messages = chat(messages=turns).messages
    assert [(m.role, m.text, m.partial) for m in messages[2:]] == [
        ("tool", "", False),
        ("assistant", "It is", True),
    ]


def _said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["a"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        (_said({"type": "text"}), "messages[0].content[0].text"),
        (_said({"type": "document"}), "messages[0].content[0].type"),
        (_said({"type": "text", "text": ""}, {"type": "text", "text": ""}), "messages[0].content[0].text"),
        (_said({"type": "image"}), "messages[0].content[0].source.type"),
        (_said({"type": "image", "source": {"type": "base64", "media_type": "text/html", "data": ""}}),
         "messages[0].content[0].source.media_type"),
        (_said({"type": "image", "source": {"type": "url"}}), "messages[0].content[0].source.url"),
        (_said({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
        (_said({"type": "tool_result", "tool_use_id": "t"}), "messages[0].content[0]"),
        (_said({"type": "tool_use", "id": "t", "name": "f"}), "messages[0].content[0].type"),
        (_said({"type": "tool_use", "id": "t", "name": "f", "input": "x"}, role="assistant"),
         "messages[0].content[0].input"),
        (_said({"type": "tool_use", "id": "t", "name": ""}, role="assistant"), "messages[0].content[0].name"),
        (_said({"type": "thinking"}, role="assistant"), "messages[0].content[0].thinking"),
        (_said({"type": "server_tool_use"}, role="assistant"), "messages[0].content[0].type"),
        ({"system": 3}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, {"name": "a b", "input_schema": {}}]}, "tools[1].name"),
        ({"tools": [{"name": "a", "input_schema": 3}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_arguments_that_are_no_object_are_not_lost() -> None:
    for text in ('{"a": ', "[1]"):
        events: list[Event] = [
            ToolCallStart(0, "functions.f:0", "f"),
            ToolCallDelta(0, text),
            ToolCallEnd(0),
            Finish("tool_calls", Usage(1, 1, 0)),
        ]
        assert _plain(events)["content"][0]["input"] == {"_raw": text}


@given(scripts())
def test_a_stream_says_what_the_plain_answer_says(script: list[Event]) -> None:
    encoder = MessageEncoder("fake")
    stream = told(encoder.start() + b"".join(map(encoder.event, script)) + encoder.end())
    message = next(event["message"] for event in stream if event["type"] == "message_start")
    inputs: dict[int, str] = {}
    open_block = None
    for event in stream:
        match event["type"]:
            case "content_block_start":
                assert open_block is None
                open_block = event["index"]
                assert open_block == len(message["content"])
                message["content"].append(event["content_block"])
            case "content_block_delta":
                assert open_block == event["index"]
                delta = dict(event["delta"])
                kind = delta.pop("type")
                [(name, piece)] = delta.items()
                if kind == "input_json_delta":
                    inputs[open_block] = inputs.get(open_block, "") + piece
                else:
                    message["content"][open_block][name] += piece
            case "content_block_stop":
                assert open_block == event["index"]
                open_block = None
            case "message_delta":
                message |= event["delta"]
                message["usage"] = event["usage"]
    assert open_block is None
    assert [event["type"] for event in stream[-2:]] == ["message_delta", "message_stop"]
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text)
    assert _nameless(message) == _nameless(_plain(script))


def _plain(script: list[Event]) -> dict[str, Any]:
    async def events() -> Any:
        for event in script:
            yield event

    return MessageEncoder("fake").plain(asyncio.run(collect_all(events())))


def _nameless(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{**block, "id": None} for block in message["content"]]
    return {**message, "id": None, "content": blocks}


_NAMES = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "text",
        "name",
        "id",
        "input",
        "source",
        "data",
        "thinking",
        "tool_use",
        "tool_result",
        "user",
        "assistant",
        "tool_use_id",
        "image",
        "url",
        "base64",
        "media_type",
        "format",
        "schema",
        "system",
        "tools",
        "tool_choice",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(_NAMES | st.sampled_from(["messages", "system", "tools"]), _JSON, max_size=5)
)
def test_random_requests_are_answered_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(ApiError):  # anything else would be a 500
        chat(**fields)
