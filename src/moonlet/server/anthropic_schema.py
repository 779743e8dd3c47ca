"""The body and the answer of Anthropic's messages, as JSON schema for /openapi.json."""

from moonlet.server.openapi import (
    ANY_OBJECT,
    BOOLEAN,
    COUNT,
    LIMIT,
    TEXT,
    TOP_P,
    either,
    listed,
    number,
    obj,
    one_of,
    optional,
    request_schema,
    whole,
)

_TURN = obj(
    ("role", "content"),
    role=one_of("user", "assistant", "system"),
    content=either(TEXT, listed(ANY_OBJECT)),
)
COUNT_REQUEST = request_schema(
    {"model": TEXT, "messages": listed(_TURN, 1)},
    {
        "system": either(TEXT, listed(ANY_OBJECT)),
        "tools": listed(ANY_OBJECT, 0, 128),
        "tool_choice": ANY_OBJECT,
        "thinking": ANY_OBJECT,
    },
)
MESSAGES_REQUEST = obj(
    ("model", "messages", "max_tokens"),
    **COUNT_REQUEST["properties"],
    max_tokens=LIMIT,
    stream=optional(BOOLEAN),
    stop_sequences=optional(listed(TEXT)),
    temperature=optional(number(0, 2)),
    top_p=optional(TOP_P),
    top_k=optional(whole(-1, 2**31 - 1)),
)
MESSAGES_ANSWER = obj(
    ("id", "type", "role", "model", "content", "stop_reason", "usage"),
    id=TEXT,
    type=one_of("message"),
    role=one_of("assistant"),
    model=TEXT,
    content=listed(obj(("type",), type=one_of("text", "thinking", "tool_use"))),
    stop_reason=one_of("end_turn", "max_tokens", "stop_sequence", "tool_use"),
    stop_sequence=optional(TEXT),
    usage=obj(("input_tokens", "output_tokens"), input_tokens=COUNT, output_tokens=COUNT),
)
MESSAGES_ERROR = obj(
    ("type", "error"),
    type=one_of("error"),
    error=obj(("type", "message"), type=TEXT, message=TEXT),
    request_id=TEXT,
)
TOKENS = obj(("input_tokens",), input_tokens=COUNT)
