"""Headers that models write, the ids that calls get, and their arguments."""

import logging
from typing import Any

import pytest

from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import Event, Finish, ToolCallEnd, ToolCallStart
from tests.chat.completions import (
    ARGS,
    CALL,
    CALL_END,
    SECTION,
    SECTION_END,
    SINGULAR,
    TOKENIZER,
    TOOLS,
    TWO,
    Q,
    call,
    collected,
    events_of,
    ids_of,
    parse,
    section,
    tool,
)


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
        (f"{CALL}f:{'1' * 5000}{ARGS}1{CALL_END}", []),
        (f"{CALL}{ARGS}1{CALL_END}", []),
        (f"{CALL}f:0", []),
        (f'{CALL}f:0{ARGS}{{"a": "</think<|im_end|>x"}}{CALL_END}', [("functions.f:0", "f", '{"a": "</thinkx"}')]),
        (f"{CALL}f:0{ARGS}1{CALL_END}{SECTION_END}x{SECTION}{CALL}f:1{ARGS}2{CALL_END}", [("functions.f:0", "f", "1"), ("functions.f:1", "f", "2")]),
        (f"{CALL}f:0{ARGS}a \n b\n\n{CALL_END}", [("functions.f:0", "f", "a \n b")]),
        (f"{CALL}f:0{ARGS}\u00a0{CALL_END}", [("functions.f:0", "f", "\u00a0")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", [SECTION, "", f"{SINGULAR}\n", f"{SECTION}noise"])
def test_calls(prefix: str, body: str, calls: list[tuple[str, str, str]]) -> None:
    done = parse(f"t</think>c\n{prefix}{body}")
    assert [(c.id, c.name, c.arguments) for c in done.tool_calls] == calls
    assert (done.reasoning, done.text) == ("t", "c")
    assert done.finish_reason == ("tool_calls" if calls else "stop")


def test_indices_stay_dense_when_a_call_is_skipped() -> None:
    events = events_of(f"</think>{section(call('bad'), call('f:5', '1'), call('g:6', '1'))}")
    assert [e.index for e in events if isinstance(e, ToolCallStart)] == [0, 1]
    assert [e.index for e in events if isinstance(e, ToolCallEnd)] == [0, 1]


@pytest.mark.parametrize(
    ("headers", "first_index", "numbers"),
    [
        (["search:3", "search:4"], 3, [3, 4]),
        (["search:3", "search:4"], 0, [3, 4]),  # what the model wrote stays
        (["search:5", "search:3"], 3, [5, 3]),
        (["search:0", "search:1"], 2, [2, 3]),  # both were used before
        (["search:2", "search:2", "search:2"], 2, [2, 3, 4]),
        (["search:3", "search:2", "search:2"], 2, [3, 2, 4]),
        (["search:3", "search", "search"], 2, [3, 4, 5]),
        (["search", "search", "search:3"], 2, [2, 3, 4]),
        (["search:007"], 0, [7]),
        (["search:1234567890"], 3, [3]),
        (["0", "0"], 1, [1, 2]),
    ],
)
def test_numbers(headers: list[str], first_index: int, numbers: list[int]) -> None:
    done = parse(
        f"</think>{section(*(call(h, Q) for h in headers))}", tools=TOOLS, first_index=first_index
    )
    assert [c.id for c in done.tool_calls] == [f"functions.search:{n}" for n in numbers]


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
    done = parse(f"x</think>{SECTION}{CALL}7{ARGS}{arguments}{CALL_END}", tools=tools)
    expected = [] if name is None else [(f"functions.{name}:7", name, arguments or "{}")]
    assert [(c.id, c.name, c.arguments) for c in done.tool_calls] == expected


def test_a_call_of_an_unknown_tool_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    completion = f"</think>{section(call('functions.find:0', Q), call('search:1', Q))}"
    with caplog.at_level(logging.WARNING):
        parse(completion, tools=TOOLS)
        parse(completion)  # nobody knows which tools there are
    assert [record.getMessage() for record in caplog.records] == [
        "the model called 'find', which is not declared"
    ]


def test_after_the_first_call_the_parser_is_silent() -> None:
    parser = OutputParser(TOKENIZER, False, tools=TOOLS, stop_after_first_call=True)
    events: list[Event] = []
    for i in ids_of(f"a{TWO}"):
        assert not parser.stopped or ToolCallEnd(0) in events
        events += parser.push(i)
    assert parser.stopped
    finish = parser.finish("stop")
    assert [type(event) for event in finish] == [Finish]
    assert collected(events + finish).finish_reason == "tool_calls"
    assert finish[0].usage.completion_tokens < len(ids_of(f"a{TWO}"))  # type: ignore[union-attr]
