"""Which JSON schemas a profile takes where they are strict, that is, where the answer must satisfy them."""

from typing import Any

from moonlet.chat.mfjs import check_mfjs
from moonlet.errors import PromptError
from moonlet.server.profiles import Profile


def check_schema(schema: dict[str, Any], where: str, profile: Profile) -> None:
    """Raises PromptError for a schema that `profile` refuses. `where` is its place in the request."""
    if profile.schemas == "mfjs":
        check_mfjs(schema, where)
    elif profile.schemas == "openai":
        if schema.get("type") != "object":
            raise _refusal(where, "", "the root must be of type 'object'")
        _check_closed(schema, where, "")


def is_mfjs(schema: dict[str, Any]) -> bool:
    """Whether `schema` is inside the subset that every grammar engine knows."""
    try:
        check_mfjs(schema, "")
    except PromptError:
        return False
    return True


def _check_closed(node: Any, where: str, path: str) -> None:
    """OpenAI's rule for strict schemas: objects say exactly which members they have, all required."""
    if not isinstance(node, dict):
        return
    properties = node.get("properties", {})
    if node.get("type") == "object" or "properties" in node:
        if node.get("additionalProperties") is not False:
            raise _refusal(where, path, "'additionalProperties' must be supplied and be false")
        if not isinstance(properties, dict):
            raise _refusal(where, path, "'properties' must be an object")
        listed = node.get("required")
        required = (
            {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else ()
        )
        missing = [name for name in properties if name not in required]
        if missing:
            raise _refusal(
                where, path, f"'required' must hold every property, {missing[0][:40]!r} too"
            )
    for name in ("properties", "$defs", "definitions"):
        inner = node.get(name)
        for key, value in (inner if isinstance(inner, dict) else {}).items():
            _check_closed(value, where, f"{path}.{key[:40]}")
    alternatives = node.get("anyOf")
    for value in (node.get("items"), *(alternatives if isinstance(alternatives, list) else ())):
        _check_closed(value, where, path)


def _refusal(where: str, path: str, detail: str) -> PromptError:
    return PromptError(
        f"Invalid schema for {where}: in '{path[-120:] or 'root'}', {detail}.", where
    )
