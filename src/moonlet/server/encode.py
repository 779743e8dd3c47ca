"""Events -> chat completion objects of the OpenAI API, whole or as stream chunks.

Reasoning goes out under both names that clients read: `reasoning_content` (Kimi, DeepSeek, SGLang)
and `reasoning` (vLLM, OpenRouter). Usage carries both spellings of the cached tokens, and Kimi's
place for it, inside the last choice, besides OpenAI's.
"""

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from moonlet.chat.provider import (
    Completion,
    Event,
    Finish,
    ModelCard,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)


def to_json(value: Any) -> bytes:
    """Compact UTF-8. A lone surrogate in a string becomes "?", for UTF-8 has none."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def model_object(card: ModelCard) -> dict[str, Any]:
    """An entry of `/v1/models`, with the members that Kimi adds."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "moonlet",
        "context_length": card.context_length,
        "supports_image_in": card.supports_images,
        "supports_video_in": card.supports_video,
        "supports_reasoning": card.supports_reasoning,
    }


@dataclass(frozen=True)
class Encoder:
    """One answer: every object that it writes has the same `id`, `created` and `model`."""

    model: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, answer: Completion) -> dict[str, Any]:
        """The plain answer. `content` is null only beside tool calls."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.text or not answer.tool_calls else None,
        }
        if answer.reasoning:
            message |= _reasoning(answer.reasoning)
        if answer.tool_calls:
            message["tool_calls"] = [
                _call(call.id, call.name, call.arguments) for call in answer.tool_calls
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        head = self._head("chat.completion")
        return {**head, "choices": [choice], "usage": usage_object(answer.usage)}

    def first(self) -> dict[str, Any]:
        """The chunk that opens a stream: the role and nothing else."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunk(self, event: Event) -> dict[str, Any] | None:
        """The chunk of one event; None for one that this dialect does not tell."""
        match event:
            case ReasoningDelta():
                return self._chunk(_reasoning(event.text))
            case TextDelta():
                return self._chunk({"content": event.text})
            case ToolCallStart():
                call = {"index": event.index, **_call(event.id, event.name, "")}
                return self._chunk({"tool_calls": [call]})
            case ToolCallDelta():
                call = {"index": event.index, "function": {"arguments": event.arguments}}
                return self._chunk({"tool_calls": [call]})
            case ToolCallEnd():
                return None
            case Finish():
                chunk = self._chunk({}, event.reason)
                chunk["choices"][0]["usage"] = usage_object(event.usage)
                return chunk

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk after the last choice, for clients that asked for `include_usage`."""
        return {
            **self._head("chat.completion.chunk"),
            "choices": [],
            "usage": usage_object(usage),
        }

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.include_usage else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Token counts; `cached_tokens` at the top is Kimi's spelling, the nested one OpenAI's."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _reasoning(text: str) -> dict[str, str]:
    return {"reasoning_content": text, "reasoning": text}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
