"""Calls that the grammar forces or watches over, with random tokens and through the parser."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from moonlet.chat.parser import OutputParser
from moonlet.chat.provider import Finish, TextDelta, ToolCallDelta, ToolCallStart
from moonlet.engine.guide import Guide
from moonlet.errors import PromptError
from tests.engine.test_grammar import CLOSING, COMPILER, INT, SIZE, TOKENIZER, WORD, obj

SPECIAL = TOKENIZER.special
BEGIN, END = SPECIAL["<|tool_calls_section_begin|>"], SPECIAL["<|tool_calls_section_end|>"]
CALL, ARGUMENTS, CLOSE = (
    SPECIAL[f"<|tool_call_{part}|>"] for part in ("begin", "argument_begin", "end")
)
WORDS = [TOKENIZER.decode_bytes([i]) for i in range(min(SPECIAL.values()))]
IM_END = SPECIAL["<|im_end|>"]


def tool(name: str, schema: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


TOOLS = [
    tool("get", obj({"city": WORD, "days": INT}, "city", additionalProperties=False)),
    tool("get_all", {"type": "object", "properties": {"n": INT}, "additionalProperties": False}),
    tool("set.value-1", obj({"on": {"type": "boolean"}, "text": WORD}, "on", additionalProperties=False), strict=True),
    tool("now", obj({}, additionalProperties=False)),
]  # fmt: skip
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


def drive(guide: Guide, seed: int, limit: int = 3000) -> list[int] | None:
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < limit:
        mask = guide.mask()
        allowed = np.arange(BEGIN) if mask is None else np.flatnonzero(mask)
        closing = [i for i in (*CLOSING, CLOSE, END) if mask is not None and mask[i]]
        tokens.append(int(rng.choice(closing if closing and rng.random() < 0.3 else allowed)))
        guide.accept(tokens[-1])
        if tokens[-1] in TOKENIZER.end_ids:
            return tokens
    return None


def parsed(tokens: list[int]) -> tuple[str, list[tuple[str, str, str]]]:
    """The text and the calls (id, name, arguments) that the parser finds."""
    parser = OutputParser(TOKENIZER, False, (), TOOLS)
    events = [event for token in tokens for event in parser.push(token)]
    events += parser.finish("stop")
    assert isinstance(events[-1], Finish)
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    arguments = [
        "".join(e.arguments for e in events if isinstance(e, ToolCallDelta) and e.index == i)
        for i in range(len(starts))
    ]
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return text, [
        (start.id, start.name, text) for start, text in zip(starts, arguments, strict=True)
    ]


def check(calls: list[tuple[str, str, str]], first_index: int) -> None:
    for index, (call_id, name, arguments) in enumerate(calls, first_index):
        assert call_id == f"functions.{name}:{index}"
        assert jsonschema.Draft202012Validator(SCHEMAS[name]).is_valid(json.loads(arguments))


def walk(guide: Guide, *steps: int | str) -> Guide:
    """Over tokens, and over texts in the longest tokens that the mask has: it may ask for the usual ones."""
    for step in steps:
        if isinstance(step, int):
            mask = guide.mask()
            assert mask is None or mask[step], step
            guide.accept(step)
            continue
        rest = step.encode()
        while rest:
            mask = guide.mask()
            fits = [
                i
                for i, word in enumerate(WORDS)
                if rest.startswith(word) and (mask is None or mask[i])
            ]
            assert fits, rest
            token = max(fits, key=lambda i: len(WORDS[i]))
            guide.accept(token)
            rest = rest[len(WORDS[token]) :]
    return guide


def allowed(guide: Guide) -> set[int] | None:
    mask = guide.mask()
    return None if mask is None else set(np.flatnonzero(mask).tolist())


def test_forced_calls_are_calls_whatever_the_weights() -> None:
    seen: set[str] = set()
    counts: set[int] = set()
    for seed in range(60):
        tokens = drive(COMPILER.calls(TOOLS, first_index=seed), seed)
        assert tokens is not None
        text, calls = parsed(tokens)
        assert text == ""
        check(calls, seed)
        seen |= {name for _, name, _ in calls}
        counts.add(len(calls))
    assert seen == SCHEMAS.keys()
    assert {1, 2} < counts
    assert 0 not in counts


@pytest.mark.parametrize("parallel", [True, False])
def test_one_tool_alone(parallel: bool) -> None:
    found = []
    for seed in range(20):
        tokens = drive(COMPILER.calls(TOOLS, "get", parallel), seed)
        assert tokens is not None
        calls = parsed(tokens)[1]
        check(calls, 0)
        found.append([name for _, name, _ in calls])
    assert {name for names in found for name in names} == {"get"}
    assert (max(map(len, found)) > 1) == parallel


def test_the_shape_of_a_forced_call() -> None:
    guide = COMPILER.calls(TOOLS[:2], None, False, 12)
    assert allowed(guide) == {BEGIN}
    assert allowed(walk(guide, BEGIN)) == {CALL}
    walk(guide, CALL, "functions.get")
    other = walk(guide.fork(), "_all:12", ARGUMENTS, "{", "}")
    assert CLOSE in (allowed(other) or ())
    walk(guide, ":12")
    assert allowed(guide) == {ARGUMENTS}
    walk(guide, ARGUMENTS)
    assert {WORDS[i][:1] for i in allowed(guide) or ()} == {b"{"}
    walk(guide, '{"city": "a"')  # a blank behind the colon is how models write
    assert CLOSE not in (allowed(guide) or ())
    walk(guide, "}")
    assert allowed(guide) == {CLOSE}
    assert allowed(walk(guide, CLOSE)) == {END}
    assert allowed(walk(guide, END)) == TOKENIZER.end_ids
    walk(other, CLOSE, END, IM_END)


def test_free_text_is_free_until_the_model_begins_a_call() -> None:
    guide = COMPILER.strict_calls(TOOLS, 3)
    assert allowed(walk(guide, "Hello, <|tool_call_begin|> is text")) is None
    assert allowed(walk(guide, BEGIN)) == {CALL}
    walk(guide, CALL, "functions.now:3", ARGUMENTS, "{}", CLOSE)
    assert allowed(guide) == {END, CALL}
    walk(guide, CALL, "functions.get:4", ARGUMENTS, '{"city":"x"}', CLOSE, END)
    assert allowed(guide) == TOKENIZER.end_ids
    assert allowed(walk(COMPILER.strict_calls(TOOLS), "no call", IM_END)) is None


def test_a_call_without_a_section_is_watched_too() -> None:
    guide = walk(COMPILER.strict_calls(TOOLS, parallel=False), "text", CALL)
    assert {WORDS[i][:1] for i in allowed(guide) or ()} == {b"f"}
    tokens = drive(guide, 0)
    assert tokens is not None
    check(parsed([CALL, *tokens])[1], 0)
    assert tokens.count(CALL) == 0


def test_tools_that_are_not_strict_take_any_object() -> None:
    loose = [tool("free", obj({"a": {"not": {}}}), strict=False), tool("none")]
    for name in ("free", "none"):
        guide = walk(COMPILER.strict_calls(loose), BEGIN, CALL, f"functions.{name}:0", ARGUMENTS)
        walk(guide, '{"a": [1, {"b": "c"}], "d": null}', CLOSE, END)
    with pytest.raises(PromptError, match="'not' is not supported") as caught:
        COMPILER.strict_calls([*TOOLS, tool("free", obj({"a": {"not": {}}}))])
    assert caught.value.param == "tools[4].function.parameters"


def test_marks_in_a_text_do_not_end_the_arguments() -> None:
    guide = walk(
        COMPILER.calls([tool("say", obj({"text": {"type": "string"}}, "text"))]), BEGIN, CALL
    )
    walk(guide, "functions.say:0", ARGUMENTS, '{"text":"', "<|tool_call_end|></think>")
    assert not {CLOSE, END, IM_END, SPECIAL["</think>"]} & (allowed(guide) or set())
    walk(guide, '"}', CLOSE)


@pytest.mark.parametrize(("tools", "name"), [([], None), (TOOLS, "unknown")])
def test_nothing_to_call(tools: list[dict[str, Any]], name: str | None) -> None:
    with pytest.raises(PromptError, match="none such is declared") as caught:
        COMPILER.calls(tools, name)
    assert caught.value.param == "tool_choice"


def test_a_schema_is_found_where_the_request_has_it() -> None:
    tools = [*TOOLS, tool("bad", {"type": "object", "not": {}})]
    for only in (None, "bad"):
        with pytest.raises(PromptError, match="'not' is not supported") as caught:
            COMPILER.calls(tools, only)
        assert caught.value.param == f"tools[{len(TOOLS)}].function.parameters"


def test_all_schemas_of_a_request_have_a_limit() -> None:
    large = obj({f"property {i}": {"const": "x" * 50} for i in range(1000)})
    tools = [tool(f"f{i}", large) for i in range(4)]
    with pytest.raises(PromptError, match="262144 bytes together") as caught:
        COMPILER.strict_calls(tools)
    assert caught.value.param == "tools"
    COMPILER.strict_calls([tool(f"f{i}", large, strict=False) for i in range(4)])


def test_masks_are_as_wide_as_the_model() -> None:
    guide = walk(COMPILER.calls(TOOLS), BEGIN, CALL)
    mask = guide.mask()
    assert mask is not None
    assert mask.shape == (SIZE,)
