"""JSON schemas of clients, made ready for the grammar library.

What merely describes is left out: titles, defaults, `x-` extensions, words of no JSON Schema vocabulary,
formats that the library does not know (JSON Schema calls all of these annotations). What restrains a
value but cannot be held is refused by name, and so is what would take the library too long, before it sees it.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from moonlet.errors import PromptError

MAX_BYTES = 128 * 1024  # without what only describes; MFJS allows 120,000 with it
MAX_SCHEMAS = 4000  # MFJS allows 3,000 properties, which compile in a second
MAX_DEPTH = 60  # schemas within schemas; MFJS allows 30
MAX_LEAST = 100_000  # minItems, minLength: nobody waits for more
MAX_MULTIPLE = 10_000  # the grammar has a state for each remainder
_UNREACHABLE = 10**9  # a maximum above what any context holds
# The library reads a bound as float64 and, for integers, turns it into an int64; the least of these crashes it.
_SPARSE = 2**53  # from here on float64 has not every whole number
_LARGEST = 2**63 - 1024  # the largest float64 below 2^63
_MAX_ROUNDS = 100

FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)
_VALUES = frozenset(
    [
        "type",
        "const",
        "enum",
        "required",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minLength",
        "maxLength",
        "pattern",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ]
)
_REFUSED = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedItems",
        "unevaluatedProperties",
        "additionalItems",
        "$dynamicRef",
        "$recursiveRef",
    ]
)
_NOTHING = object()
# In JSON they are written as \\u escapes, which the grammar has not (see grammar.py): in values, in patterns.
_CONTROLS = re.compile(r"\\u00(?:[01]|7f)")
_CONTROLS_IN_PATTERN = re.compile(
    r"\\(?:x[01]|x7[fF]|x\{|u00[01]|u007[fF]|u\{|[av])|[\x00-\x1f\x7f]"
)
_LOWER = ("minimum", "exclusiveMinimum")
_BOUNDS = (*_LOWER, "maximum", "exclusiveMaximum")


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
        self.multiple = 1

    def read(self, schema: Any) -> str:
        clean = self.schema({} if schema is True else schema, "", 0)
        if clean is False:
            raise self.error("", "nothing is allowed")
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
        if _CONTROLS.search(text):
            raise self.error(
                "", "control characters other than \\b \\f \\n \\r \\t are not supported"
            )
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
        if len(self.found) >= MAX_SCHEMAS:
            raise self.error(at, f"there are more than the {MAX_SCHEMAS} schemas supported")
        self.found[at] = clean = {}
        for key, part in value.items():
            kept = self.keyword(key, part, at, depth + 1)
            if kept is not _NOTHING:
                clean[key] = kept
        least, required = clean.get("minProperties", 0), clean.get("required", [])
        if isinstance(required, list) and isinstance(least, int) and least > len(required) + 1:
            # Further keys of the grammar may repeat.
            raise self.error(
                at, "minProperties asks for more than one property that is not required"
            )
        return clean

    def keyword(self, key: str, value: Any, at: str, depth: int) -> Any:
        """What the library has to know of a keyword."""
        if key in _REFUSED and value is not False:
            raise self.error(at, f"the keyword {key!r} is not supported")
        within = f"{at}/{key}"
        match key:
            case "items" | "additionalProperties":
                return self.schema(value, within, depth)
            case "anyOf" | "oneOf" | "allOf" | "prefixItems":
                parts = self.typed(value, list, within)
                return [self.schema(part, f"{within}/{i}", depth) for i, part in enumerate(parts)]
            case "properties" | "patternProperties" | "$defs" | "definitions":
                parts = self.typed(value, dict, within)
                if key == "patternProperties":
                    for pattern in parts:
                        self.pattern(pattern, within)
                return {
                    name: self.schema(part, f"{within}/{_escaped(name)}", depth)
                    for name, part in parts.items()
                }
            case "$ref":
                self.refs.add(_target(self.typed(value, str, within)))
                return value
            case "const" | "enum":
                for number in _integers(value):
                    if abs(number) > 1e300 or float(number) != number:
                        raise self.error(at, f"a number in {key} is not exact in float64")
                return value
            case "pattern":
                return self.pattern(self.typed(value, str, within), within)
            case "format":
                return value if isinstance(value, str) and value in FORMATS else _NOTHING
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self.number(key, value, at)
        return value if key in _VALUES else _NOTHING

    def pattern(self, value: str, at: str) -> str:
        if _CONTROLS_IN_PATTERN.search(value):
            raise self.error(at, "control characters in patterns are not supported")
        return value

    def number(self, key: str, value: float, at: str) -> Any:
        if abs(value) > 1e300:
            raise self.error(at, f"the number of {key} is too large")
        match key:
            case "minItems" | "minLength" | "minProperties" if value > MAX_LEAST:
                raise self.error(at, f"{key} is {value:.3g}, at most {MAX_LEAST} is supported")
            case "maxItems" | "maxLength" | "maxProperties":
                return min(value, _UNREACHABLE)
            case "multipleOf":
                self.multiple *= _coefficient(value)
                if self.multiple > MAX_MULTIPLE:
                    raise self.error(at, "the digits of all multipleOf together are too many")
        if key in _BOUNDS and abs(value) >= _SPARSE:
            return self.large_bound(key, value, at)
        return value if key in _VALUES else _NOTHING

    def large_bound(self, key: str, value: float, at: str) -> int:
        """A bound that allows what is near zero becomes the next one that is held, never a looser one; so
        does the 2^63 - 1 of every int64. One that asks for more than itself is held exactly or refused."""
        exclusive = key.startswith("exclusive")
        if (value > 0) == (key in _LOWER):
            if exclusive or abs(value) > _LARGEST or float(value) != value:
                raise self.error(at, f"{key} is {value!s:.40}, which cannot be held exactly")
            return int(value)
        size = min(abs(value), _LARGEST)
        near = float(size)
        if near > size or (exclusive and near > _SPARSE):  # where one less is the same float64
            near = math.nextafter(near, 0)
        return int(math.copysign(near, value))

    def typed(self, value: Any, wanted: type, at: str) -> Any:
        if not isinstance(value, wanted):
            raise self.error(at, f"{wanted.__name__} is expected, not {type(value).__name__}")
        return value

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


def _integers(value: Any) -> Iterator[int]:
    """All in a JSON value, however deep."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as members:
                waiting += members.values()
            case list() as items:
                waiting += items
            case int() as number:
                yield number


def _coefficient(number: float) -> int:
    """The digits of a number without the zeros around them: 25 for 0.025 and for 2500."""
    digits = f"{abs(number):e}".partition("e")[0].replace(".", "").strip("0")
    return int(digits or "1")
