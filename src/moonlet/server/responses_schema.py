"""The body and the answer of the Responses API, as JSON schema for /openapi.json."""

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
    request_schema,
    whole,
)

RESPONSES_REQUEST = request_schema(
    {"model": TEXT, "input": either(TEXT, listed(ANY_OBJECT, 1))},
    {
        "instructions": TEXT,
        "previous_response_id": TEXT,
        "store": BOOLEAN,
        "stream": BOOLEAN,
        "max_output_tokens": LIMIT,
        "temperature": number(0, 2),
        "top_p": TOP_P,
        "top_logprobs": whole(0, 20),
        "tools": listed(ANY_OBJECT, 0, 128),
        "tool_choice": either(one_of("auto", "none", "required"), ANY_OBJECT),
        "parallel_tool_calls": BOOLEAN,
        "reasoning": ANY_OBJECT,
        "text": ANY_OBJECT,
        "include": listed(TEXT),
    },
)
RESPONSES_ANSWER = obj(
    ("id", "object", "created_at", "status", "model", "output"),
    id=TEXT,
    object=one_of("response"),
    created_at={"type": "integer"},
    status=one_of("completed", "incomplete"),
    model=TEXT,
    output=listed(obj(("type", "id"), type=TEXT, id=TEXT)),
    usage=obj(
        ("input_tokens", "output_tokens", "total_tokens"),
        input_tokens=COUNT,
        output_tokens=COUNT,
        total_tokens=COUNT,
    ),
)
RESPONSE_DELETED = obj(("id", "object"), id=TEXT, object=one_of("response"), deleted=BOOLEAN)
INPUT_TOKENS = obj(("input_tokens",), input_tokens=COUNT)
