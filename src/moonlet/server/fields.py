"""Typed reading of one JSON object: each function returns the member, or None when absent or null.

Every refusal is an ApiError (400) that names the member, what it holds and what it should hold.
`within` is the path of the object inside the body, such as "thinking.".
"""

from typing import Any, TypeVar

from moonlet.server.errors import ApiError

T = TypeVar("T")


def kind_of(value: Any) -> str:
    """JSON's word for the type of `value`, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def text(
    values: dict[str, Any], name: str, *, within: str = "", required: bool = False
) -> str | None:
    if required and values.get(name) is None:
        raise ApiError(f"{within}{name} is missing", within + name)
    return _typed(values, name, str, "a string", within)


def boolean(values: dict[str, Any], name: str, *, within: str = "") -> bool | None:
    return _typed(values, name, bool, "true or false", within)


def obj(values: dict[str, Any], name: str, *, within: str = "") -> dict[str, Any]:
    """The object of that name; an absent one is empty."""
    return _typed(values, name, dict, "an object", within) or {}


def choice(
    values: dict[str, Any], name: str, allowed: tuple[str, ...], *, within: str = ""
) -> str | None:
    value = text(values, name, within=within)
    if value is not None and value not in allowed:
        raise ApiError(
            f"{within}{name} is {value[:40]!r}, but it must be {' or '.join(allowed)}",
            within + name,
        )
    return value


def number(
    values: dict[str, Any], name: str, low: float, high: float, *, within: str = ""
) -> float | None:
    """A number within [low, high]."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(f"{within}{name} must be a number, not {kind_of(value)}", within + name)
    return float(_within(within + name, value, low, high))


def integer(
    values: dict[str, Any], name: str, low: int, high: int, *, within: str = ""
) -> int | None:
    """A whole number within [low, high]."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        found = repr(value) if isinstance(value, float) else kind_of(value)
        raise ApiError(f"{within}{name} must be a whole number, not {found}", within + name)
    return _within(within + name, value, low, high)


def _within(name: str, value: Any, low: float, high: float) -> Any:
    if not low <= value <= high:
        shown = "too long a number" if abs(value) > 1e30 else value
        raise ApiError(f"{name} is {shown}, but it must be within {low} and {high}", name)
    return value


def _typed(values: dict[str, Any], name: str, kind: type[T], wanted: str, within: str) -> T | None:
    value = values.get(name)
    if value is None or type(value) is kind:
        return value
    raise ApiError(f"{within}{name} must be {wanted}, not {kind_of(value)}", within + name)
