"""`response_format`: the schema that the visible answer has to satisfy."""

from typing import Any

from moonlet.chat.messages import Message
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, choice, kind_of, obj, text
from moonlet.server.profiles import Profile
from moonlet.server.schemas import check_schema, is_mfjs

ANY_OBJECT: dict[str, Any] = {"type": "object"}


def parse_format(
    body: dict[str, Any], messages: list[Message], profile: Profile
) -> dict[str, Any] | None:
    """The schema, or None for free text. Raises ApiError or PromptError.

    A schema that is not strict is enforced all the same where that is certain to work; where it is not,
    the answer is any object.
    """
    value = obj(body, "response_format")
    if not value:
        return None
    if value.get("type") is None:
        raise ApiError("response_format.type is missing", "response_format.type")
    kinds = ("text", "json_object", "json_schema")
    kind = choice(value, "type", kinds, within="response_format.")
    if kind == "text":
        return None
    if messages[-1].partial:
        raise ApiError(
            f"response_format {kind} cannot be combined with partial mode: prefill '{{' without it, "
            "or leave the last message out",
            "response_format",
        )
    if kind == "json_object":
        if profile.openai_rules and not any("json" in message.text.lower() for message in messages):
            raise ApiError(
                "'messages' must contain the word 'json' in some form, to use 'response_format' "
                "of type 'json_object'.",
                "messages",
            )
        return ANY_OBJECT
    return _schema(value, profile)


def _schema(value: dict[str, Any], profile: Profile) -> dict[str, Any]:
    within = "response_format.json_schema"
    spec = value.get("json_schema")
    if not isinstance(spec, dict):
        found = "is missing" if spec is None else f"must be an object, not {kind_of(spec)}"
        raise ApiError(f"{within} {found}", within)
    if not text(spec, "name", within=f"{within}.", required=True):
        raise ApiError(f"{within}.name must not be empty", f"{within}.name")
    text(spec, "description", within=f"{within}.")
    schema = spec.get("schema")
    if not isinstance(schema, dict):
        found = "is missing" if schema is None else f"must be an object, not {kind_of(schema)}"
        raise ApiError(f"{within}.schema {found}", f"{within}.schema")
    strict = boolean(spec, "strict", within=f"{within}.")
    if profile.strict_schemas if strict is None else strict:
        check_schema(schema, f"{within}.schema", profile)
        return schema
    return schema if is_mfjs(schema) else ANY_OBJECT
