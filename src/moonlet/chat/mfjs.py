"""MFJS, the subset of JSON Schema that the Kimi API takes for strict tools and answers.

    type           one of the seven names, or a list of them; not beside anyOf or $ref
    object         properties, required (each in properties), additionalProperties (a boolean or a schema)
    array          items (one schema), minItems, maxItems
    string         minLength, maxLength
    number         minimum, maximum
    enum           strings, integers or numbers, not mixed
    anyOf          schemas; beside it only title and description
    $ref           "#" or "#/$defs/NAME", and $defs at the root; a schema may contain itself
    {}             anything, as the root or as additionalProperties
    title, description, default     carry no rule

All else is refused, with the place where it stands.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moonlet.errors import PromptError

TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_ANNOTATIONS = {"title", "description", "default"}
_ROOT_ONLY = {"$defs", "$id"}
_RULES = {
    "type", "enum", "anyOf", "$ref", "properties", "required", "additionalProperties", "items",
    "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum",
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """How large a schema may be, over all of it; those of the published validator's configuration."""

    properties: int = 3000
    depth: int = 30
    text_bytes: int = 120_000
    alternatives: int = 500
    enum_values: int = 1000
    enum_characters: int = 75_000


LIMITS = Limits()


def check_mfjs(schema: dict[str, Any], where: str, limits: Limits = LIMITS) -> None:
    """Raises PromptError, with `where` as its param, for a schema outside the subset."""
    _Check(schema, where, limits).root()


class _Check:
    """One walk over one schema, with what it counts on the way."""

    def __init__(self, schema: dict[str, Any], where: str, limits: Limits) -> None:
        self.schema, self.where, self.limits = schema, where, limits
        self.counts: Counter[str] = Counter()

    def root(self) -> None:
        defs = self.schema.get("$defs", {})
        if not isinstance(defs, dict):
            raise self.refusal("", "$defs must be an object")
        if not isinstance(self.schema.get("$id", ""), str):
            raise self.refusal("", "$id must be a string")
        size = len(
            json.dumps(self.schema, ensure_ascii=False, separators=(",", ":")).encode(
                "utf-8", "replace"
            )
        )
        if size > self.limits.text_bytes:
            raise self.refusal("", f"it has {size} bytes, {self.limits.text_bytes} are allowed")
        self.node(self.schema, "", 1, is_root=True)
        for name, value in defs.items():
            self.node(value, f".$defs.{name[:40]}", 1)
        self.check_loops(defs)

    def node(
        self, node: Any, path: str, depth: int, is_root: bool = False, anything: bool = False
    ) -> None:
        if not isinstance(node, dict):
            raise self.refusal(path, "a schema must be an object")
        if depth > self.limits.depth:
            raise self.refusal(path, f"it is nested deeper than {self.limits.depth} levels")
        allowed = _RULES | _ANNOTATIONS | (_ROOT_ONLY if is_root else set())
        if unknown := sorted(node.keys() - allowed):
            raise self.refusal(path, f"{unknown[0][:40]!r} is not supported here")
        for name in ("title", "description"):
            if not isinstance(node.get(name, ""), str):
                raise self.refusal(path, f"{name} must be a string")
        forms = [name for name in ("anyOf", "$ref", "type") if name in node]
        if len(forms) > 1:
            raise self.refusal(path, f"{forms[1]} must not stand beside {forms[0]}")
        if not forms:
            if (is_root or anything) and not node.keys() & _RULES:
                return
            raise self.refusal(path, "it has no type")
        {"anyOf": self.alternatives, "$ref": self.reference, "type": self.typed}[forms[0]](
            node, path, depth
        )

    def alternatives(self, node: dict[str, Any], path: str, depth: int) -> None:
        self.only_annotated(node, "anyOf", path)
        options = node["anyOf"]
        if not isinstance(options, list) or not options:
            raise self.refusal(path, "anyOf must be a list of schemas")
        self.count("alternatives", len(options), path)
        for index, option in enumerate(options):
            self.node(option, f"{path}.anyOf[{index}]", depth + 1)

    def reference(self, node: dict[str, Any], path: str, depth: int) -> None:
        self.only_annotated(node, "$ref", path)
        target = node["$ref"]
        if target != "#" and _target(target, self.schema.get("$defs", {})) is None:
            shown = repr(target[:40]) if isinstance(target, str) else "no string"
            raise self.refusal(
                path, f"$ref is {shown}, but it must be '#' or '#/$defs/NAME' of $defs"
            )

    def typed(self, node: dict[str, Any], path: str, depth: int) -> None:
        types = node["type"] if isinstance(node["type"], list) else [node["type"]]
        known = all(isinstance(one, str) and one in TYPES for one in types)
        if not known or not types or len(set(types)) < len(types):
            raise self.refusal(path, f"type must be one of {', '.join(TYPES)}, or a list of them")
        if "enum" in node:
            self.enum(node["enum"], types, path)
        self.range(node, "minLength", "maxLength", path, whole=True)
        self.range(node, "minItems", "maxItems", path, whole=True)
        self.range(node, "minimum", "maximum", path, whole=False)
        properties = node.get("properties", {})
        if not isinstance(properties, dict):
            raise self.refusal(path, "properties must be an object")
        self.count("properties", len(properties), path)
        self.required(node.get("required", []), properties, path)
        for name, value in properties.items():
            self.node(value, f"{path}.{name[:40]}", depth + 1)
        rest = node.get("additionalProperties", True)
        if not isinstance(rest, bool):
            self.node(rest, f"{path}.additionalProperties", depth + 1, anything=True)
        if "items" in node:
            self.node(node["items"], f"{path}.items", depth + 1)

    def required(self, required: Any, properties: dict[str, Any], path: str) -> None:
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self.refusal(path, "required must be a list of names")
        if absent := [name for name in required if name not in properties]:
            raise self.refusal(path, f"required has {absent[0][:40]!r}, which properties have not")
        if len(set(required)) < len(required):
            raise self.refusal(path, "required names a property twice")

    def enum(self, values: Any, types: list[str], path: str) -> None:
        if not isinstance(values, list) or not values:
            raise self.refusal(path, "enum must be a list of values")
        self.count("enum_values", len(values), path)
        kinds = {_enum_kind(value) for value in values}
        if kinds == {"integer", "number"}:
            kinds = {"number"}
        if len(kinds) > 1 or None in kinds:
            raise self.refusal(
                path, "enum must hold strings, integers or numbers, and only of one kind"
            )
        kind = kinds.pop()
        if kind not in types and not (kind == "integer" and "number" in types):
            raise self.refusal(path, f"enum holds {kind}s, but type is {' or '.join(types)}")
        size = sum(len(value) for value in values if isinstance(value, str))
        self.count("enum_characters", size, path)

    def range(self, node: dict[str, Any], low: str, high: str, path: str, whole: bool) -> None:
        for name in (low, high):
            value = node.get(name, 0)
            wanted = int if whole else int | float
            if isinstance(value, bool) or not isinstance(value, wanted) or (whole and value < 0):
                raise self.refusal(path, f"{name} must be a {'whole ' if whole else ''}number")
        if low in node and high in node and node[low] > node[high]:
            raise self.refusal(path, f"{low} is above {high}")

    def only_annotated(self, node: dict[str, Any], form: str, path: str) -> None:
        if beside := sorted(node.keys() - {form, "title", "description"} - _ROOT_ONLY):
            raise self.refusal(path, f"{beside[0]} must not stand beside {form}")

    def check_loops(self, defs: dict[str, Any]) -> None:
        """Refuses a schema that is itself before it is anything else, as A: {$ref: B}, B: {$ref: A}."""
        done: set[int] = set()
        for start in (self.schema, *defs.values()):
            path = [(start, _same_place(start, self.schema))]
            above = {id(start)}
            while path:
                node, targets = path[-1]
                target = next(targets, None)
                if target is None:
                    path.pop()
                    above.discard(id(node))
                    done.add(id(node))
                elif id(target) in above:
                    raise self.refusal("", "a $ref leads back to itself with nothing in between")
                elif id(target) not in done:
                    above.add(id(target))
                    path.append((target, _same_place(target, self.schema)))

    def count(self, what: str, number: int, path: str) -> None:
        self.counts[what] += number
        most = getattr(self.limits, what)
        if self.counts[what] > most:
            raise self.refusal(path, f"it has more than {most} {what.replace('_', ' ')}")

    def refusal(self, path: str, detail: str) -> PromptError:
        place = f"{self.where}{path}"
        shown = place if len(place) <= 160 else f"...{place[-150:]}"
        return PromptError(f"Invalid schema at {shown}: {detail}.", self.where)


def _target(reference: Any, defs: Any) -> Any:
    """The schema that "#/$defs/NAME" names, or None."""
    if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
        return None
    name = reference.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")
    return defs.get(name)


def _same_place(node: Any, root: dict[str, Any]) -> Iterator[Any]:
    """The schemas that stand for `node` without a step into an object or a list."""
    if not isinstance(node, dict):
        return
    reference = node.get("$ref")
    if reference == "#":
        yield root
    elif (target := _target(reference, root.get("$defs", {}))) is not None:
        yield target
    yield from node.get("anyOf", ())


def _enum_kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    for kind, name in ((str, "string"), (int, "integer"), (float, "number")):
        if isinstance(value, kind):
            return name
    return None
