"""The schema subset: what stands in it, what does not, and that no schema can hurt the check."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat.mfjs import LIMITS, Limits, check_mfjs
from moonlet.errors import PromptError

NODE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
GOOD: list[dict[str, Any]] = [
    {},
    {"title": "anything"},
    {"type": "object"},
    {"type": ["string", "null"], "minLength": 1, "maxLength": 5},
    {"type": "integer", "minimum": -3, "maximum": 3, "default": 0},
    {"type": "number", "minimum": 0.5},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 0, "maxItems": 2},
    {"type": "string", "enum": ["a", "b"]},
    {"type": "integer", "enum": [1, 2]},
    {"type": "number", "enum": [1, 2.5]},
    {"type": ["integer", "null"], "enum": [1]},
    {"anyOf": [{"type": "null"}, {"type": "string"}], "description": "d", "title": "t"},
    {"type": "object", "additionalProperties": {}},
    {"type": "object", "additionalProperties": {"type": "string"}},
    {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    {"$id": "x", **NODE, "$defs": {"node": NODE}},
    {"type": "object", "properties": {"self": {"$ref": "#"}}},
    {"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
]
BAD: list[tuple[Any, str]] = [
    ({"type": "object", "properties": {"a": {}}}, "has no type"),
    ({"type": "object", "properties": {"a": {"description": "d"}}}, "has no type"),
    ({"type": "array", "items": {}}, "has no type"),
    ({"properties": {}}, "has no type"),
    ({"enum": ["a"]}, "has no type"),
    ({"type": "date"}, "type must be one of"),
    ({"type": []}, "type must be one of"),
    ({"type": ["string", "string"]}, "type must be one of"),
    ({"type": [["string"]]}, "type must be one of"),
    ({"type": None}, "type must be one of"),
    ({"type": "string", "pattern": "x"}, "'pattern' is not supported"),
    ({"type": "string", "format": "date"}, "'format' is not supported"),
    ({"oneOf": [{"type": "null"}]}, "'oneOf' is not supported"),
    ({"const": 1}, "'const' is not supported"),
    ({"$schema": "x", "type": "object"}, "schema' is not supported"),
    ({"type": "object", "properties": {"a": {"$defs": {}, "type": "null"}}}, "defs' is not"),
    ({"type": "object", "anyOf": [{"type": "null"}]}, "must not stand beside"),
    ({"type": "object", "$ref": "#"}, "must not stand beside"),
    ({"anyOf": [{"type": "null"}], "default": 1}, "default must not stand beside anyOf"),
    ({"$ref": "#", "properties": {}}, "properties must not stand beside"),
    ({"anyOf": []}, "anyOf must be a list"),
    ({"anyOf": [True]}, "a schema must be an object"),
    ({"type": "object", "properties": []}, "properties must be an object"),
    ({"type": "object", "required": ["a"]}, "which properties have not"),
    ({"type": "object", "required": "a"}, "required must be a list"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a", "a"]}, "twice"),
    ({"type": "string", "minLength": 1.5}, "minLength must be a whole number"),
    ({"type": "string", "minLength": -1}, "minLength must be a whole number"),
    ({"type": "string", "minLength": True}, "minLength must be a whole number"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength is above maxLength"),
    ({"type": "number", "minimum": "0"}, "minimum must be a number"),
    ({"type": "array", "items": [{"type": "null"}]}, "a schema must be an object"),
    ({"type": "array", "items": True}, "a schema must be an object"),
    ({"type": "string", "enum": []}, "enum must be a list"),
    ({"type": "string", "enum": ["a", 1]}, "only of one kind"),
    ({"type": "boolean", "enum": [True]}, "only of one kind"),
    ({"type": "string", "enum": [None]}, "only of one kind"),
    ({"type": "string", "enum": [1]}, "enum holds integers"),
    ({"type": "integer", "enum": [1.5]}, "enum holds numbers"),
    ({"$ref": "#/$defs/no"}, "ref is '#/$defs/no'"),
    ({"$ref": "#/properties/a"}, "ref is"),
    ({"$ref": "http://x"}, "ref is"),
    ({"$ref": 3}, "ref is no string"),
    ({"$defs": [], "type": "null"}, "defs must be an object"),
    ({"$id": 1, "type": "null"}, "id must be a string"),
    ({"type": "null", "title": 1}, "title must be a string"),
    ({"type": "null", "$defs": {"a": {}}}, "has no type"),
    ({"$ref": "#"}, "leads back to itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "leads back"),
    ({"anyOf": [{"type": "null"}, {"anyOf": [{"$ref": "#"}]}]}, "leads back"),
]  # fmt: skip


@pytest.mark.parametrize("schema", GOOD, ids=json.dumps)
def test_what_stands_in_the_subset(schema: dict[str, Any]) -> None:
    check_mfjs(schema, "x")


@pytest.mark.parametrize(("schema", "says"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_does_not(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(PromptError) as caught:
        check_mfjs(schema, "x")
    assert says in caught.value.message
    assert caught.value.param == "x"


def test_a_refusal_says_where() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"not": {}}}}}
    with pytest.raises(PromptError, match=r"at tools\[0\]\.a\.items: 'not'"):
        check_mfjs(schema, "tools[0]")


@pytest.mark.parametrize(
    ("schema", "limits"),
    [
        ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}, Limits(properties=1)),
        ({"type": "array", "items": {"type": "array", "items": {"type": "null"}}}, Limits(depth=2)),
        ({"type": "null", "title": "x" * 90}, Limits(text_bytes=100)),
        ({"anyOf": [{"type": "null"}] * 3}, Limits(alternatives=2)),
        ({"type": "integer", "enum": [1, 2, 3]}, Limits(enum_values=2)),
        ({"type": "string", "enum": ["abc", "def"]}, Limits(enum_characters=5)),
    ],
)  # fmt: skip
def test_every_limit(schema: dict[str, Any], limits: Limits) -> None:
    check_mfjs(schema, "x")
    with pytest.raises(PromptError, match=r"more than|deeper|bytes"):
        check_mfjs(schema, "x", limits)


def test_the_largest_schema_is_taken() -> None:
    names = {f"p{i}": {"type": "null"} for i in range(LIMITS.properties)}
    check_mfjs({"type": "object", "properties": names}, "x")
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(LIMITS.depth - 1):
        deep = {"type": "array", "items": deep}
    check_mfjs(deep, "x")


KEYS = st.sampled_from(
    [
        "type",
        "enum",
        "anyOf",
        "$ref",
        "$defs",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "minItems",
        "title",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3)
    | st.sampled_from(["object", "array", "string", "#", "#/$defs/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.just("a"), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_whatever_it_holds_the_check_ends_in_yes_or_a_reason(schema: dict[str, Any]) -> None:
    reason = ""
    try:
        check_mfjs(schema, "x")
    except PromptError as error:
        reason = error.message
    assert len(reason) < 400
