"""Completions written as text, what they mean, and the 34 cases that servers were seen to get wrong."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import Completion, Event, collect
from moonlet.chat.tokenizer import BYTE_TOKENS, KIMI_SPECIAL, Tokenizer

VOCABULARY = [*BYTE_TOKENS, b"th", b"\n\n", b"STO", b"\xc3\xa9!"]
TOKENIZER = Tokenizer(VOCABULARY)
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


def collected(events: list[Event]) -> Completion:
    async def stream() -> AsyncIterator[Event]:
        for event in events:
            yield event

    return asyncio.run(collect(stream()))


def parse(completion: str | list[int], reason: Any = "stop", **options: Any) -> Completion:
    return collected(events_of(completion, reason, **options))


def call(header: str, arguments: str = "") -> str:
    return f"{CALL}{header}{ARGS}{arguments}{CALL_END}"


def section(*calls: str) -> str:
    return SECTION + "".join(calls) + SECTION_END


@dataclass(frozen=True)
class Example:
    """A completion, after reasoning that is closed, and what it means. `calls` are (id, arguments)."""

    completion: str
    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish: str | None = None  # None: tool_calls if there are any, else stop
    reasoning: str = "t"
    ended_by: str = "stop"
    options: dict[str, Any] = field(default_factory=dict)
    is_open: bool = False  # the completion begins inside the reasoning


@dataclass(frozen=True)
class Elsewhere:
    """A case of another part: the test that holds it."""

    file: str
    test: str


F0 = "functions.search:0"
Q = '{"query": "q"}'
ONE = section(call(F0, Q))
ONE_CALL = ((F0, Q),)
TWO = section(call(F0, Q), call("functions.search:1", Q))
LONG = json.dumps({"query": "x" * 20_000})
EDGE_CASES: dict[int, tuple[str, list[Example | Elsewhere]]] = {
    1: ("text before the section", [
        Example(f"Let me see.{ONE}", "Let me see.", ONE_CALL),
        Example(f"Let me see. \n\n{ONE}", "Let me see.", ONE_CALL),
        Example(f" \n{ONE}", "", ONE_CALL),
    ]),
    2: ("noise around calls", [
        Example(f"{SECTION}noise{call(F0, Q)}more{call('search:1', Q)}<>{SECTION_END}", "",
                (*ONE_CALL, ("functions.search:1", Q))),
    ]),
    3: ("text after the section", [Example(f"a{ONE}and so on", "a", ONE_CALL)]),
    4: ("empty section", [
        Example(section(), ""),
        Example(f"a {section()}b", "a"),
    ]),
    5: ("header without functions.", [Example(section(call("search:0", Q)), "", ONE_CALL)]),
    6: ("header that is a number", [
        Example(section(call("0", '{"x": 1}')), "", ((F0, '{"x": 1}'),), options={"tools": TOOLS[1:]}),
        Example(section(call("0", Q)), "", ONE_CALL),
        Example(section(call("0", '{"x": 1}')), ""),
    ]),
    7: ("header without a number: the next of the conversation, if a tool is named", [
        Example(section(call("functions.search", Q)), "", ONE_CALL),
        Example(section(call("search:", Q), call("search:x", Q)), "",
                (*ONE_CALL, ("functions.search:1", Q))),
        Example(section(call("functions.search", Q)), "", (("functions.search:4", Q),),
                options={"first_index": 4}),
        Example(section(call("functionssearch0", Q), call(F0, Q)), "", ONE_CALL),
    ]),
    8: ("signs in names", [
        Example(section(call("functions.a-b.c_d:e:0", Q)), "", (("functions.a-b.c_d:e:0", Q),)),
        Example(section(call("functions.functions.f:0", Q)), "", (("functions.functions.f:0", Q),)),
    ]),
    9: ("blanks around the header", [
        Example(section(call(f" \n{F0}\n ", Q)), "", ONE_CALL),
        Example(section(call("functions. search : 0", Q)), "", ONE_CALL),
    ]),
    10: ("marker-like text in arguments", [
        Example(section(call(F0, '{"query": "<b> <| <|b|> </think <|tool_call_end"}')), "",
                ((F0, '{"query": "<b> <| <|b|> </think <|tool_call_end"}'),)),
        Elsewhere("test_parser.py", "test_markers_spelt_as_text_stay_text"),
    ]),
    11: ("long arguments", [Example(section(call(F0, LONG)), "", ((F0, LONG),))]),
    12: ("arguments over several lines", [
        Example(section(call(F0, '{\n  "query": "a\\nb"\n}')), "", ((F0, '{\n  "query": "a\\nb"\n}'),)),
    ]),
    13: ("arguments that are no JSON", [
        Example(section(call(F0, '{"query": ')), "", ((F0, '{"query":'),)),
        Example(section(call(F0, "{'query': 1,}")), "", ((F0, "{'query': 1,}"),)),
        Example(section(call(F0, "{")) + SECTION + CALL, "", ((F0, "{"),), "length", ended_by="length"),
    ]),
    14: ("arguments in a JSON string", [
        Example(section(call(F0, json.dumps(Q))), "", ((F0, json.dumps(Q)),)),
    ]),
    15: ("no arguments", [
        Example(section(call(F0)), "", ((F0, "{}"),)),
        Example(section(call(F0, "{}")), "", ((F0, "{}"),)),
        Example(section(call(F0, " \n")), "", ((F0, "{}"),)),
        Example(f"{SECTION}{CALL}{F0}{CALL_END}{SECTION_END}", "", ((F0, "{}"),)),
    ]),
    16: ("cut inside a call", [
        Example(f'a{SECTION}{CALL}{F0}{ARGS}{{"query": "lo', "a", (), "length", ended_by="length"),
        Example(f"a{SECTION}{CALL}functions.sea", "a", (), "length", ended_by="length"),
        Example(f"a{SECTION}{call(F0, Q)}{CALL}search:1{ARGS}{{", "a", ONE_CALL, "length", ended_by="length"),
        Elsewhere("test_parser.py", "test_a_cut_call_is_streamed_but_has_no_end"),
    ]),
    17: ("marker over several chunks: a marker is one id, but the misspelt one is text", [
        Example(f"a {SINGULAR}\n{call(F0, Q)}", "a", ONE_CALL),
        Example("a <|tool_call_section_be", "a <|tool_call_section_be"),
        Elsewhere("test_parser_fuzz.py", "test_every_way_to_cut_the_edge_cases"),
    ]),
    18: ("several markers in one step", [
        Elsewhere("test_parser.py", "test_tokens_of_one_step_are_pushed_one_after_the_other"),
    ]),
    19: ("content and a call at once", [
        Elsewhere("test_parser.py", "test_tokens_of_one_step_are_pushed_one_after_the_other"),
    ]),
    20: ("reasoning left open", [
        Example(f"t{ONE}", "", ONE_CALL, is_open=True),
        Example(f"t{SINGULAR}{call(F0, Q)}", "", ONE_CALL, is_open=True),
        Example(f"t{call(F0, Q)}", "", ONE_CALL, is_open=True),
        Example(f"t{ONE}\nand so on", "", ONE_CALL, is_open=True),
        Example(f"t{SECTION}{CALL}{F0}{ARGS}{Q}", "", ONE_CALL, is_open=True),
        Example(f"t{SECTION}{call(F0, Q)}{CALL}{F0}{ARGS}{{", "", ONE_CALL, "length",
                ended_by="length", is_open=True),
    ]),
    21: ("markers quoted in reasoning", [
        Example(f"a{ONE}b</think>c", "c", (), None, f"a{F0}{Q}b", is_open=True),
        Example(f"a{ONE}b</think>c{ONE}", "c", ONE_CALL, None, f"a{F0}{Q}b", is_open=True),
        Example(f"a{SECTION} and {CALL}functions.NAME:IDX{ARGS} b", "", (), None,
                "a and functions.NAME:IDX b", is_open=True),
        Example(f"a{section()}b", "", (), None, "ab", is_open=True),
        Example(f"a{CALL}b", "", (), None, "ab", is_open=True),
        Example(f"a{ONE}b{ONE}", "", (*ONE_CALL, ("functions.search:1", Q)), None, "a", is_open=True),
        Example(f"a {SINGULAR} {call(F0, Q)} b</think>", "", (), None,
                f"a {SINGULAR} {F0}{Q} b", is_open=True),
        Example(f"a{ONE} so I", "", (), "length", f"a{F0}{Q} so I", "length", is_open=True),
        Example(f"a{ONE}b", "", (), None, f"a{F0}{Q}b", options={"tools": []}, is_open=True),
        Example(f"So <think> and </think>{ONE}", "So  and", ONE_CALL),
    ]),
    22: ("no section, or its misspelt marker", [
        Example(call(F0, Q), "", ONE_CALL),
        Example(f"a\n{SINGULAR}{call(F0, Q)}", "a", ONE_CALL),
        Example(f"a {SINGULAR} {SECTION}{call(F0, Q)}", "a", ONE_CALL),
    ]),
    23: ("tool_choice none: the request comes without tools", [
        Example(f"a{ONE}", "a", options={"tools": []}),
    ]),
    24: ("a call without tools", [Example(f"a {ONE}b", "a", options={"tools": []})]),
    25: ("a call of a tool that is not declared", [
        Example(section(call("functions.find:0", Q)), "", (("functions.find:0", Q),)),
        Elsewhere("test_calls.py", "test_a_call_of_an_unknown_tool_is_logged"),
    ]),
    26: ("the same call twice", [
        Example(TWO, "", (*ONE_CALL, ("functions.search:1", Q))),
        Example(section(call(F0, Q), call(F0, Q)), "", (*ONE_CALL, ("functions.search:1", Q))),
    ]),
    27: ("many answers at once", [Elsewhere("test_parser.py", "test_parsers_share_nothing")]),
    28: ("special tokens are read by id, whatever the tokenizer would print", [
        Example("a<|im_end|>[EOS]", "a"),
        Elsewhere("test_parser.py", "test_markers_spelt_as_text_stay_text"),
    ]),
    29: ("finish reason", [
        Example(ONE, "", ONE_CALL, "tool_calls"),
        Example(section(call("functions.bad", Q)), "", (), "stop"),
        Example(ONE, "", ONE_CALL, "length", ended_by="length"),
    ]),
    30: ("one call only", [
        Example(TWO, "", ONE_CALL, options={"stop_after_first_call": True}),
        Example(section(call("bad"), call(F0, Q), "x", call(F0, Q)), "", ONE_CALL,
                options={"stop_after_first_call": True}),
        Example(f"t{TWO}", "", ONE_CALL, options={"stop_after_first_call": True}, is_open=True),
        Elsewhere("test_calls.py", "test_after_the_first_call_the_parser_is_silent"),
    ]),
    31: ("stop strings", [
        Example(f"a STOP {ONE}", "a ", (), options={"stop": ("STOP",)}),
        Example(f"a{section(call(F0, 'STOP'))}", "a", ((F0, "STOP"),), options={"stop": ("STOP",)}),
        Example("STOP</think>a", "a", (), None, "STOP", options={"stop": ("STOP",)}, is_open=True),
    ]),
    32: ("tool results with images", [Elsewhere("test_messages.py", "test_tool_result_with_parts")]),
    33: ("tool result without a call", [
        Elsewhere("test_messages.py", "test_errors_point_at_the_field"),
        Elsewhere("test_repair.py", "test_results_that_belong_to_no_call"),
    ]),
    34: ("arguments that are an object", [Elsewhere("test_messages.py", "test_tool_calls")]),
}  # fmt: skip
EXAMPLES = [
    pytest.param(example, id=f"{number}-{index}")
    for number, (_, entries) in EDGE_CASES.items()
    for index, example in enumerate(entries)
    if isinstance(example, Example)
]


def whole(example: Example) -> str:
    return example.completion if example.is_open else f"t</think>{example.completion}"
