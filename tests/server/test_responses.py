"""The Responses API: through the official client, and its parts on their own."""

import asyncio
import contextlib
import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from moonlet.chat.fake import CARD, FakeProvider, broken
from moonlet.chat.messages import ImagePart, TextPart, ToolCall
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    collect_all,
)
from moonlet.errors import MediaError, MoonletError
from moonlet.server import create_app
from moonlet.server.errors import ApiError
from moonlet.server.request import parse_request
from moonlet.server.responses_in import to_chat
from moonlet.server.responses_out import ResponsesEncoder
from moonlet.server.responses_store import ResponseStore, StoreLimits, weigh
from tests.server.running import serving
from tests.server.stream import ANSWER, scripts, told

CALLS: list[Event] = [
    ReasoningDelta("Look."),
    ToolCallStart(0, "functions.weather:0", "weather"),
    ToolCallDelta(0, '{"city": '),
    ToolCallDelta(0, '"Lisboa"}'),
    ToolCallEnd(0),
    ToolCallStart(1, "functions.time:1", "time"),
    ToolCallDelta(1, "{}"),
    ToolCallEnd(1),
    Finish("tool_calls", Usage(20, 12, 2)),
]
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather now",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture(scope="module")
def provider() -> FakeProvider:
    return FakeProvider(ANSWER)


def chat(**fields: Any) -> ChatRequest:
    """What a request asks of the provider."""
    body, places = to_chat({"model": "fake", "input": "hi", **fields})
    try:
        return parse_request(body, CARD).chat
    except MoonletError as error:
        raise places.relocated(error) from error  # type: ignore[arg-type]


def test_plain_answer(client: OpenAI) -> None:
    response = client.responses.create(model="fake", input="347+285?", metadata={"a": "b"})
    assert (response.status, response.output_text) == ("completed", "It is 632.")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    thought: Any = response.output[0]
    assert thought.content[0].text == "7+5=12, carry 1."
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (10, 9, 19)
    assert usage.input_tokens_details.cached_tokens == 4
    assert usage.output_tokens_details.reasoning_tokens == 5


def test_the_stream_has_every_event_in_its_place(client: OpenAI) -> None:
    events = list(client.responses.create(model="fake", input="347+285?", stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert last.response.output_text == "It is 632."
    items = {event.item.id: event.item for event in events if event.type.endswith("item.done")}  # type: ignore[union-attr]
    assert list(items.values()) == last.response.output


def test_the_clients_own_collector_agrees(client: OpenAI) -> None:
    with client.responses.stream(model="fake", input="347+285?") as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        response = stream.get_final_response()
    assert text == response.output_text == "It is 632."


def test_calls_go_out_and_their_results_come_back() -> None:
    provider = FakeProvider(CALLS)
    question = [{"role": "user", "content": "Weather in Lisboa?"}]
    with serving(create_app(provider)) as server, server.client() as client:
        asked: Any = {"model": "fake", "tools": [WEATHER], "instructions": "Be brief."}
        first = client.responses.create(input=question, **asked)  # type: ignore[arg-type]
        calls = [item for item in first.output if item.type == "function_call"]
        results: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": f"r{i}"}
            for i, call in enumerate(calls)
        ]
        client.responses.create(input=[*question, *first.output, *results], **asked)
    assert [(call.name, call.arguments) for call in calls] == [
        ("weather", '{"city": "Lisboa"}'),
        ("time", "{}"),
    ]
    request = provider.requests[-1]
    assert [message.role for message in request.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
    ]
    turn = request.messages[2]
    assert turn.reasoning == "Look."
    assert turn.tool_calls == (
        ToolCall("functions.weather:0", "weather", '{"city": "Lisboa"}'),
        ToolCall("functions.time:1", "time", "{}"),
    )
    assert [(m.tool_call_id, m.text) for m in request.messages[3:]] == [
        ("functions.weather:0", "r0"),
        ("functions.time:1", "r1"),
    ]
    assert request.tools == [
        {"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}
    ]


def test_streamed_calls_are_the_plain_ones() -> None:
    with serving(create_app(FakeProvider(CALLS))) as server, server.client() as client:
        plain = client.responses.create(model="fake", input="?")
        events: Any = list(client.responses.create(model="fake", input="?", stream=True))
    pieces: dict[str, str] = {}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            pieces[event.item_id] = pieces.get(event.item_id, "") + event.delta
    items = [item for item in events[-1].response.output if item.type == "function_call"]
    calls = [item for item in plain.output if item.type == "function_call"]
    assert [pieces[item.id] for item in items] == [call.arguments for call in calls]
    assert [item.call_id for item in items] == ["functions.weather:0", "functions.time:1"]


def test_reasoning_survives_a_client_that_keeps_only_what_it_cannot_read() -> None:
    provider = FakeProvider(CALLS)
    with serving(create_app(provider)) as server, server.client() as client:
        first = client.responses.create(
            model="fake", input="?", store=False, include=["reasoning.encrypted_content"]
        )
        kept: Any = [item.to_dict() for item in first.output]
        del kept[0]["content"]
        results: Any = [
            {"type": "function_call_output", "call_id": item["call_id"], "output": "r"}
            for item in kept[1:]
        ]
        client.responses.create(
            model="fake", input=[{"role": "user", "content": "?"}, *kept, *results]
        )
    assert provider.requests[-1].messages[1].reasoning == "Look."


def test_a_conversation_goes_on_from_the_response_before(
    client: OpenAI, provider: FakeProvider
) -> None:
    first = client.responses.create(model="fake", input="one", instructions="Be brief.")
    second = client.responses.create(model="fake", input="two", previous_response_id=first.id)
    client.responses.create(model="fake", input="three", previous_response_id=second.id)
    turns = [(m.role, m.text, m.reasoning) for m in provider.requests[-1].messages]
    answer = ("assistant", "It is 632.", "7+5=12, carry 1.")
    assert turns == [
        ("user", "one", None),
        answer,
        ("user", "two", None),
        answer,
        ("user", "three", None),
    ]
    assert client.responses.retrieve(first.id).output == first.output
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input="four", previous_response_id=second.id)
    assert caught.value.param == "previous_response_id"


def test_what_was_streamed_is_kept_too_and_what_was_not_to_be_is_not(client: OpenAI) -> None:
    events: Any = list(client.responses.create(model="fake", input="one", stream=True))
    assert client.responses.retrieve(events[-1].response.id).output_text == "It is 632."
    unkept = client.responses.create(model="fake", input="one", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def kept(number: int, previous: str | None = None) -> dict[str, Any]:
    return {"id": f"resp_{number}", "output": [number], "previous_response_id": previous}


def test_the_store_keeps_so_many() -> None:
    store = ResponseStore(StoreLimits(count=2))
    store.put(kept(0), [{"a": 0}])
    store.put(kept(1, "resp_0"), [{"a": 1}])
    assert store.history("resp_1") == [{"a": 0}, 0, {"a": 1}, 1]
    assert store.history(None) == []
    store.put(kept(2, "resp_0"), [])  # what others go on from is the last to go
    assert store.history("resp_2") == [{"a": 0}, 0, 2]
    with pytest.raises(ApiError, match="there is no response"):
        store.history("resp_1")


def test_the_store_keeps_so_many_bytes() -> None:
    store = ResponseStore(StoreLimits(bytes_each=10_000, bytes_total=25_000))
    store.put(kept(0), [{"a": "x" * 10_000}])  # too large by itself
    assert len(store) == 0
    for number in range(1, 4):
        store.put(kept(number), [{"a": "x" * 8_000}])
    assert len(store) == 2
    with pytest.raises(ApiError, match="there is no response"):
        store.get("resp_1")
    store.delete("resp_2")
    store.delete("resp_3")
    store.put(kept(4), [{"a": "x" * 8_000}])
    store.put(kept(5), [{"a": "x" * 8_000}])
    assert len(store) == 2  # what was deleted weighs nothing


def test_weighing_stops_early() -> None:
    assert weigh(["x" * 10], 10**6) == 2 * 64 + 10
    assert weigh([[]] * 10**6, 1000) < 2000 + 10**3


def test_an_answer_that_the_limit_cuts_off_is_incomplete() -> None:
    cut: list[Event] = [
        TextDelta("a"),
        ToolCallStart(0, "functions.f:0", "f"),
        ToolCallDelta(0, '{"a'),
    ]
    script = [*cut, Finish("length", Usage(1, 2, 0))]
    with serving(create_app(FakeProvider(script))) as server, server.client() as client:
        plain = client.responses.create(model="fake", input="?")
        events: Any = list(client.responses.create(model="fake", input="?", stream=True))
    assert events[-1].type == "response.incomplete"
    for response in (plain, events[-1].response):
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert [item.type for item in response.output] == ["message"]  # half a call is none
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.status for item in done] == ["completed", "incomplete"]


@pytest.mark.parametrize(
    "script", [[broken("the cache is full")], [TextDelta("a"), broken("the cache is full")]]
)
def test_a_failure_ends_a_stream_that_has_begun(script: list[Any]) -> None:
    gate = asyncio.Event()
    app = create_app(FakeProvider([gate, *script]), keep_alive_s=0.01)
    with serving(app) as server, server.client() as client:
        raw = client.responses.with_streaming_response.create(model="fake", input="?", stream=True)
        with raw as response:
            lines = response.iter_lines()
            assert next(lines) == ": keep-alive"
            server.loop.call_soon_threadsafe(gate.set)
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    terminal = [event for event in events if "response" in event][2:]
    assert [event["type"] for event in terminal] == ["response.failed"]
    assert terminal[0]["response"]["error"]["message"] == "the cache is full"


def test_an_image_that_cannot_be_used_is_found_where_the_client_put_it() -> None:
    script = [MediaError("It is no image.", "messages[1].content[0]")]
    parts: Any = [{"type": "input_image", "image_url": "data:x"}]
    asked: Any = {
        "instructions": "Look.",
        "input": [{"role": "user", "content": parts}],
    }
    with serving(create_app(FakeProvider(script))) as server, server.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.create(model="fake", stream=stream, **asked)
            assert caught.value.param == "input[0].content[0]"
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.input_tokens.count(model="fake", **asked)
        assert caught.value.param == "input[0].content[0]"


def test_input_tokens(client: OpenAI) -> None:
    assert client.responses.input_tokens.count(model="fake", input="hi").input_tokens == 10


def test_logprobs_only_when_asked(client: OpenAI) -> None:
    tokens = (TokenLogprob(b"a", -0.5, ((b"a", -0.5), (b"b", -1.5))),)
    script = [TextDelta("a", logprobs=tokens), Finish("stop", Usage(1, 1, 0))]
    provider = FakeProvider(script)
    with serving(create_app(provider)) as server, server.client() as asking:
        response: Any = asking.responses.create(model="fake", input="?", top_logprobs=2)
        [part] = response.output[0].content
        assert (part.logprobs[0].token, part.logprobs[0].top_logprobs[1].logprob) == ("a", -1.5)
        assert provider.requests[-1].logprobs == 2
        asking.responses.create(model="fake", input="?", include=["message.output_text.logprobs"])
        assert provider.requests[-1].logprobs == 0
    assert chat().logprobs is None


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"max_output_tokens": 7}, {"max_tokens": 7}),
        ({"reasoning": {"effort": "none"}}, {"thinking": False}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"thinking": True}),
        ({"reasoning": {"enabled": False}}, {"thinking": False}),
        ({"thinking": {"type": "disabled"}}, {"thinking": False}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"schema": None}),
        ({"text": {"format": {"type": "json_object"}}}, {"schema": {"type": "object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "null"}}}},
            {"schema": {"type": "null"}},
        ),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"tools": [WEATHER], "tool_choice": "none"}, {"tools": None}),
        ({"tools": [WEATHER], "tool_choice": "required"}, {"must_call": True, "only_tool": None}),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
            {"must_call": True, "only_tool": "weather"},
        ),
        ({"metadata": {}, "truncation": "auto", "store": False, "made_up": 1}, {"tools": None}),
    ],
)
def test_fields(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    asked = chat(**fields)
    assert {name: getattr(asked, name) for name in wanted} == wanted


def test_allowed_tools_leave_out_the_others() -> None:
    other = {**WEATHER, "name": "other"}
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "weather"}],
    }
    asked = chat(tools=[other, WEATHER], tool_choice=choice)
    assert asked.must_call
    assert [tool["function"]["name"] for tool in asked.tools or []] == ["weather"]


def test_items_become_turns() -> None:
    asked = chat(
        input=[
            {"role": "developer", "content": "Be brief."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"},
                    {"type": "input_image", "file_id": "file-1"},
                ],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}],
             "encrypted_content": "of another vendor"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{ }"},
            {"type": "function_call_output", "call_id": "c1",
             "output": [{"type": "input_text", "text": "R"}]},
            {"role": "assistant", "content": "B"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "C"}]},
            {"role": "user", "content": "D"},
        ]
    )  # fmt: skip
    assert [(m.role, m.text) for m in asked.messages] == [
        ("system", "Be brief."),
        ("user", "What is this?"),
        ("assistant", "A"),
        ("tool", "R"),
        ("assistant", "B"),
        ("assistant", "C"),
        ("user", "D"),
    ]
    assert asked.messages[1].parts == (
        TextPart("What is this?"),
        ImagePart("data:image/png;base64,AA=="),
        ImagePart("ms://file-1"),
    )
    assert asked.messages[2].tool_calls[0].arguments == "{ }"
    assert not asked.messages[2].reasoning


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"]}, "input[0]"),
        ({"input": [{"role": "user", "content": "a"}, {"type": "item_reference", "id": "x"}]}, "input[1].type"),
        ({"input": [{"type": 3}]}, "input[0].type"),
        ({"input": [{"role": "king", "content": "a"}]}, "input[0].role"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": ""}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"instructions": "x", "input": [{"role": "user", "content": [{"type": "input_text", "text": ""}]}]},
         "input[0].content[0].text"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": ""}]}, "input[0].name"),
        ({"input": [{"type": "reasoning", "encrypted_content": "moonlet:!"}]}, "input[0].encrypted_content"),
        ({"input": [{"type": "reasoning", "content": [{"text": 3}]}]}, "input[0].content[0].text"),
        ({"instructions": 3}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, {"type": "function", "name": "a b"}]}, "tools[1].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": 3}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": "x"}, "include"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "messages[" not in caught.value.message


@given(scripts())
def test_the_last_event_of_a_stream_holds_the_plain_answer(script: list[Event]) -> None:
    async def events() -> Any:
        for event in script:
            yield event

    plain = ResponsesEncoder("fake", {}).plain(asyncio.run(collect_all(events())))
    encoder = ResponsesEncoder("fake", {})
    stream = told(encoder.start() + b"".join(map(encoder.event, script)) + encoder.end())
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    terminals = [e for e in stream if e["type"] in ("response.completed", "response.incomplete")]
    assert terminals == stream[-1:]
    last = stream[-1]["response"]
    assert _nameless(last["output"]) == _nameless(plain["output"])
    assert (last["status"], last["usage"]) == (plain["status"], plain["usage"])
    assert [e["item"] for e in stream if e["type"] == "response.output_item.done"] == last["output"]


def _nameless(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**item, "id": None, "status": None} for item in items]


_NAMES = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "text",
        "name",
        "call_id",
        "arguments",
        "output",
        "message",
        "input_text",
        "reasoning",
        "function_call",
        "tools",
        "tool_choice",
        "format",
        "schema",
        "effort",
        "include",
        "user",
        "assistant",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_NAMES | st.sampled_from(["input", "instructions"]), _JSON, max_size=5))
def test_random_requests_are_answered_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(ApiError):  # anything else would be a 500
        chat(**fields)
