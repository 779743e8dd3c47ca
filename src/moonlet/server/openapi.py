"""`GET /openapi.json`: what the routes take and answer, said once beside each route.

    @app.post("/v1/things", **operation("What it does", THING, THING_REQUEST, streams=True))

Schemas are plain JSON schema. They are true in this sense: whatever a route answers has the shape that
stands here, and what they do not allow is refused. They allow more than is taken: which members go
together is for the error to say.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from moonlet import __version__

Schema = dict[str, Any]


def obj(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object that may have other members too."""
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def either(*kinds: Schema) -> Schema:
    return {"anyOf": list(kinds)}


def optional(schema: Schema) -> Schema:
    """That, or null, which counts as absent."""
    return either(schema, {"type": "null"})


def request_schema(required: dict[str, Schema], optionals: dict[str, Schema]) -> Schema:
    """A body with these members; the optional ones may also be null."""
    free = {name: optional(schema) for name, schema in optionals.items()}
    return obj(tuple(required), **required, **free)


def listed(items: Schema, low: int = 0, high: int | None = None) -> Schema:
    schema: Schema = {"type": "array", "items": items}
    return schema | ({"minItems": low} if low else {}) | ({"maxItems": high} if high else {})


def number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}
COUNT: Schema = {"type": "integer", "minimum": 0}
LIMIT: Schema = {"type": "integer", "minimum": 1}
TOP_P: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}

ERROR = obj(
    ("error",),
    error=obj(
        ("message", "type"), message=TEXT, type=TEXT, param=optional(TEXT), code=optional(TEXT)
    ),
    request_id=TEXT,
)
EVENT = obj(("data",), data=TEXT, event=TEXT)  # one of a stream
HEALTH = obj(("status",), status=TEXT)
MODEL = obj(
    ("id", "object", "created", "owned_by"),
    id=TEXT,
    object=one_of("model"),
    created={"type": "integer"},
    owned_by=TEXT,
    context_length=COUNT,
    supports_image_in=BOOLEAN,
    supports_video_in=BOOLEAN,
    supports_reasoning=BOOLEAN,
)
MODELS = obj(("object", "data"), object=one_of("list"), data=listed(MODEL))


def operation(
    summary: str,
    answer: Schema | tuple[str, ...],
    body: Schema | None = None,
    *,
    streams: bool = False,
    error: Schema = ERROR,
    kind: str = "application/json",
) -> dict[str, Any]:
    """What a route decorator is given. `answer`: JSON, or the media types of bytes. streams: or server-sent events.

    kind: the media type of the body.
    """
    content: dict[str, Any] = (
        {media_type: {"schema": TEXT} for media_type in answer}
        if isinstance(answer, tuple)
        else {"application/json": {"schema": answer}}
    )
    if streams:
        content["text/event-stream"] = {"schema": EVENT}
    told = {"content": {"application/json": {"schema": error}}}
    extra: dict[str, Any] = {
        "responses": {"200": {"description": "The answer", "content": content}}
    }
    if body is not None:
        extra["requestBody"] = {"required": True, "content": {kind: {"schema": body}}}
    return {
        "summary": summary,
        "openapi_extra": extra,
        "responses": {
            "4XX": {"description": "A request that cannot be served", **told},
            "5XX": {"description": "The server's own failure", **told},
        },
    }


def describe(app: FastAPI) -> None:
    """Makes /openapi.json of the routes that `app` has when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title="moonlet",
                version=__version__,
                summary="A Kimi-K2.5-class model behind the API of OpenAI and Kimi",
                routes=app.routes,
            )
            schemes = {"key": {"type": "http", "scheme": "bearer"}}
            made.setdefault("components", {})["securitySchemes"] = schemes
            made["security"] = [{}, {"key": []}]
            for path in made["paths"].values():
                for spec in path.values():
                    _keep_only_told(spec["responses"]["200"])
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # ty: ignore


def _keep_only_told(response: dict[str, Any]) -> None:
    """FastAPI adds an answer of any JSON to every route."""
    if response["content"].get("application/json") == {"schema": {}}:
        del response["content"]["application/json"]
