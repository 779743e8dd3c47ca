"""What a client's schema may be, before a grammar is made of it."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moonlet.engine.schema import MAX_BYTES, MAX_DEPTH, MAX_SCHEMAS, prepare
from moonlet.errors import PromptError
from tests.engine.test_grammar import COMPILER


def kept(schema: Any) -> Any:
    return json.loads(prepare(schema, "tools"))


def nested(depth: int, key: str = "items") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {key: [schema] if key == "anyOf" else schema}
    return schema


def node(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def test_what_only_describes_is_left_out() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "title": "T", "x-guidance": {"lenient": True},
        "type": "object", "nullable": True, "uniqueItems": False, "description": "not a keyword", "examples": [1],
        "properties": {"title": {"type": "string", "format": "password", "default": "a"}, "not": {"const": None}},
    }  # fmt: skip
    expected = {"type": "object", "properties": {"title": {"type": "string"}, "not": {"const": None}}}  # fmt: skip
    assert kept(schema) == expected
    assert kept({"type": "string", "format": "date-time"}) == {"type": "string", "format": "date-time"}  # fmt: skip
    assert kept(True) == {}


def test_the_order_of_properties_is_kept() -> None:
    text = prepare(node("b", b={}, a={}), "tools")
    assert text.index('"b"') < text.index('"a"')


@pytest.mark.parametrize("key", ["maximum", "exclusiveMaximum"])
@pytest.mark.parametrize(
    "bound", [3, 2**53, 2**53 + 1, 2**53 + 4, 2**60 + 1, 2**63 - 1, 2**63, 2**64, 1e19, 10**30]
)
def test_far_bounds_become_tighter_never_looser(key: str, bound: float) -> None:
    for sign, name in ((1, key), (-1, key.replace("Max", "Min").replace("max", "min"))):
        (value,) = kept({name: sign * bound}).values()
        near = abs(value)
        # What the library makes of it for an integer: one less, in float64.
        held = int(near - 1.0) if "exclusive" in key else near
        most = min(int(bound) - ("exclusive" in key), 2**63 - 1024)
        assert most - 2048 - 1 <= held <= most
        assert near == bound or bound > 2**53


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], "must be an object, not list"),
        (False, "nothing is allowed"),
        ({"properties": {"a": 5}}, "at #/properties/a, a schema must be an object, not int"),
        ({"properties": []}, "dict is expected, not list"),
        ({"anyOf": {}}, "list is expected, not dict"),
        ({"items": [{}]}, "must be an object, not list"),
        ({"properties": {"a": {"not": {}}}}, "at #/properties/a, the keyword 'not' is not supported"),
        ({"uniqueItems": True}, "'uniqueItems'"),
        ({"if": {}, "then": {}}, "'if'"),
        ({"$ref": "#/$defs/x"}, "leads to no schema"),
        ({"$ref": "https://example.com/schema.json"}, "leads to no schema"),
        ({"$ref": "#/enum/0", "enum": [{"not": {}}]}, "leads to no schema"),
        ({"$ref": 5}, "str is expected"),
        (nested(MAX_DEPTH + 1), "deeper than the 60 levels"),
        (nested(MAX_DEPTH + 1, "anyOf"), "deeper than the 60 levels"),
        ({"properties": {str(i): {} for i in range(MAX_SCHEMAS)}}, "more than the 4000 schemas"),
        ({"const": "x" * MAX_BYTES}, "at most 131072 are supported"),
        ({"minLength": 10**9}, "minLength is 1e+09, at most 100000"),
        ({"type": "array", "items": {"minItems": 10**400}}, "the number of minItems is too large"),
        ({"minimum": 10**400}, "too large"),
        ({"maximum": float("inf")}, "too large"),
        ({"const": float("nan")}, "it is not JSON"),
        ({"maximum": float("nan")}, "it is not JSON"),
        ({"minimum": 10**20, "maximum": 10**20 + 5}, "minimum is 100000000000000000000, which cannot be held"),
        ({"items": {"minimum": 2**63}}, "at #/items, minimum is 9223372036854775808"),
        ({"minimum": 1e19}, "minimum is 1e+19, which cannot be held exactly"),
        ({"minimum": 2**53 + 1, "maximum": 2**53 + 1}, "minimum is 9007199254740993"),
        ({"minimum": -(2**63) - 5, "maximum": -(2**63) - 1}, "maximum is -9223372036854775809"),
        ({"exclusiveMinimum": 2**53}, "exclusiveMinimum is 9007199254740992"),
        ({"exclusiveMaximum": -(2**60)}, "exclusiveMaximum is -1152921504606846976"),
        ({"const": 2**53 + 1}, "not exact"),
        ({"enum": [1, {"a": [10**400]}]}, "not exact"),
        ({"multipleOf": 123456789}, "multipleOf"),
        ({"allOf": [{"multipleOf": 101}, {"multipleOf": 0.0103}]}, "multipleOf"),
        ({"minProperties": 2, "additionalProperties": {}}, "minProperties"),
        ({"enum": ["bell\x07"]}, "control characters"),
        ({"const": "\x7f"}, "control characters"),
        ({"pattern": "^0\\x07$"}, "control characters"),
        ({"patternProperties": {"\\u0001": {}}}, "control characters"),
    ],
    ids=lambda value: json.dumps(value, default=str)[:40],
)  # fmt: skip
def test_schemas_that_are_refused(schema: Any, reason: str) -> None:
    with pytest.raises(PromptError) as caught:
        prepare(schema, "tools[0]")
    assert reason in str(caught.value)
    assert caught.value.param == "tools[0]"
    assert len(str(caught.value)) < 300


ENDLESS = [
    {"$ref": "#"},
    node("x", x={"$ref": "#"}),
    {"allOf": [{"$ref": "#"}]},
    {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
    {"$defs": {"a": ref("b"), "b": ref("a")}, "$ref": "#/$defs/a"},
    {"$defs": {"a": node("b", b=ref("b")), "b": node("a", a=ref("a"))}, **node("a", a=ref("a"))},
    {"type": "object", "required": ["x"], "additionalProperties": {"$ref": "#"}},
]
ENDING = [
    node(x={"$ref": "#"}),
    {"type": "array", "items": {"$ref": "#"}},
    {"anyOf": [{"type": "null"}, node("x", x={"$ref": "#"})]},
    {"type": ["object", "null"], "required": ["x"], "properties": {"x": {"$ref": "#"}}},
    {"$defs": {"a": node("b", b=ref("b")), "b": {"anyOf": [ref("a"), {"const": 1}]}}, "$ref": "#/$defs/a"},
    {"$defs": {"unused": {"$ref": "#/$defs/unused"}}, "type": "null"},
    {"$defs": {"a b/c~d": {"type": "null"}}, "$ref": "#/$defs/a%20b~1c~0d"},
    {"$defs": {f"d{i}": ref(f"d{i + 1}") for i in range(900)} | {"d900": {}}, "$ref": "#/$defs/d0"},
    {"$defs": {f"d{i}": ref(f"d{i - 1}") for i in range(1, 900)} | {"d0": {}}, "$ref": "#/$defs/d899"},
]  # fmt: skip


@pytest.mark.parametrize("schema", ENDLESS, ids=lambda schema: json.dumps(schema)[:50])
def test_recursion_without_an_end_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="endless"):
        prepare(schema, "tools")


@pytest.mark.parametrize("schema", ENDING, ids=lambda schema: json.dumps(schema)[:50])
def test_recursion_that_can_end_is_fine(schema: dict[str, Any]) -> None:
    mask = COMPILER.schema(schema).mask()
    assert mask is not None
    assert mask.any()


KEYWORDS = st.sampled_from(
    ["type", "const", "enum", "required", "minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength", "pattern", "minimum", "maximum", "multipleOf", "items", "additionalProperties", "properties", "patternProperties", "$defs", "anyOf", "oneOf", "allOf", "prefixItems", "$ref", "format", "not", "title", "exclusiveMinimum"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400),
    st.sampled_from(["string", "integer", "number", "object", "array", "null", "boolean", "#", "#/$defs/a", "#/items", "date", "[a-z]+", "(", "�"]),
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.just("a"), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ANYTHING | st.dictionaries(KEYWORDS, ANYTHING, max_size=4))
def test_whatever_is_sent_makes_a_guide_or_a_prompt_error(schema: Any) -> None:
    try:
        guide = COMPILER.schema(schema)
    except PromptError:
        return
    mask = guide.mask()
    assert mask is not None
    assert mask.any()
