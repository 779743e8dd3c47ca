"""Token counts as endpoints tell them, and a rough idea of them where they are not told."""

import json
from typing import Any

from moonlet.chat.messages import TextPart
from moonlet.chat.provider import ChatRequest, TextRequest, Usage

MOST = 10**9  # tokens; no request has more
IMAGE_TOKENS = 1000  # roughly
BYTES_EACH = 4  # of UTF-8 in one token, roughly


def read_usage(raw: dict[str, Any]) -> Usage:
    """`usage` of an answer. Raises TypeError for what is no count.

    Cached tokens stand in `prompt_tokens_details` (OpenAI), at the top (Kimi) or under DeepSeek's name;
    reasoning tokens in `completion_tokens_details` or, with SGLang, at the top.
    """
    prompt, written = _count(raw, "prompt_tokens"), _count(raw, "completion_tokens")
    cached = (
        _count(_details(raw, "prompt_tokens_details"), "cached_tokens")
        or _count(raw, "cached_tokens")
        or _count(raw, "prompt_cache_hit_tokens")
    )
    thought = _count(_details(raw, "completion_tokens_details"), "reasoning_tokens") or _count(
        raw, "reasoning_tokens"
    )
    return Usage(prompt, written, min(thought, written), min(cached, prompt))


def rough_tokens(request: ChatRequest | TextRequest) -> int:
    """About how long the prompt is: for accounts, where nobody counted."""
    if isinstance(request, TextRequest):
        prompt = request.prompt
        return (
            -(-len(prompt.encode("utf-8", "replace")) // BYTES_EACH)
            if isinstance(prompt, str)
            else len(prompt)
        )
    size = images = 0
    for message in request.messages:
        for part in message.parts:
            if isinstance(part, TextPart):
                size += len(part.text.encode("utf-8", "replace"))
            else:
                images += 1
        size += len((message.reasoning or "").encode("utf-8", "replace"))
        size += sum(len(call.arguments.encode("utf-8", "replace")) for call in message.tool_calls)
    if request.tools:
        size += len(json.dumps(request.tools))
    return -(-size // BYTES_EACH) + images * IMAGE_TOKENS


def _details(raw: dict[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name)
    if not isinstance(value, dict | None):
        raise TypeError(f"usage.{name} is no object")
    return value or {}


def _count(raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= MOST:
        raise TypeError(f"usage.{name} is no count of tokens")
    return value
