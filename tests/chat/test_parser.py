"""Completions as ids, token by token, against the golden results and against every odd order."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import (
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    collect_all,
)
from moonlet.chat.tokenizer import KIMI_SPECIAL
from tests.chat.completions import (
    ARGS,
    CALL,
    CALL_END,
    EDGE_CASES,
    EXAMPLES,
    F0,
    ONE,
    SECTION,
    SECTION_END,
    SINGULAR,
    TOKENIZER,
    TOOLS,
    TWO,
    Elsewhere,
    Example,
    Q,
    call,
    events_of,
    ids_of,
    parse,
    section,
    whole,
)
from tests.shared import golden, needs_shared


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


@pytest.mark.parametrize("example", EXAMPLES)
def test_edge_cases(example: Example) -> None:
    done = parse(whole(example), example.ended_by, **({"tools": TOOLS} | example.options))
    assert (done.reasoning, done.text) == (example.reasoning, example.text)
    assert tuple((c.id, c.arguments) for c in done.tool_calls) == example.calls
    finish = example.finish or ("tool_calls" if example.calls else "stop")
    assert done.finish_reason == finish


def test_every_edge_case_has_an_entry() -> None:
    assert list(EDGE_CASES) == list(range(1, 35))
    for _, entries in EDGE_CASES.values():
        assert entries
        for entry in entries:
            if isinstance(entry, Elsewhere):
                assert entry.test in (Path(__file__).parent / entry.file).read_text()


# What a stream shows, and when


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
        [ToolCallEnd(0)],
    ]
    assert parser.finish("stop", Usage(7, 0, 0, 5)) == [Finish("tool_calls", Usage(7, 23, 1, 5))]


def test_the_usage_tells_where_the_prompt_came_from() -> None:
    parser = OutputParser(TOKENIZER, False)
    wanted = Usage(9, 0, 0, 7, 3, "system")
    assert parser.finish("length", Usage(9, 0, 0, 7, 3, "system")) == [Finish("length", wanted)]


def test_a_cut_call_is_streamed_but_has_no_end() -> None:
    completion = f"x</think>{SECTION}{CALL}functions.f:0{ARGS}{{"
    events = events_of(completion, "length")
    assert events[1:3] == [ToolCallStart(0, "functions.f:0", "f"), ToolCallDelta(0, "{")]
    assert ToolCallEnd(0) not in events
    done = parse(completion, "length")
    assert (done.tool_calls, done.finish_reason) == ((), "length")


def test_what_may_be_a_quotation_waits_until_it_is_known() -> None:
    parser = OutputParser(TOKENIZER, True, tools=TOOLS)
    before = [e for i in ids_of(f"a{ONE}b") for e in parser.push(i)]
    assert before == [ReasoningDelta("a")]
    assert parser.push(TOKENIZER.id_of("</think>")) == [ReasoningDelta(f"{F0}{Q}b")]
    *_, finish = parser.finish("stop")
    assert isinstance(finish, Finish)
    plain_tokens = len(ids_of(f"a{F0}{Q}b"))
    assert finish.usage.reasoning_tokens == plain_tokens


def test_what_must_be_a_quotation_does_not_wait() -> None:
    parser = OutputParser(TOKENIZER, True)
    events = [e for i in ids_of(f"a{SECTION} x y") for e in parser.push(i)]
    assert events == [ReasoningDelta(t) for t in ("a", " x", " ", "y")]


def test_a_call_in_open_reasoning_spends_no_reasoning_tokens() -> None:
    *_, finish = events_of(f"a{ONE}")
    assert isinstance(finish, Finish)
    assert finish.usage.reasoning_tokens == 1


def test_tokens_of_one_step_are_pushed_one_after_the_other() -> None:
    """Speculation brings many tokens at once; their events keep their order."""
    parser = OutputParser(TOKENIZER, True)
    events = [e for i in ids_of(f"t</think>ab{TWO}") for e in parser.push(i)]
    kinds = [type(event) for event in events]
    assert kinds[:3] == [ReasoningDelta, TextDelta, TextDelta]
    indices = [
        e.index for e in events if isinstance(e, ToolCallStart | ToolCallDelta | ToolCallEnd)
    ]
    assert indices == sorted(indices)
    assert set(indices) == {0, 1}


def test_parsers_share_nothing() -> None:
    texts = [f"t{i}</think>c{i}{section(call(f'search:{i}', Q))}" for i in range(8)]
    parsers = [OutputParser(TOKENIZER, True, tools=TOOLS) for _ in texts]
    streams = [ids_of(text) for text in texts]
    events: list[list[Event]] = [[] for _ in texts]
    for step in range(max(map(len, streams))):
        for parser, ids, out in zip(parsers, streams, events, strict=True):
            out += parser.push(ids[step]) if step < len(ids) else []
    for number, (parser, out) in enumerate(zip(parsers, events, strict=True)):
        assert [*out, *parser.finish("stop")] == events_of(texts[number], tools=TOOLS)


def test_every_event_names_its_choice() -> None:
    events = events_of(f"t</think>c{ONE}", tools=TOOLS, choice=3)
    assert {event.choice for event in events} == {3}
    assert len({type(event) for event in events}) == 6

    async def both() -> AsyncIterator[Event]:
        for event in [*events, *events_of("d", starts_in_reasoning=False)]:
            yield event

    assert [done.text for done in asyncio.run(collect_all(both()))] == ["d", "c"]


def test_markers_spelt_as_text_stay_text() -> None:
    spelt = "".join(KIMI_SPECIAL) + SINGULAR
    text = TOKENIZER.encode(spelt)
    end, begin = [TOKENIZER.id_of("</think>")], ids_of(f"{SECTION}{CALL}{F0}{ARGS}")
    done = parse([*text, *end, *text, *begin, *text, TOKENIZER.id_of(CALL_END)])
    assert done.reasoning == spelt
    assert done.text == spelt.removesuffix(SINGULAR)  # here it is the misspelt marker of a call
    assert [c.arguments for c in done.tool_calls] == [spelt]


@pytest.mark.parametrize(
    ("completion", "reasoning", "text"),
    [
        ("", "", ""),
        ("only thoughts", "only thoughts", ""),
        ("a</think>b</think>c", "a", "bc"),
        ("<think>a</think>b", "a", "b"),
        ("a</think><think>b</think>c", "ab", "c"),
        ("a</think>b<think>c</think>d", "a", "bcd"),
        ("a</think>\n\nb \n", "a", "\n\nb \n"),
        ("a \n</think>", "a \n", ""),
        ("a</think>b<|im_end|>", "a", "b"),
        ("a</think>b[EOS][EOT][PAD]<|media_pad|><|im_user|>", "a", "b"),
        (f"a</think>b{CALL_END}{ARGS}{SECTION_END}c", "a", "bc"),
        (f"a</think>b {SECTION}{SECTION_END}", "a", "b"),
        ("a</think>é<|im_end|>ü", "a", "éü"),
        ("a</think>b <|tool_call_sec and more", "a", "b <|tool_call_sec and more"),
        (f"a</think>the text {SINGULAR} as such", "a", f"the text {SINGULAR} as such"),
        (f"a</think>b{SINGULAR}", "a", f"b{SINGULAR}"),
        (f"a</think>b <<|tool_{SINGULAR} {SINGULAR} x", "a", f"b <<|tool_{SINGULAR} {SINGULAR} x"),
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
        done = parse(f"{prefix}<think>a{ONE}", starts_in_reasoning=False)
        assert (done.reasoning, done.text, len(done.tool_calls)) == ("a", "", 1)


@given(
    st.text(), st.text(), st.lists(st.dictionaries(st.text(), st.text(), max_size=3), max_size=3)
)
def test_whole_answers_round_trip(
    reasoning: str, content: str, arguments: list[dict[str, str]]
) -> None:
    reasoning, content = (
        t.encode("utf-8", "replace").decode() for t in (reasoning, content.strip())
    )
    special = {text: [TOKENIZER.id_of(text)] for text in KIMI_SPECIAL}
    ids = TOKENIZER.encode(reasoning) + special["</think>"] + TOKENIZER.encode(content)
    raws = [json.dumps(value) for value in arguments]
    for index, raw in enumerate(raws):
        ids += special[SECTION] if index == 0 else []
        ids += special[CALL] + TOKENIZER.encode(f"functions.f:{index}")
        ids += special[ARGS] + TOKENIZER.encode(raw) + special[CALL_END]
    done = parse(ids)
    assert (done.reasoning, done.text) == (reasoning, content)
    assert [call.arguments for call in done.tool_calls] == raws
