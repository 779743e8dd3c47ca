"""Schemas over the whole MFJS subset whose values are short, so that even random weights can write them.

Every object is closed, strings and lists have a largest length, integers have bounds. What has none, and
numbers, whose digits nothing bounds, is marked `open_ended`: there an answer that does not end is no fault.
"""

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]

WORD: Schema = {"type": "string", "maxLength": 6}
DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
COLOURS: Schema = {"type": "string", "enum": ["red", "green", "blue"]}


@dataclass(frozen=True)
class Case:
    """A schema with a name."""

    name: str
    schema: Schema
    open_ended: bool = False

    @property
    def root(self) -> Schema:
        """The schema as an object, which parameters of tools have to be."""
        if self.schema.get("type") == "object":
            return self.schema
        inner = {name: part for name, part in self.schema.items() if name != "$defs"}
        defs = {name: self.schema[name] for name in ("$defs",) if name in self.schema}
        return {**closed({"value": inner}, "value"), **defs}


def closed(properties: Schema, *required: str, **more: Any) -> Schema:
    """An object with these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def fixed(text: str) -> Schema:
    """The one object whose `value` is `text`."""
    return closed({"value": {"type": "string", "enum": [text]}}, "value")


def rows(items: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def one_of(*options: Schema) -> Schema:
    return {"anyOf": list(options)}


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


POINT = closed({"x": DIGIT, "y": DIGIT}, "x", "y")
CIRCLE = closed({"kind": {"type": "string", "enum": ["circle"]}, "radius": DIGIT}, "kind", "radius")
SQUARE = closed({"kind": {"type": "string", "enum": ["square"]}, "side": DIGIT}, "kind", "side")
LEAF = closed({"name": WORD}, "name")

MFJS = (
    Case("boolean", FLAG),
    Case("null", NULL),
    Case("integer-bounds", {"type": "integer", "minimum": -3, "maximum": 120}),
    Case("integer-one", {"type": "integer", "minimum": 7, "maximum": 7}),
    Case("integer-minimum", {"type": "integer", "minimum": 99_990, "maximum": 100_010}),
    Case("number-bounds", {"type": "number", "minimum": 0.5, "maximum": 2.5}, True),
    Case("number-negative", {"type": "number", "minimum": -1, "maximum": 0}, True),
    Case("string-max", WORD),
    Case("string-min", {"type": "string", "minLength": 3, "maxLength": 8}),
    Case("string-exact", {"type": "string", "minLength": 4, "maxLength": 4}),
    Case("string-empty", {"type": "string", "maxLength": 0}),
    Case("enum-strings", COLOURS),
    Case("enum-one", {"type": "string", "enum": ["only this"]}),
    Case("enum-prefixes", {"type": "string", "enum": ["a", "ab", "abc", ""]}),
    Case("enum-escapes", {"type": "string", "enum": ['quo"te', "back\\slash", "new\nline", "/"]}),
    Case("enum-unicode", {"type": "string", "enum": ["café", "月之暗面", "😀"]}),
    Case("enum-integers", {"type": "integer", "enum": [1, -20, 300]}),
    Case("enum-numbers", {"type": "number", "enum": [0.5, 2.25, -1.5]}),
    Case("type-list", {"type": ["integer", "null"], "minimum": 0, "maximum": 9}),
    Case("type-list-string", {"type": ["string", "boolean", "null"], "maxLength": 3}),
    Case("object-empty", closed({})),
    Case("object-flat", closed({"a": DIGIT, "b": FLAG, "c": WORD}, "a", "b", "c")),
    Case("object-optional", closed({"a": DIGIT, "b": FLAG, "c": WORD}, "b")),
    Case("object-all-optional", closed({"a": DIGIT, "b": NULL})),
    Case("object-keys", closed({"with space": DIGIT, "größe": DIGIT, "a.b-c_d": FLAG}, "größe")),
    Case("object-nested", closed({"a": closed({"b": closed({"c": DIGIT}, "c")}, "b")}, "a")),
    Case("object-annotated", closed({"a": {**DIGIT, "title": "A", "description": "a digit", "default": 1}}, "a",
                                    title="Annotated", description="Words without a rule.")),
    Case("array-digits", rows(DIGIT, 0, 4)),
    Case("array-exact", rows(FLAG, 3, 3)),
    Case("array-empty", rows(DIGIT, 0, 0)),
    Case("array-strings", rows({"type": "string", "maxLength": 3}, 1, 3)),
    Case("array-enum", rows(COLOURS, 1, 2)),
    Case("array-nested", rows(rows(FLAG, 0, 2), 1, 2)),
    Case("array-objects", rows(POINT, 1, 2)),
    Case("any-of-types", one_of(DIGIT, COLOURS, NULL)),
    Case("any-of-objects", one_of(CIRCLE, SQUARE)),
    Case("any-of-nested", one_of(one_of(FLAG, NULL), rows(DIGIT, 1, 1))),
    Case("ref", closed({"from": ref("point"), "to": ref("point")}, "from", "to", **{"$defs": {"point": POINT}})),
    Case("ref-chain", {**ref("a"), "$defs": {"a": closed({"b": ref("b")}, "b"), "b": rows(ref("c"), 1, 1), "c": FLAG}}),
    Case("ref-any-of", {**one_of(ref("circle"), ref("square")), "$defs": {"circle": CIRCLE, "square": SQUARE}}),
    Case("recursive-root", closed({"n": DIGIT, "next": one_of(NULL, {"$ref": "#"})}, "n", "next"), True),
    Case("recursive-defs", closed({"tree": ref("node")}, "tree", **{"$defs": {
        "node": closed({"leaf": LEAF, "left": one_of(ref("node"), NULL)}, "leaf", "left")}}), True),
    Case("additional-schema", {"type": "object", "properties": {"a": DIGIT}, "required": ["a"],
                               "additionalProperties": DIGIT}, True),
    Case("number-free", {"type": "number"}, True),
)  # fmt: skip

# What a friendly server takes beyond the subset, and a strict one refuses.
WIDER = (
    Case("const", {"const": "just this"}),
    Case("pattern", {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]$"}),
    Case("exclusive-bounds", {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 5}),
    Case("enum-mixed", {"enum": ["a", 1, None, True]}),
    Case("one-of", {"oneOf": [DIGIT, COLOURS]}),
    Case("format-date", {"type": "string", "format": "date"}),
)

# Short ones, for what is asked in every mode.
SAMPLE = ("object-flat", "enum-unicode", "array-objects", "any-of-objects", "ref")


def is_strict_for_openai(schema: Any) -> bool:
    """Whether every object requires all it has, as OpenAI wants of strict schemas."""
    if isinstance(schema, list):
        return all(map(is_strict_for_openai, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object":
        wanted = set(schema.get("properties", {}))
        if set(schema.get("required", [])) != wanted or schema.get("additionalProperties", True):
            return False
    return all(map(is_strict_for_openai, schema.values()))
