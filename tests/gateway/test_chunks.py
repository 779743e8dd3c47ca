"""The stream reader: whatever an endpoint sends, in whatever pieces, is events or one sentence."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.messages import parse_messages
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
)
from moonlet.errors import PromptError, UpstreamError
from moonlet.gateway import sse
from moonlet.gateway.chunks import Chunks
from moonlet.gateway.sse import Events
from moonlet.server.encode import ChatEncoder
from tests.gateway.endpoint import DONE, chunk, event, usage
from tests.server.stream import scripts

HI: list[Any] = [{"role": "user", "content": "hi"}]
WHO = "the upstream m"
END = chunk(finish="stop") + usage(10, 5) + DONE
LAST = Finish("stop", Usage(10, 5, 0))


def request(**more: Any) -> ChatRequest:
    return ChatRequest(parse_messages(HI), **more)


def read(
    data: bytes, cuts: list[int] | None = None, asked: ChatRequest | None = None
) -> list[Event]:
    """The events of an answer that comes in pieces, cut at those places."""
    wire, chunks = Events(WHO), Chunks(WHO, asked or request())
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    objects: list[Any] = []
    for begin, end in itertools.pairwise(bounds):
        objects += wire.push(data[begin:end])
    objects += wire.end()
    events = [event for item in objects for event in chunks.push(item)]
    return events + chunks.finish()


def said(data: bytes, **more: Any) -> str:
    """The sentence that an answer ends in."""
    with pytest.raises(UpstreamError) as caught:
        read(data, asked=request(**more))
    return str(caught.value)


def test_an_answer() -> None:
    data = chunk({"role": "assistant", "content": ""}) + chunk({"reasoning_content": "hm"})
    assert read(data + chunk({"content": "a"}) + END) == [
        ReasoningDelta("hm"),
        TextDelta("a"),
        LAST,
    ]


@pytest.mark.parametrize(
    "data",
    [
        b": ping\n\nevent: x\nid: 3\nretry: 5\ndata:" + chunk({"content": "a"})[5:],
        chunk({"content": "a", "reasoning": None, "tool_calls": None, "function_call": None}),
        event({"choices": [{"delta": {"content": "a"}}]}),
        event({"choices": [{"delta": {"content": "a"}, "finish_reason": None}], "usage": None}),
        chunk({"content": "a"}).replace(b"\n", b"\r\n"),
        event({"choices": None}) + event({}) + chunk({"content": "a"}),
        event({"error": None, "choices": [{"index": 0, "delta": {"refusal": "a"}}]}),
        b"\xef\xbb\xbf\n" + chunk({"content": "a"}),
    ],
)
def test_what_endpoints_are_known_to_leave_out_or_add(data: bytes) -> None:
    assert read(data + END) == [TextDelta("a"), LAST]


@pytest.mark.parametrize(
    ("end", "finish"),
    [
        (chunk(finish="stop") + usage(9, 4), Usage(9, 4, 0)),  # no [DONE]
        (chunk(finish="stop") + usage(9, 4).strip(), Usage(9, 4, 0)),  # nor a newline
        (chunk(finish="eos") + usage(9, 4, cached_tokens=3) + DONE, Usage(9, 4, 0, 3)),
        (
            chunk(finish="stop")
            + usage(9, 4, prompt_tokens_details={"cached_tokens": 2}, cached_tokens=3)
            + DONE,
            Usage(9, 4, 0, 2),
        ),
        (chunk(finish="stop") + usage(9, 4, prompt_cache_hit_tokens=3) + DONE, Usage(9, 4, 0, 3)),
        (chunk(finish="stop") + usage(9, 4, cached_tokens=99) + DONE, Usage(9, 4, 0, 9)),
        (
            chunk(finish="stop")
            + usage(9, 4, completion_tokens_details={"reasoning_tokens": 2})
            + DONE,
            Usage(9, 4, 2),
        ),
        (chunk(finish="stop") + usage(9, 4, reasoning_tokens=7) + DONE, Usage(9, 4, 4)),
        (
            event(
                {
                    "choices": [
                        {
                            "index": 0,
                            "delta": {},
                            "finish_reason": "stop",
                            "usage": {"prompt_tokens": 9, "completion_tokens": 4},
                        }
                    ]
                }
            ),
            Usage(9, 4, 0),
        ),
        (usage(1, 1) + chunk(finish="stop") + usage(9, 4) + DONE, Usage(9, 4, 0)),
    ],
)
def test_the_end_and_its_usage(end: bytes, finish: Usage) -> None:
    assert read(chunk({"content": "a"}) + end) == [TextDelta("a"), Finish("stop", finish)]


def test_usage_that_is_not_told_is_estimated() -> None:
    wire, chunks = Events(WHO), Chunks(WHO, ChatRequest(parse_messages([{"role": "user", "content": "x" * 41}])))  # fmt: skip
    data = (
        chunk({"reasoning_content": "t" * 4}) + chunk({"content": "é" * 4}) + chunk(finish="stop")
    )
    for item in wire.push(data + DONE):
        chunks.push(item)
    assert chunks.finish() == [Finish("stop", Usage(11, 3, 1))]
    assert chunks.rough


CALL = {"index": 0, "id": "call_x", "type": "function", "function": {"name": "f", "arguments": ""}}


def call(**more: Any) -> bytes:
    return chunk({"tool_calls": [more]})


def test_calls_get_canonical_ids_counted_over_the_conversation() -> None:
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
    ]
    data = call(**CALL) + call(index=0, function={"arguments": '{"a": '})
    data += call(index=0, function={"arguments": "1}"})
    data += call(index=1, id="call_y", function={"name": "g"})
    data += chunk(finish="tool_calls") + usage(1, 2) + DONE
    assert read(data, asked=ChatRequest(parse_messages(history))) == [
        ToolCallStart(0, "functions.f:1", "f"),
        ToolCallDelta(0, '{"a": '),
        ToolCallDelta(0, "1}"),
        ToolCallEnd(0),
        ToolCallStart(1, "functions.g:2", "g"),
        ToolCallDelta(1, "{}"),  # one without arguments
        ToolCallEnd(1),
        Finish("tool_calls", Usage(1, 2, 0)),
    ]


@pytest.mark.parametrize(
    "numbers", [(0, 1), (0, 0), (None, None), (7, 9)], ids=["dense", "all 0", "none", "sparse"]
)
def test_calls_however_they_are_numbered(numbers: tuple[Any, Any]) -> None:
    data = b""
    for number, name in zip(numbers, "fg", strict=True):
        data += call(index=number, id=f"c{name}", function={"name": name, "arguments": "{"})
        data += call(index=number, function={"arguments": "}"})
    events = read(data + chunk(finish="stop") + usage(1, 2) + DONE)
    assert [e.id for e in events if isinstance(e, ToolCallStart)] == [
        "functions.f:0",
        "functions.g:1",
    ]
    assert [e.arguments for e in events if isinstance(e, ToolCallDelta)] == ["{", "}"] * 2
    assert events[-1] == Finish("tool_calls", Usage(1, 2, 0))  # though it was called a stop


def test_a_call_that_is_cut_off_has_no_end() -> None:
    data = call(**CALL) + chunk(finish="length") + usage(1, 2) + DONE
    assert read(data) == [ToolCallStart(0, "functions.f:0", "f"), Finish("length", Usage(1, 2, 0))]


def test_calls_that_never_came_are_no_reason_to_stop() -> None:
    assert read(chunk(finish="tool_calls") + usage(1, 2)) == [Finish("stop", Usage(1, 2, 0))]


def test_what_comes_too_late_is_dropped() -> None:
    data = chunk({"content": "a"}) + chunk({"reasoning": "late"}) + call(**CALL)
    data += chunk({"content": "after"}) + chunk(finish="tool_calls") + chunk({"content": "end"})
    kinds = [type(event).__name__ for event in read(data + usage(1, 2) + DONE)]
    assert kinds == ["TextDelta", "ToolCallStart", "ToolCallDelta", "ToolCallEnd", "Finish"]


def test_choices_share_a_prompt_and_the_last_one_has_the_rest() -> None:
    pieces = [
        event({"choices": [{"index": 1, "delta": {"content": "b"}}]}),
        event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}),
        event({"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]}),
        usage(10, 5, cached_tokens=4),
        DONE,
    ]
    assert read(b"".join(pieces), asked=request(n=2)) == [
        TextDelta("b", 1),
        TextDelta("a", 0),
        Finish("stop", Usage(10, 0, 0, 4), 0),
        Finish("length", Usage(10, 5, 0, 4), 1),
    ]


def test_logprobs_and_the_stop_string() -> None:
    one = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "é", "logprob": -1}]}  # fmt: skip
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [one]}}
    end = {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}
    data = event({"choices": [choice]}) + event({"choices": [end]}) + usage(10, 5) + DONE
    told = TokenLogprob(b"a", -0.5, (("é".encode(), -1.0),))
    asked = request(logprobs=1, stop=("END",))
    assert read(data, asked=asked) == [
        TextDelta("a", logprobs=(told,)),
        Finish("stop", Usage(10, 5, 0), stop="END"),
    ]
    assert read(data) == [TextDelta("a"), LAST]  # not asked for


WRONG: list[tuple[bytes, str]] = [
    (event([1]), "does not speak the OpenAI API"),
    (b"data: {\n\n", "does not speak the OpenAI API"),
    (b"data: \xff\n\n", "does not speak the OpenAI API"),
    (b'data: {"a": NaN}\n\n', "does not speak the OpenAI API"),
    (b"data: " + b"[" * 90_000 + b"\n\n", "does not speak the OpenAI API"),
    (b'data: {"choices": ' + b"[" * 70 + b"]" * 70 + b"}\n\n", "does not speak the OpenAI API"),
    (b"data: [" + b"1," * 100_001 + b"1]\n\n", "does not speak the OpenAI API"),
    (b'data: {"a": ' + b"9" * 5000 + b"}\n\n", "does not speak the OpenAI API"),
    (event({"choices": {}}), "choices is no list"),
    (event({"choices": [1]}), "no object around index"),
    (event({"choices": [{"index": 1}]}), "choice 1 was not asked for"),
    (event({"choices": [{"index": -1}]}), "choice -1 was not asked for"),
    (event({"choices": [{"index": "0"}]}), "index is no int"),
    (event({"choices": [{"index": True}]}), "index is no int"),
    (event({"choices": [{"delta": "x"}]}), "delta is no dict"),
    (chunk({"content": [{"text": "x"}]}), "content is no str"),
    (chunk({"reasoning_content": 1}), "reasoning_content is no str"),
    (chunk({"tool_calls": {}}), "tool_calls is no list"),
    (chunk({"tool_calls": [1]}), "no object around index"),
    (call(index=0), "a call has no name"),
    (call(index=0, function={"arguments": "{}"}), "a call has no name"),
    (call(index=0, function={"name": "f", "arguments": {}}), "arguments is no str"),
    (call(**CALL, x=1) + call(index=1, id="b", function={"name": "g"}) + call(index=0), "goes on"),
    (chunk(finish="abort"), "finish_reason is 'abort'"),
    (event({"choices": [{"finish_reason": 1}]}), "finish_reason is no str"),
    (chunk(finish="content_filter"), "content filter"),
    (usage(-1, 0), "prompt_tokens is no count"),
    (usage(0, 10**12), "completion_tokens is no count"),
    (usage(True, 0), "prompt_tokens is no count"),
    (usage(1, 0, prompt_tokens_details=[]), "prompt_tokens_details is no object"),
    (event({"choices": [], "usage": 1}), "usage is no dict"),
    (event({"error": {"message": "too hot", "code": 500}}), "broke the answer off: too hot"),
    (event({"error": {"type": "insufficient_quota"}}), "no money left"),
    (event({"error": [1]}), "broke the answer off without a reason"),
    (b"", "broke the answer off before it was finished"),
    (chunk({"content": "a"}) + DONE, "broke the answer off before it was finished"),
    (DONE + chunk(finish="stop"), "broke the answer off before it was finished"),
]


@pytest.mark.parametrize(("data", "sentence"), WRONG)
def test_what_is_not_the_api_is_told_in_a_sentence(data: bytes, sentence: str) -> None:
    message = said(data)
    assert sentence in message
    assert WHO in message
    assert len(message) < 400


def test_a_refusal_in_the_stream_is_the_clients() -> None:
    error = {"message": "invalid\ntemperature\x1b[0m", "type": "invalid_request_error", "param": "temperature"}  # fmt: skip
    with pytest.raises(PromptError, match="invalid temperature") as caught:
        read(event({"error": error}))
    assert caught.value.param == "temperature"
    assert "\x1b" not in str(caught.value)


def test_markers_of_calls_in_the_text() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    marker = "<|tool_calls_section_begin|>"
    for cut in range(len(marker)):
        data = chunk({"content": "a" + marker[:cut]}) + chunk({"content": marker[cut:] + "b"}) + END
        assert marker in said(data, tools=tools)
    quoted = chunk({"reasoning_content": marker}) + END
    assert read(quoted, asked=request(tools=tools)) == [ReasoningDelta(marker), LAST]
    assert read(chunk({"content": marker}) + END) == [TextDelta(marker), LAST]  # there are no tools


def test_half_characters_become_whole() -> None:
    data = b'data: {"choices": [{"index": 0, "delta": {"content": "\\ud83d"}}]}\n\n'
    pair = b'data: {"choices": [{"index": 0, "delta": {"content": "\\ud83d\\ude00"}}]}\n\n'
    assert read(data + pair + END)[:2] == [TextDelta("\ufffd"), TextDelta("\U0001f600")]


def test_lines_and_streams_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_LINE", 1000)
    for data in (b"x" * 1001, b"data: " + b"x" * 1000 + b"\n", b": " + b"x" * 1000):
        assert "more than 1000 bytes" in said(data)
    with pytest.raises(UpstreamError, match="more than 1000 bytes"):
        Events(WHO).push(b"x" * 1001)  # without waiting for the end of the line
    monkeypatch.setattr(sse, "MAX_BYTES", 2000)
    assert "more than 2000 bytes without an end" in said(b": ping\n" * 400)


@given(st.binary(max_size=300), st.lists(st.integers(0, 1000), max_size=6))
def test_any_bytes_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    assert outcome(lambda: read(data, cuts)) == outcome(lambda: read(data))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "index",
                    "delta",
                    "content",
                    "reasoning",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "id",
                    "finish_reason",
                    "usage",
                    "prompt_tokens",
                    "completion_tokens",
                    "logprobs",
                    "error",
                    "message",
                    "type",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=4), st.lists(st.integers(0, 2000), max_size=6))
def test_any_json_in_any_pieces(values: list[Any], cuts: list[int]) -> None:
    data = chunk({"content": "a"}) + b"".join(map(event, values)) + END
    assert outcome(lambda: read(data, cuts)) == outcome(lambda: read(data))


@given(scripts(), st.lists(st.integers(0, 10_000), max_size=8))
def test_what_our_own_server_streams_is_read_back_unchanged(
    script: list[Event], cuts: list[int]
) -> None:
    encoder = ChatEncoder("m", include_usage=True)
    data = encoder.start() + b"".join(map(encoder.event, script)) + encoder.end()
    assert read(data, cuts) == as_told(script)


def as_told(script: list[Event]) -> list[Event]:
    """Without pieces that say nothing, and without the end of a call that the limit may have cut off."""
    told = [event for event in script if _says_something(event)]
    finish = told[-1]
    assert isinstance(finish, Finish)
    if finish.reason == "length" and isinstance(told[-2] if told[1:] else None, ToolCallEnd):
        del told[-2]
    return told


def _says_something(event: Event) -> bool:
    match event:
        case ReasoningDelta() | TextDelta():
            return bool(event.text)
        case ToolCallDelta():
            return bool(event.arguments)
    return True


def outcome(work: Callable[[], Any]) -> Any:
    """What it returns, or says; any other exception is the test's failure."""
    try:
        return work()
    except (UpstreamError, PromptError) as error:
        return str(error)
