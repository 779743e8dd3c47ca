"""Tool declarations against texts of the published encoder, and schemas that have no such text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.tools_typescript import declare_tools, sort_keys
from tests.shared import golden, needs_shared


def declare(*parameters: Any, **function: Any) -> str:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": p} | function}
        for p in parameters
    ]
    return declare_tools(sort_keys(tools))


@needs_shared
def test_golden_schemas() -> None:
    cases = golden("tools_typescript.json")["cases"]
    cases += [c | {"text": c["out"]} for c in golden("chat_prompts.json")["tools_typescript"]]
    assert len(cases) == 48
    for case in cases:
        assert declare_tools(sort_keys(case["tools"])) == case["text"]


@needs_shared
def test_golden_schemas_that_must_raise() -> None:
    for case in golden("tools_typescript.json")["raises"]:
        with pytest.raises(ValueError, match="No TypeScript form"):
            declare_tools(sort_keys(case["tools"]))


def test_everything_at_once() -> None:
    text = declare(
        {
            "type": "object",
            "required": ["b"],
            "properties": {
                "b": {"type": "integer", "minimum": 0, "default": 3, "description": "x\n\ny"},
                "a": {"type": "array", "items": {"type": "object", "description": "item"}},
                "c": {"enum": ["p", None, True]},
            },
            "additionalProperties": True,
        }
    )
    assert text == (
        "# Tools\n\n## functions\nnamespace functions {\ntype f = (_: {\n"
        "  // x\n\n  // y\n  // minimum: 0\n  // Default: 3\n  b: number,\n"
        "  a?: Array<\n    // item\n    {}\n  >,\n"
        '  c?: "p" | None | True,\n  [k: string]: any\n}) => any;\n}\n'
    )


def test_no_functions_no_text() -> None:
    assert declare_tools([]) == ""
    assert declare_tools([{"type": "builtin_function", "function": {"name": "$x"}}]) == ""


def test_booleans_as_schemas() -> None:
    text = declare({"type": "object", "properties": {"a": True, "b": False}})
    assert "a?: any,\n  b?: null" in text


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": []},
        {"$ref": "https://example.org/x"},
        {"$ref": 3},
        {"type": "decimal"},
        {"type": ["string", "decimal"]},
        {"type": [["string"]]},
        {"type": 3},
        {"description": "only words"},
        {"type": "string", "description": 3},
        {"type": "object", "properties": []},
        {"type": "object", "required": 3},
        "string",
        None,
        7,
    ],
)
def test_no_typescript_form(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        declare({"type": "object", "properties": {"a": schema}})


@pytest.mark.parametrize("parameters", [{"type": "string"}, [1], "x"])
def test_parameters_must_be_an_object(parameters: Any) -> None:
    with pytest.raises(ValueError, match="object schema"):
        declare(parameters)


SCHEMA_KEYS = st.sampled_from(
    ["type", "properties", "items", "enum", "anyOf", "$ref", "$defs", "required", "description"]
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["object", "array", "string", "#"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCHEMA_KEYS, inner, max_size=4),
    max_leaves=15,
)


@given(JUNK)
def test_junk_gives_text_or_value_error(parameters: Any) -> None:
    try:
        text = declare(parameters)
    except ValueError:
        return
    assert text.startswith("# Tools\n")
    assert text.endswith("}\n")


@pytest.mark.timeout(60)  # name by name it would take minutes
def test_as_many_required_names_as_there_are_properties() -> None:
    names = [f"p{i}" for i in range(100_000)]
    schema = {"type": "object", "properties": {name: {} for name in names}, "required": names}
    assert declare(schema).count(": any") == 100_000
