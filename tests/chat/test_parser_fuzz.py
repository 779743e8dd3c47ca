"""The parser against the plain one, on answers of all kinds cut into tokens in all ways."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moonlet
from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import (
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from moonlet.chat.template import Special
from moonlet.chat.tokenizer import BYTE_TOKENS, KIMI_SPECIAL, Tokenizer
from tests.chat.completions import (
    ARGS,
    CALL,
    CALL_END,
    EXAMPLES,
    F0,
    MARKER,
    ONE,
    SECTION,
    SECTION_END,
    SINGULAR,
    TOOLS,
    Example,
    Q,
    collected,
    whole,
)
from tests.chat.plain_parser import Answer, Options, Piece, plain

NANO = Tokenizer.from_folder(Path(moonlet.__file__).parent / "nano" / "weights")
BYTES = Tokenizer(BYTE_TOKENS)
TOKENIZERS = {"nano": NANO, "bytes": BYTES}
WHOLE = (10**6,)


def pieces_of(completion: str) -> list[Piece]:
    parts = [p for p in MARKER.split(completion) if p]
    return [Special(p) if p in KIMI_SPECIAL else p for p in parts]


def ids_of(pieces: Sequence[Piece], sizes: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Token ids of the answer, its texts cut after `sizes` characters in turn before encoding."""
    ids: list[int] = []
    turn = 0
    for piece in pieces:
        if isinstance(piece, Special):
            ids.append(tokenizer.id_of(piece.text))
            continue
        at = 0
        while at < len(piece):
            size = sizes[turn % len(sizes)]
            ids += tokenizer.encode(piece[at : at + size])
            at, turn = at + size, turn + 1
    return ids


def stream(ids: list[int], reason: Any, options: Options, tokenizer: Tokenizer) -> list[Event]:
    """Events of the answer, each token with a log-probability of its own."""
    parser = OutputParser(tokenizer, **asdict(options))
    events: list[Event] = []
    for number, i in enumerate(ids):
        if parser.stopped:
            break
        logprob = TokenLogprob(tokenizer.decode_bytes([i]), -float(number))
        events += parser.push(i, logprob)
    return events + parser.finish(reason)


def assembled(events: list[Event]) -> Answer:
    """The answer as somebody puts it together who reads the stream and checks its order."""
    answer, calls, ended = Answer(), dict[int, list[str]](), set[int]()
    heads: dict[int, tuple[str, str]] = {}
    order = [ReasoningDelta, TextDelta, ToolCallStart, Finish]
    stage = 0
    for event in events:
        is_call = isinstance(event, ToolCallDelta | ToolCallEnd)
        now = order.index(ToolCallStart if is_call else type(event))
        assert now >= stage
        stage = now
        match event:
            case ReasoningDelta():
                assert event.text
                answer.reasoning += event.text
            case TextDelta():
                assert event.text
                answer.text += event.text
            case ToolCallStart():
                assert event.index == len(heads)
                assert event.index == len(ended)
                heads[event.index], calls[event.index] = (event.id, event.name), []
            case ToolCallDelta():
                assert event.arguments
                assert event.index == len(heads) - 1
                assert event.index not in ended
                calls[event.index].append(event.arguments)
            case ToolCallEnd():
                assert event.index == len(heads) - 1
                ended.add(event.index)
            case Finish():
                answer.finish, answer.stop = event.reason, event.stop
    assert isinstance(events[-1], Finish)
    answer.calls = tuple((*heads[n], "".join(calls[n]), n in ended) for n in heads)
    return answer


def check(pieces: list[Piece], sizes: Sequence[int], reason: str, options: Options) -> None:
    wanted = plain(pieces, reason, options)
    for tokenizer in TOKENIZERS.values():
        ids = ids_of(pieces, sizes, tokenizer)
        events = stream(ids, reason, options, tokenizer)
        assert assembled(events) == wanted
        check_plain_answer(events, wanted)
        check_logprobs(events)
        check_usage(events, len(ids))
    spelt = "".join(piece for piece in pieces if isinstance(piece, str))
    told = [wanted.reasoning, wanted.text, *(text for call in wanted.calls for text in call[:3])]
    for marker in (*KIMI_SPECIAL, SINGULAR):
        assert marker in spelt or not any(marker in text for text in told)
    check_nothing_is_lost(pieces, wanted)


def check_plain_answer(events: list[Event], wanted: Answer) -> None:
    done = collected(events)
    assert (done.reasoning, done.text, done.stop) == (wanted.reasoning, wanted.text, wanted.stop)
    assert done.finish_reason == wanted.finish
    calls = [(call.id, call.name, call.arguments) for call in done.tool_calls]
    complete = [call[:3] for call in wanted.calls if call[3] or is_json(call[2])]
    assert calls == complete


def check_logprobs(events: list[Event]) -> None:
    """None lost, none invented: together they are the text, up to what was taken back at its end."""
    deltas = [event for event in events if isinstance(event, TextDelta)]
    for index, delta in enumerate(deltas):
        told = b"".join(logprob.token for logprob in delta.logprobs)
        text = delta.text.encode()
        assert told == text or (index == len(deltas) - 1 and told.startswith(text))
        rest = len(told) - len(text)
        assert rest == 0 or rest < len(delta.logprobs[-1].token)
    numbers = [logprob.logprob for delta in deltas for logprob in delta.logprobs]
    assert numbers == sorted(set(numbers), reverse=True)


def check_usage(events: list[Event], num_tokens: int) -> None:
    finish = events[-1]
    assert isinstance(finish, Finish)
    assert 0 <= finish.usage.reasoning_tokens <= finish.usage.completion_tokens <= num_tokens


def check_nothing_is_lost(pieces: list[Piece], wanted: Answer) -> None:
    """Outside of tool sections and without a stop string every character comes out."""
    marks = {piece.text for piece in pieces if isinstance(piece, Special)}
    if not marks & {SECTION, CALL} and wanted.stop is None:
        spelt = "".join(piece for piece in pieces if isinstance(piece, str))
        assert sorted(wanted.reasoning + wanted.text) == sorted(spelt)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


# The 34 cases


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (5,), (8,), (1, 7, 2), WHOLE])
def test_every_way_to_cut_the_edge_cases(example: Example, sizes: tuple[int, ...]) -> None:
    check(pieces_of(whole(example)), sizes, example.ended_by, options_of(example))


@pytest.mark.slow
@pytest.mark.parametrize("example", [e for e in EXAMPLES if len(e.values[0].completion) < 500])
def test_every_single_cut_of_the_edge_cases(example: Example) -> None:
    pieces = pieces_of(whole(example))
    longest = max(len(piece) for piece in pieces if isinstance(piece, str))
    for size in range(1, longest + 1):
        check(pieces, (size, 10**6), example.ended_by, options_of(example))


def options_of(example: Example) -> Options:
    return Options(**({"tools": TOOLS} | example.options))


# Anything

MARKERS = ["<think>", "</think>", SECTION, SECTION_END, CALL, ARGS, CALL_END, "<|im_end|>", "[EOS]"]
WORDS = [
    F0, "search:1", "functions.find:2", "functions.NAME:IDX", "search", "7", "0", Q, '{"x": 1}', "{}",
    "{", '"a"', " ", "\n", "  \n", "STOP", "ST", "OP", "é", "🙂", "你好", "the end", ":", "functions.",
    SINGULAR, SINGULAR[:9], "<", "<|", "|>", *MARKERS,
]  # fmt: skip
TEXTS = st.sampled_from(WORDS) | st.text(max_size=8).filter(lambda t: t.isprintable())
LOOSE = st.lists(
    st.sampled_from([*MARKERS, SECTION, CALL, ARGS, CALL_END]).map(Special) | TEXTS, max_size=14
)
ONE_CALL = st.tuples(TEXTS, TEXTS).map(
    lambda t: [Special(CALL), t[0], Special(ARGS), t[1], Special(CALL_END)]
)
SECTIONS = st.lists(ONE_CALL, max_size=3).map(
    lambda calls: [Special(SECTION), *(p for c in calls for p in c), Special(SECTION_END)]
)
ANSWERS = st.lists(LOOSE | SECTIONS | st.just([Special("</think>")]), max_size=5).map(
    lambda parts: [piece for part in parts for piece in part if piece]
)
SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=4) | st.just(list(WHOLE))
OPTIONS = st.builds(
    Options,
    starts_in_reasoning=st.booleans(),
    stop=st.sampled_from([(), (), ("STOP",), ("OP", "STOP"), (" ", "é"), (SINGULAR[:12], "{")]),
    tools=st.sampled_from([TOOLS, TOOLS, TOOLS[1:], None, []]),
    first_index=st.sampled_from([0, 0, 1, 5]),
    stop_after_first_call=st.sampled_from([False, False, True]),
)
REASONS = st.sampled_from(["stop", "stop", "length"])
FUZZ = given(ANSWERS, SIZES, REASONS, OPTIONS)


@settings(max_examples=400, deadline=None)
@FUZZ
def test_stream_equals_plain(
    pieces: list[Piece], sizes: list[int], reason: str, options: Options
) -> None:
    check(pieces, sizes, reason, options)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=100_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@FUZZ
def test_stream_equals_plain_for_long(
    pieces: list[Piece], sizes: list[int], reason: str, options: Options
) -> None:
    check(pieces, sizes, reason, options)


@settings(deadline=None)
@given(
    st.lists(
        st.integers(0, BYTES.vocab_size - 1) | st.sampled_from(sorted(BYTES.special.values()))
    ),
    REASONS,
    OPTIONS,
)
def test_any_ids_at_all(ids: list[int], reason: str, options: Options) -> None:
    """Bytes that are no UTF-8 among them: no exception, the right order, one Finish."""
    events = stream(ids, reason, options, BYTES)
    answer = assembled(events)
    check_usage(events, len(ids))
    assert not any(stop in answer.text for stop in options.stop)
    if all(i < 256 for i in ids) and answer.stop is None:
        assert answer.reasoning + answer.text == BYTES.decode(ids)


# Time

LONG: dict[str, Callable[[int], tuple[str, Options]]] = {
    "blanks in the answer": lambda n: (f"</think>{' ' * n}{ONE}", Options()),
    "blanks in reasoning": lambda n: (f"{SINGULAR}{' ' * n}{ONE}", Options()),
    "beginnings of a marker": lambda n: (f"</think>{'<|tool_call' * (n // 11)}", Options()),
    "a stop string that never ends": lambda n: (
        f"</think>{'a' * n}", Options(stop=("a" * 40 + "b", "aab"))
    ),
    "blanks in arguments": lambda n: (f"</think>{CALL}{F0}{ARGS}1{' ' * n}1{CALL_END}", Options()),
    "a long header": lambda n: (f"</think>{CALL}{'a' * n}:0{ARGS}{CALL_END}", Options()),
    "arguments without a name": lambda n: (
        f"</think>{CALL}0{ARGS}{'[' * n}{CALL_END}", Options(tools=TOOLS)
    ),
    "calls without numbers": lambda n: (
        "</think>" + f"{CALL}search{ARGS}{CALL_END}" * (n // 20), Options(tools=TOOLS)
    ),
    "the same id": lambda n: (
        "</think>" + f"{CALL}search:9{ARGS}{CALL_END}" * (n // 20), Options()
    ),
    "a long quotation": lambda n: (f"{ONE}{'a' * n}</think>", Options()),
    "many quotations": lambda n: (f"{SECTION}a" * (n // 8), Options()),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_time_grows_with_the_length_alone(name: str) -> None:
    """Counted in lines of Python that run, which a clock could not tell as well."""
    short, long = (lines_run(*LONG[name](n)) for n in (1000, 2000))
    assert long < 2.2 * short


@pytest.mark.parametrize("name", LONG)
def test_long_answers(name: str) -> None:
    completion, options = LONG[name](20_000)
    pieces = pieces_of(completion)
    events = stream(ids_of(pieces, WHOLE, NANO), "stop", options, NANO)
    assert assembled(events) == plain(pieces, "stop", options)


def lines_run(completion: str, options: Options) -> int:
    ids = ids_of(pieces_of(completion), (1,), BYTES)
    count = 0

    def trace(frame: FrameType, what: str, argument: Any) -> Any:
        nonlocal count
        count += what == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        stream(ids, "stop", options, BYTES)
    finally:
        sys.settrace(before)
    return count
