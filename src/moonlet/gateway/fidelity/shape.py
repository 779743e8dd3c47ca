"""Typed reading of what an endpoint sent: the member, or None where it is absent or null.

Every other type is a Failed that names the place.
"""

from typing import Any, TypeVar

from moonlet.gateway.fidelity.client import shown
from moonlet.gateway.fidelity.errors import Failed

T = TypeVar("T")
_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    dict: "an object",
    list: "a list",
}


def member(parent: Any, name: str, kind: type[T], where: str = "the answer") -> T | None:
    """`parent[name]`. Raises Failed for another type, or when `parent` is no object."""
    if not isinstance(parent, dict):
        raise Failed(f"{where} is {shown(parent)}, not an object")
    value = parent.get(name)
    if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    raise Failed(f"{where}: {name} is {shown(value)}, not {_NAMES[kind]}")


def needed(parent: Any, name: str, kind: type[T], where: str = "the answer") -> T:
    """The same, where absence is wrong too."""
    value = member(parent, name, kind, where)
    if value is None:
        raise Failed(f"{where} has no {name}")
    return value


def objects(parent: Any, name: str, where: str = "the answer") -> list[dict[str, Any]]:
    """A list of objects, empty where it is absent. Raises Failed."""
    items = member(parent, name, list, where) or []
    for item in items:
        if not isinstance(item, dict):
            raise Failed(f"{where}: {name} holds {shown(item)}, not an object")
    return items
