"""Completions as ids, token by token, against the golden results and against every odd order."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import (
    Completion,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
    collect,
)
from moonlet.chat.tokenizer import BYTE_TOKENS, KIMI_SPECIAL, Tokenizer
from tests.shared import golden, needs_shared

TOKENIZER = Tokenizer([*BYTE_TOKENS, b"th", b"\n\n", b"STO", b"\xc3\xa9!"])
MARKER = re.compile("(" + "|".join(map(re.escape, KIMI_SPECIAL)) + ")")
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
SINGULAR = "<|tool_call_section_begin|>"


def tool(name: str, *properties: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    schema = {"properties": {p: {"type": "string"} for p in properties}, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [tool("get_weather", "location", "unit", required=("location",)), tool("search", "query")]


def ids_of(completion: str) -> list[int]:
    """What a model would have generated: markers as special ids, the rest as text."""
    special = TOKENIZER.special
    parts = MARKER.split(completion)
    return [i for p in parts for i in ([special[p]] if p in special else TOKENIZER.encode(p))]


def events_of(completion: str | list[int], reason: Any = "stop", **options: Any) -> list[Event]:
    options = {"starts_in_reasoning": True} | options
    parser = OutputParser(TOKENIZER, **options)
    ids = ids_of(completion) if isinstance(completion, str) else completion
    events: list[Event] = []
    for i in ids:
        if parser.stopped:
            break
        events += parser.push(i)
    return events + parser.finish(reason)


def parse(completion: str | list[int], reason: Any = "stop", **options: Any) -> Completion:
    async def stream() -> AsyncIterator[Event]:
        for event in events_of(completion, reason, **options):
            yield event

    return asyncio.run(collect(stream()))


@needs_shared
def test_golden_completions() -> None:
    cases = golden("tool_parse.json")["cases"]
    assert len(cases) == 12
    for case in cases:
        wanted = case["expected"]
        reason = wanted["finish"].split(" ")[0]
        done = parse(case["completion"], "length" if reason == "length" else "stop", tools=TOOLS)
        assert done.reasoning == wanted["reasoning"], case["name"]
        assert done.text == wanted["content"], case["name"]
        calls = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in done.tool_calls]
        assert calls == wanted["tool_calls"], case["name"]
        assert done.finish_reason == reason, case["name"]


def test_events_arrive_as_soon_as_they_can() -> None:
    parser = OutputParser(TOKENIZER, True)
    completion = f"a</think>b{SECTION}{CALL}functions.f:3{ARGS}{{}}{CALL_END}{SECTION_END}"
    steps = [parser.push(i) for i in ids_of(completion)]
    assert [step for step in steps if step] == [
        [ReasoningDelta("a")],
        [TextDelta("b")],
        [ToolCallStart(0, "functions.f:3", "f")],
        [ToolCallDelta(0, "{")],
        [ToolCallDelta(0, "}")],
    ]
    assert parser.finish("stop", 7, 5) == [Finish("tool_calls", Usage(7, 23, 1, 5))]


def test_a_cut_call_is_streamed_but_not_collected() -> None:
    completion = f"x</think>{SECTION}{CALL}functions.f:0{ARGS}{{"
    events = events_of(completion, "length")
    assert ToolCallStart(0, "functions.f:0", "f") in events
    assert ToolCallDelta(0, "{") in events
    done = parse(completion, "length")
    assert (done.tool_calls, done.finish_reason) == ((), "length")


@pytest.mark.parametrize(
    ("completion", "reasoning", "text"),
    [
        ("", "", ""),
        ("only thoughts", "only thoughts", ""),
        ("a</think>b</think>c", "a", "bc"),
        ("<think>a</think>b", "a", "b"),
        ("a</think>\n\nb \n", "a", "\n\nb \n"),
        ("a \n</think>", "a \n", ""),
        ("a</think>b<|im_end|>", "a", "b"),
        ("a</think>b[EOS][EOT][PAD]<|media_pad|><|im_user|>", "a", "b"),
        (f"a</think>b{CALL_END}{ARGS}{SECTION_END}c", "a", "bc"),
        (f"a</think>b {SECTION}{SECTION_END}", "a", "b"),
        (f"a\n{SECTION} noise {SECTION_END}", "a\n", ""),
        ("a</think>é<|im_end|>ü", "a", "éü"),
        ("a</think>b <|tool_call_sec and more", "a", "b <|tool_call_sec and more"),
        (f"a</think>the text {SINGULAR} as such", "a", f"the text {SINGULAR} as such"),
    ],
)
def test_texts(completion: str, reasoning: str, text: str) -> None:
    done = parse(completion)
    assert (done.reasoning, done.text, done.tool_calls) == (reasoning, text, ())
    assert done.finish_reason == "stop"


def test_think_tag_written_by_the_model() -> None:
    for prefix in ("", "\n"):
        done = parse(f"{prefix}<think>a</think>b", starts_in_reasoning=False)
        assert (done.reasoning, done.text) == ("a", prefix + "b")


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        (f"{CALL}functions.f:0{ARGS}{{}}{CALL_END}", [("functions.f:0", "f", "{}")]),
        (f"{CALL} \nfunctions.f:0 {ARGS}\n[1] \n{CALL_END}", [("functions.f:0", "f", "[1]")]),
        (f"{CALL}functions.a.b-c:d:12{ARGS}1{CALL_END}", [("functions.a.b-c:d:12", "a.b-c:d", "1")]),
        (
            f"{CALL}functions.functions.f:0{ARGS}1{CALL_END}",
            [("functions.functions.f:0", "functions.f", "1")],
        ),
        (f"{CALL}f:0{CALL_END}", [("functions.f:0", "f", "{}")]),
        (f"{CALL}f:0{ARGS} {CALL_END}", [("functions.f:0", "f", "{}")]),
        (f"{CALL}f:0{ARGS}not json{SECTION_END}", [("functions.f:0", "f", "not json")]),
        (f"{CALL}f:0{ARGS}1{CALL}g:1{ARGS}2", [("functions.f:0", "f", "1"), ("functions.g:1", "g", "2")]),
        (f"{CALL}f:0{ARGS}{CALL}g:1{ARGS}2", [("functions.f:0", "f", "{}"), ("functions.g:1", "g", "2")]),
        (f"{CALL}f:0{CALL}g:1{ARGS}2{CALL_END}", [("functions.g:1", "g", "2")]),
        (f"{CALL}f{ARGS}1{CALL_END}{CALL}g:1{ARGS}2{CALL_END}", [("functions.g:1", "g", "2")]),
        (f"{CALL}f:x{ARGS}1{CALL_END}", []),
        (f"{CALL}:4{ARGS}1{CALL_END}", []),
        (f"{CALL}f:²{ARGS}1{CALL_END}", []),
        (f"{CALL}{ARGS}1{CALL_END}", []),
        (f"{CALL}f:0", []),
        (f'{CALL}f:0{ARGS}{{"a": "</think<|im_end|>x"}}{CALL_END}', [("functions.f:0", "f", '{"a": "</thinkx"}')]),
        (f"{CALL}f:0{ARGS}1{CALL_END}{SECTION_END}x{SECTION}{CALL}f:1{ARGS}2{CALL_END}", [("functions.f:0", "f", "1"), ("functions.f:1", "f", "2")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", [SECTION, "", f"{SINGULAR}\n", f"{SECTION}noise"])
def test_calls(prefix: str, body: str, calls: list[tuple[str, str, str]]) -> None:
    done = parse(f"t</think>c\n{prefix}{body}")
    assert [(c.id, c.name, c.arguments) for c in done.tool_calls] == calls
    assert (done.reasoning, done.text) == ("t", "c")
    assert done.finish_reason == ("tool_calls" if calls else "stop")


@pytest.mark.parametrize("begin", [SECTION + CALL, CALL, SINGULAR + CALL])
def test_a_call_ends_reasoning_that_was_left_open(begin: str) -> None:
    done = parse(f"t{begin}f:0{ARGS}1")
    assert (done.reasoning, done.text, len(done.tool_calls)) == ("t", "", 1)


def test_indices_stay_dense_when_a_call_is_skipped() -> None:
    events = events_of(f"{SECTION}{CALL}bad{ARGS}1{CALL_END}{CALL}f:5{ARGS}1{CALL_END}")
    assert [e.index for e in events if isinstance(e, ToolCallStart | ToolCallDelta)] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "tools", "name"),
    [
        ('{"query": 1}', TOOLS, "search"),
        ('{"location": 1}', TOOLS, "get_weather"),
        ('{"unit": 1}', TOOLS, None),  # get_weather needs a location
        ("", TOOLS, "search"),  # the only one that needs nothing
        ('{"other": 1}', TOOLS, None),
        ("[1]", TOOLS, None),
        ("{", TOOLS, None),
        ("[" * 100_000, TOOLS, None),
        ('{"other": 1}', TOOLS[:1], "get_weather"),
        ('{"query": 1}', None, None),
        ('{"query": 1}', [], None),
        ('{"query": 1}', [TOOLS[1], tool("find", "query")], None),
        ("1", [{"function": 3}, {"function": {"name": "f", "parameters": {"required": 3}}}], None),
    ],
)
def test_header_that_is_only_a_number(arguments: str, tools: Any, name: str | None) -> None:
    done = parse(f"x{SECTION}{CALL}7{ARGS}{arguments}{CALL_END}", tools=tools)
    expected = [] if name is None else [(f"functions.{name}:7", name, arguments or "{}")]
    assert [(c.id, c.name, c.arguments) for c in done.tool_calls] == expected


def test_without_tools_calls_are_dropped_and_nothing_leaks() -> None:
    done = parse(f"x</think>y{SECTION}{CALL}f:0{ARGS}{{}}{CALL_END}{SECTION_END}", tools=[])
    assert (done.text, done.tool_calls, done.finish_reason) == ("y", (), "stop")


# Stop strings


@pytest.mark.parametrize(
    ("content", "stop", "text"),
    [
        ("one STOP two", ("STOP",), "one "),
        ("one STOP", ("STOP", "one"), ""),
        ("ST STO ST", ("STOP",), "ST STO ST"),
        ("SSTOP", ("STOP",), "S"),
        ("a\n\nb", ("\n\n",), "a"),
        ("STO", ("O", "T"), "S"),
        ("a\nb\n\n\nc", ("\n\n",), "a\nb"),
        ("é!é?", ("é?",), "é!"),
        ("é🙂é", ("🙂",), "é"),
        ("abc", ("",), "abc"),
        ("a <|im_end|>b", ("a b",), ""),
    ],
)
def test_stop_strings(content: str, stop: tuple[str, ...], text: str) -> None:
    done = parse("t</think>" + content, stop=stop)
    assert (done.reasoning, done.text, done.finish_reason) == ("t", text, "stop")


def test_stop_strings_spare_reasoning_and_arguments() -> None:
    completion = f"STOP</think>a{SECTION}{CALL}f:0{ARGS}STOP{CALL_END}{SECTION_END}STOP"
    done = parse(completion, stop=("STOP",))
    assert (done.reasoning, done.text) == ("STOP", "a")
    assert done.tool_calls[0].arguments == "STOP"


def test_after_a_stop_string_the_parser_is_silent() -> None:
    parser = OutputParser(TOKENIZER, False, ("b",))
    events = [e for i in ids_of(f"ab{SECTION}{CALL}f:0{ARGS}c") for e in parser.push(i)]
    assert events == [TextDelta("a")]
    assert parser.stopped
    assert parser.push(ids_of("c")[0]) == []
    assert parser.finish("stop") == [Finish("stop", Usage(0, 2, 0))]


# Anything


PIECES = [*KIMI_SPECIAL, SINGULAR, "f:0", "7", "{}", " ", "\n", "STOP", "é", "🙂", "text", "ST"]


@given(
    st.lists(st.sampled_from(PIECES)).map("".join).map(ids_of)
    | st.lists(st.integers(0, TOKENIZER.vocab_size - 1)),
    st.booleans(),
    st.sampled_from([(), ("STOP",), ("xt", "\n")]),
    st.sampled_from([None, [], TOOLS]),
    st.sampled_from(["stop", "length"]),
)
def test_invariants(ids: list[int], starts: bool, stop: Any, tools: Any, reason: Any) -> None:
    events = events_of(ids, reason, starts_in_reasoning=starts, stop=stop, tools=tools)
    *body, last = events
    assert isinstance(last, Finish)
    assert not any(isinstance(event, Finish) for event in body)
    assert 0 <= last.usage.reasoning_tokens <= last.usage.completion_tokens <= len(ids)
    starts_seen = [e.index for e in body if isinstance(e, ToolCallStart)]
    assert starts_seen == list(range(len(starts_seen)))
    assert all(e.index in starts_seen for e in body if isinstance(e, ToolCallDelta))
    assert (last.reason == "tool_calls") == (reason == "stop" and bool(starts_seen))
    order = [type(e) for e in body if isinstance(e, TextDelta | ToolCallStart)]
    if ToolCallStart in order:
        assert TextDelta not in order[order.index(ToolCallStart) :]
    plain = [i for i in ids if i < TOKENIZER.vocab_size - 256]
    text = "".join(e.text for e in body if isinstance(e, TextDelta))
    assert not any(s in text for s in stop)
    if len(plain) == len(ids) and not starts and not stop:
        assert text == TOKENIZER.decode(ids)


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_whole_answers_round_trip(reasoning: str, content: str, arguments: dict[str, str]) -> None:
    reasoning, content = (
        t.encode("utf-8", "replace").decode() for t in (reasoning, content.strip())
    )
    raw = json.dumps(arguments)
    special = {text: [TOKENIZER.id_of(text)] for text in KIMI_SPECIAL}
    ids = TOKENIZER.encode(reasoning) + special["</think>"] + TOKENIZER.encode(content)
    ids += special[SECTION] + special[CALL] + TOKENIZER.encode("functions.f:0")
    ids += special[ARGS] + TOKENIZER.encode(raw) + special[CALL_END] + special[SECTION_END]
    done = parse(ids)
    assert (done.reasoning, done.text) == (reasoning, content)
    assert [call.arguments for call in done.tool_calls] == [raw]
