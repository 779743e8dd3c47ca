"""Tool declarations as the TypeScript text that K2.5 was trained on.

The rules follow the encoder that ships beside the published tokenizer, oddities included: members
are sorted, constants keep Python's spelling (`True`, `None`), strings in enums are not escaped.
What it cannot express (oneOf, allOf, remote references) raises ValueError; the caller then falls
back to JSON for the whole list, as the original does.
"""

import json
from collections.abc import Iterable
from typing import Any

_SCALARS = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
}
_IN_TYPE_LIST = _SCALARS | {"object": "{}", "array": "Array<any>"}
_CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
_LOCAL = "#/$defs/"


def declare_tools(tools: Iterable[dict[str, Any]]) -> str:
    """The text of the `tool_declare` message; empty when no tool is a function.

    `tools` are OpenAI-shaped declarations with their keys sorted at every level (`sort_keys`).
    Raises ValueError for a schema that has no TypeScript form.
    """
    functions = [tool["function"] for tool in tools if tool.get("type") == "function"]
    if not functions:
        return ""
    body = "".join(_declaration(function) + "\n" for function in functions)
    return f"# Tools\n\n## functions\nnamespace functions {{\n{body}}}\n"


def sort_keys(value: Any) -> Any:
    """`value` with the keys of every dictionary sorted; lists keep their order."""
    if isinstance(value, dict):
        return {key: sort_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [sort_keys(item) for item in value]
    return value


def _declaration(function: dict[str, Any]) -> str:
    schema = function.get("parameters") or {}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise ValueError("The parameters of a function must be an object schema.")
    lines = []
    parameters = _object(schema, "")
    if _refers_to_itself(schema):
        lines.append(f"interface parameters {_object(schema, '', required_first=False)}")
        parameters = "parameters"
    for name, definition in _mapping(schema.get("$defs")).items():
        lines += _description(_mapping(definition), "")
        lines.append(f"interface {name} {_type(definition, '')}")
    lines += _description(function, "")
    lines.append(f"type {function['name']} = (_: {parameters}) => any;")
    return "\n".join(lines)


def _type(schema: Any, indent: str) -> str:
    """The type of a schema; its lines after the first are indented by `indent`."""
    match schema:
        case True:
            return "any"
        case False:
            return "null"
        case {"$ref": "#"}:
            return "parameters"
        case {"$ref": str(reference)} if reference.startswith(_LOCAL):
            return reference.removeprefix(_LOCAL)
        case {"anyOf": list(options)}:
            return " | ".join(_type(option, indent) for option in options)
        case {"enum": list(values)}:
            return " | ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in values)
        case {"type": list(names)}:
            return " | ".join(_IN_TYPE_LIST[name] for name in names if _known(name, schema))
        case {"type": "object"}:
            return _object(schema, indent)
        case {"type": "array"}:
            return _array(schema, indent)
        case {"type": str(name)} if name in _SCALARS:
            return _SCALARS[name]
        case dict() if not schema:
            return "any"
    raise ValueError(f"No TypeScript form for {str(schema)[:80]}.")


def _object(schema: dict[str, Any], indent: str, required_first: bool = True) -> str:
    properties, listed = _mapping(schema.get("properties")), schema.get("required") or []
    if not isinstance(listed, list):
        raise ValueError("required must be a list.")
    required = {name for name in listed if isinstance(name, str)}  # both may have 100,000
    names = sorted(properties, key=lambda name: (required_first and name not in required, name))
    inner = indent + "  "
    members = []
    for name in names:
        optional = "" if name in required else "?"
        lines = _comments(properties[name], inner)
        lines.append(f"{inner}{name}{optional}: {_type(properties[name], inner)}")
        members.append("\n".join(lines))
    if "additionalProperties" in schema:
        extra = schema["additionalProperties"]
        members.append(f"{inner}[k: string]: {'never' if extra is False else _type(extra, inner)}")
    return "{\n" + ",\n".join(members) + f"\n{indent}}}" if members else "{}"


def _array(schema: dict[str, Any], indent: str) -> str:
    if "items" not in schema:
        return "Array<any>"
    items, inner = schema["items"], indent + "  "
    if not (_description(items, inner) or _constraints(items)):
        return f"Array<{_type(items, indent)}>"
    lines = [*_comments(items, inner), inner + _type(items, inner)]
    return "Array<\n" + "\n".join(lines) + f"\n{indent}>"


def _comments(schema: Any, indent: str) -> list[str]:
    """The comment lines above a member or an item: description, constraints, default."""
    lines = _description(schema, indent)
    constraints = _constraints(schema)
    if constraints:
        lines.append(f"{indent}// {constraints}")
    default = schema.get("default") if isinstance(schema, dict) else None
    if default is not None:
        plain = isinstance(default, bool | int | float)
        text = str(default) if plain else json.dumps(default, ensure_ascii=False)
        lines.append(f"{indent}// Default: {text}")
    return lines


def _description(schema: Any, indent: str) -> list[str]:
    text = schema.get("description") if isinstance(schema, dict) else None
    if not text:
        return []
    if not isinstance(text, str):
        raise ValueError("A description must be a string.")
    return [f"{indent}// {line}" if line else "" for line in text.split("\n")]


def _constraints(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, dict) else None
    keys = _CONSTRAINTS.get(kind, ()) if isinstance(kind, str) else ()
    return ", ".join(f"{key}: {schema[key]}" for key in keys if key in schema)


def _refers_to_itself(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("$ref") == "#" or any(map(_refers_to_itself, schema.values()))
    return isinstance(schema, list) and any(map(_refers_to_itself, schema))


def _known(name: Any, schema: Any) -> bool:
    if not isinstance(name, str) or name not in _IN_TYPE_LIST:
        raise ValueError(f"No TypeScript form for {str(schema)[:80]}.")
    return True


def _mapping(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"Expected an object in the schema, not {str(value)[:80]}.")
    return value
