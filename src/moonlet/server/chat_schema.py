"""The body and the answer of chat completions, as JSON schema for /openapi.json."""

from moonlet.server.openapi import (
    ANY_OBJECT,
    BOOLEAN,
    COUNT,
    TEXT,
    Schema,
    either,
    listed,
    number,
    obj,
    one_of,
    optional,
    whole,
)
from moonlet.server.sampling import REPETITION_PENALTY
from moonlet.server.thinking import EFFORTS

_SAID: Schema = {"type": "string", "minLength": 1}
_URL = either(_SAID, obj(("url",), url=_SAID))
_TEXT_PART = obj(("type", "text"), type=one_of("text"), text=_SAID)
_REFUSAL_PART = obj(("type", "refusal"), type=one_of("refusal"), refusal=TEXT)
_PART = either(
    _TEXT_PART,
    obj(("type", "image_url"), type=one_of("image_url"), image_url=_URL),
    obj(("type", "video_url"), type=one_of("video_url"), video_url=_URL),
)
_CALL = obj(
    ("id", "function"),
    id=_SAID,
    type=one_of("function"),
    function=obj(
        ("name",),
        name=_SAID,
        arguments=either(TEXT, ANY_OBJECT, {"type": "null"}),
    ),
)
_NAME = optional(TEXT)
_MESSAGE = either(
    obj(
        ("role", "content"),
        role=one_of("system", "developer"),
        content=either(TEXT, listed(_TEXT_PART)),
        name=_NAME,
    ),
    obj(
        ("role", "content"),
        role=one_of("user"),
        content=either(_SAID, listed(_PART, 1)),
        name=_NAME,
    ),
    obj(
        ("role",),
        role=one_of("assistant"),
        content=either(TEXT, listed(either(_TEXT_PART, _REFUSAL_PART)), {"type": "null"}),
        reasoning_content=optional(TEXT),
        reasoning=optional(TEXT),
        tool_calls=optional(listed(_CALL)),
        partial=optional(BOOLEAN),
        name=_NAME,
    ),
    obj(
        ("role", "content", "tool_call_id"),
        role=one_of("tool"),
        content=either(TEXT, listed(_PART)),
        tool_call_id=_SAID,
        name=_NAME,
    ),
)
_FUNCTION = obj(
    ("name",),
    name={"type": "string", "minLength": 1, "maxLength": 64},
    description=optional(TEXT),
    parameters=optional(ANY_OBJECT),
    strict=optional(BOOLEAN),
)
_TOOL = obj(("type", "function"), type=one_of("function"), function=_FUNCTION)
_NAMED = obj(("type", "function"), type=one_of("function"), function=obj(("name",), name=TEXT))
_CHOICE = either(
    one_of("auto", "none", "required"),
    _NAMED,
    obj(
        ("type", "allowed_tools"),
        type=one_of("allowed_tools"),
        allowed_tools=obj(
            ("mode", "tools"), mode=one_of("auto", "required"), tools=listed(_NAMED, 1)
        ),
    ),
)
_FORMAT = either(
    obj(("type",), type=one_of("text", "json_object")),
    obj(
        ("type", "json_schema"),
        type=one_of("json_schema"),
        json_schema=obj(
            ("name", "schema"),
            name=_SAID,
            schema=ANY_OBJECT,
            strict=optional(BOOLEAN),
        ),
    ),
)
_STOP = {"type": "string", "minLength": 1, "maxLength": 1024}
_INT64 = 2**63

_OPTIONAL: dict[str, Schema] = {
    "max_completion_tokens": {"type": "integer", "minimum": 1},
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": number(0, 2),
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "top_k": whole(-1, 2**31 - 1),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": number(*REPETITION_PENALTY),
    "logit_bias": {"type": "object", "additionalProperties": number(-100, 100)},
    "seed": whole(-_INT64, _INT64 - 1),
    "n": whole(1, 16),
    "logprobs": BOOLEAN,
    "top_logprobs": whole(0, 20),
    "stop": either(_STOP, listed(_STOP, 0, 5)),
    "stream": BOOLEAN,
    "stream_options": obj(include_usage=optional(BOOLEAN)),
    "response_format": _FORMAT,
    "tools": listed(_TOOL, 0, 128),
    "tool_choice": _CHOICE,
    "parallel_tool_calls": BOOLEAN,
    "thinking": {
        "type": "object",
        "properties": {
            "type": optional(one_of("enabled", "disabled")),
            "keep": optional(one_of("all")),
            "budget_tokens": optional(COUNT),
        },
        "additionalProperties": False,
    },
    "thinking_budget": COUNT,
    "reasoning_effort": one_of(*EFFORTS),
    "reasoning": ANY_OBJECT,
    "enable_thinking": BOOLEAN,
    "include_reasoning": BOOLEAN,
    "chat_template_kwargs": ANY_OBJECT,
    "deadline_s": {"type": "number", "minimum": 0},
    "user": TEXT,
    "prompt_cache_key": TEXT,
    "safety_identifier": TEXT,
}

CHAT_REQUEST = obj(
    ("model", "messages"),
    model=TEXT,
    messages=listed(_MESSAGE, 1),
    **{name: optional(schema) for name, schema in _OPTIONAL.items()},
)

USAGE = obj(
    ("prompt_tokens", "completion_tokens", "total_tokens"),
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    cached_tokens=COUNT,
    prompt_tokens_details=obj(cached_tokens=COUNT, cached_disk_tokens=COUNT, cache_break=TEXT),
    completion_tokens_details=obj(reasoning_tokens=COUNT),
)
CHAT_ANSWER = obj(
    ("id", "object", "created", "model", "choices", "usage"),
    id=TEXT,
    object=one_of("chat.completion"),
    created={"type": "integer"},
    model=TEXT,
    choices=listed(
        obj(
            ("index", "message", "finish_reason"),
            index=COUNT,
            message=obj(("role", "content"), role=one_of("assistant"), content=optional(TEXT)),
            logprobs=optional(ANY_OBJECT),
            finish_reason=one_of("stop", "length", "tool_calls"),
        ),
        1,
    ),
    usage=USAGE,
)
