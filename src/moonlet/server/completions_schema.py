"""The body and the answer of text completions, as JSON schema for /openapi.json."""

from moonlet.server.chat_schema import CHAT_REQUEST, USAGE
from moonlet.server.openapi import (
    ANY_OBJECT,
    BOOLEAN,
    COUNT,
    TEXT,
    Schema,
    either,
    listed,
    obj,
    one_of,
    optional,
    request_schema,
    whole,
)

IDS: Schema = listed(whole(0, 2**31 - 1))
_PROMPT = {"type": "string", "minLength": 1}
COMPLETION_REQUEST = request_schema(
    {"model": TEXT, "prompt": either(_PROMPT, listed(_PROMPT, 1), IDS, listed(IDS, 1))},
    {
        **{
            name: CHAT_REQUEST["properties"][name]
            for name in (
                "max_tokens",
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "seed",
                "n",
                "stop",
            )
        },
        "logprobs": whole(0, 20),
        "stream": BOOLEAN,
        "stream_options": ANY_OBJECT,
    },
)
COMPLETION_ANSWER = obj(
    ("id", "object", "created", "model", "choices", "usage"),
    id=TEXT,
    object=one_of("text_completion"),
    created={"type": "integer"},
    model=TEXT,
    choices=listed(
        obj(
            ("index", "text", "finish_reason"),
            index=COUNT,
            text=TEXT,
            logprobs=optional(ANY_OBJECT),
            finish_reason=one_of("stop", "length"),
        )
    ),
    usage=USAGE,
)
