"""JSON schemas of clients, made ready for the grammar library.

What merely describes is left out: titles, defaults, `x-` extensions, words of no JSON Schema vocabulary,
formats that the library does not know (JSON Schema calls all of these annotations). What restrains a
value but cannot be held is refused by name, and so is what would take the library too long, before it sees it.
"""

import json
import math
from typing import Any
from urllib.parse import unquote

from moonlet.errors import PromptError

MAX_BYTES = 256 * 1024  # MFJS allows 120,000
MAX_DEPTH = 60  # schemas within schemas; MFJS allows 30
MAX_ITEMS = 10_000  # minItems, maxItems: the grammar has a place for each
MAX_LENGTH = 100_000  # minLength: nobody waits for longer strings
_MAX_ROUNDS = 100

FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
_VALUES = frozenset(
    "type const enum required minItems maxItems minProperties maxProperties minLength maxLength pattern "
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()
)
_REFUSED = frozenset(
    "not if then else uniqueItems contains minContains maxContains propertyNames dependencies dependentRequired "
    "dependentSchemas unevaluatedItems unevaluatedProperties additionalItems $dynamicRef $recursiveRef".split()
)
_LIMITS = {"minItems": MAX_ITEMS, "maxItems": MAX_ITEMS, "minLength": MAX_LENGTH}
_INWARD = {
    "minimum": math.inf,
    "exclusiveMinimum": math.inf,
    "maximum": -math.inf,
    "exclusiveMaximum": -math.inf,
}


def prepare(schema: Any, param: str) -> str:
    """`schema` as JSON text with nothing in it but what the grammar must hold.

    Raises PromptError, for the field `param` of the request, when it is no schema, too large or too deep,
    refers to what is not there, can only be satisfied by something endless, or has an unsupported keyword.
    """
    return _Reader(param).read(schema)


class _Reader:
    """Reads one schema. `found`: all schemas in it by JSON pointer; `refs`: the pointers that it uses."""

    def __init__(self, param: str) -> None:
        self.param = param
        self.found: dict[str, Any] = {}
        self.refs: set[str] = set()

    def read(self, schema: Any) -> str:
        clean = self.schema(schema, "", 0)
        for ref in sorted(self.refs - self.found.keys()):
            raise self.error("", f"$ref {ref!r:.80} leads to no schema in this document")
        if not self.can_end():
            raise self.error("", "only something endless could satisfy its recursion")
        try:
            text = json.dumps(clean, separators=(",", ":"), allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise self.error("", f"it is not JSON ({error})") from error
        if len(text) > MAX_BYTES:
            raise self.error("", f"it has {len(text)} bytes, at most {MAX_BYTES} are supported")
        return text

    def error(self, at: str, what: str) -> PromptError:
        where = f" at #{at[-80:]}" if at else ""
        return PromptError(f"{self.param}: in the schema{where}, {what}.", self.param)

    def schema(self, value: Any, at: str, depth: int) -> Any:
        if not isinstance(value, dict | bool):
            raise self.error(at, f"a schema must be an object, not {type(value).__name__}")
        if depth > MAX_DEPTH:
            raise self.error(at, f"schemas nest deeper than the {MAX_DEPTH} levels supported")
        if isinstance(value, bool):
            self.found[at] = value
            return value
        self.found[at] = clean = {}
        for key, part in value.items():
            kept = self.keyword(key, part, at, depth + 1)
            if kept is not None:
                clean[key] = kept
        return clean

    def keyword(self, key: str, value: Any, at: str, depth: int) -> Any:
        """What the library has to know of a keyword, None for nothing."""
        if key in _REFUSED and value is not False:
            raise self.error(at, f"the keyword {key!r} is not supported")
        within = f"{at}/{key}"
        match key:
            case "items" | "additionalProperties":
                return self.schema(value, within, depth)
            case "anyOf" | "oneOf" | "allOf" | "prefixItems":
                self.expect(isinstance(value, list), within, "a list", value)
                return [self.schema(part, f"{within}/{i}", depth) for i, part in enumerate(value)]
            case "properties" | "patternProperties" | "$defs" | "definitions":
                self.expect(isinstance(value, dict), within, "an object", value)
                return {
                    name: self.schema(part, f"{within}/{_escaped(name)}", depth)
                    for name, part in value.items()
                }
            case "$ref":
                self.expect(isinstance(value, str), within, "a text", value)
                self.refs.add(_target(value))
                return value
            case "format":
                return value if isinstance(value, str) and value in FORMATS else None
        if key in _LIMITS and isinstance(value, int | float) and value > _LIMITS[key]:
            raise self.error(at, f"{key} is {value}, at most {_LIMITS[key]} is supported")
        if key in _INWARD and isinstance(value, int):
            return _rounded(value, _INWARD[key])
        return value if key in _VALUES else None

    def expect(self, holds: bool, at: str, wanted: str, value: Any) -> None:
        if not holds:
            raise self.error(at, f"{wanted} is expected, not {type(value).__name__}")

    def can_end(self) -> bool:
        """Whether some finite value can satisfy the schema, as far as references go.

        The least fixed point: what ends without references, what ends given those, and so on. Forth and back,
        so that chains of references take few rounds whichever way they are written down.
        """
        ending: set[str] = set()
        order = sorted(self.refs)
        for _ in range(_MAX_ROUNDS):
            if _ends(self.found[""], ending):
                return True
            order.reverse()
            news = False
            for ref in order:
                if ref not in ending and _ends(self.found[ref], ending):
                    ending.add(ref)
                    news = True
            if not news:
                return False
        return False


def _ends(schema: Any, ending: set[str]) -> bool:
    """Whether a finite value is possible when those references have one. In doubt it is."""
    if isinstance(schema, bool) or "const" in schema or "enum" in schema:
        return True
    if "$ref" in schema and _target(schema["$ref"]) not in ending:
        return False
    for key, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        if key in schema and not enough(_ends(part, ending) for part in schema[key]):
            return False
    kinds = schema.get("type")
    if kinds == "object" or kinds == ["object"]:
        return _object_ends(schema, ending)
    if kinds == "array" or kinds == ["array"]:
        return _array_ends(schema, ending)
    return True


def _object_ends(schema: dict[str, Any], ending: set[str]) -> bool:
    required = schema.get("required")
    if not isinstance(required, list) or "patternProperties" in schema:
        return True
    properties, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(
        _ends(properties.get(name, other), ending) for name in required if isinstance(name, str)
    )


def _array_ends(schema: dict[str, Any], ending: set[str]) -> bool:
    least = schema.get("minItems", 0)
    first = schema.get("prefixItems", [])
    needed = first[: int(least)] if isinstance(least, int | float) else []
    if len(needed) < least:
        needed = [*needed, schema.get("items", True)]
    return all(_ends(item, ending) for item in needed)


def _target(ref: str) -> str:
    """The JSON pointer of a reference inside the document; others are kept, and found nowhere."""
    return unquote(ref[1:]) if ref.startswith("#") else ref


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _rounded(bound: int, towards: float) -> int | float:
    """`bound` as the library will read it, in float64, but never looser."""
    try:
        near = float(bound)
    except OverflowError:
        return bound  # the library refuses it
    if near == bound:
        return bound
    inward = near > bound if towards > 0 else near < bound
    return near if inward else math.nextafter(near, towards)
