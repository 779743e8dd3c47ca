"""Events -> chat completion objects of the OpenAI API, whole or as stream chunks.

Reasoning goes out under both names that clients read: `reasoning_content` (Kimi, DeepSeek, SGLang)
and `reasoning` (vLLM, OpenRouter). Usage carries both spellings of the cached tokens, and Kimi's
place for it, inside the last choice, besides OpenAI's. A profile without extras leaves out whatever
OpenAI's objects have no place for, apart from `reasoning_content`.
"""

import json
import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moonlet.chat.provider import (
    Completion,
    Event,
    Finish,
    ModelCard,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    total_usage,
)
from moonlet.server.errors import ApiError

LEAST_LOGPROB = -9999.0  # JSON has no infinity; the number that other servers write
# Made once: json.dumps with options makes one for every call, and there is a call for every token.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(value: Any) -> bytes:
    """Compact UTF-8. A lone surrogate in a string becomes "?", for UTF-8 has none."""
    return _ENCODER.encode(value).encode("utf-8", "replace")


def sse(value: object, event: str | None = None) -> bytes:
    """`value` as one server-sent event, of the kind `event` in dialects that name it."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + to_json(value) + b"\n\n"


def model_object(card: ModelCard, extras: bool = True) -> dict[str, Any]:
    """An entry of `/v1/models`, with the members that Kimi adds."""
    model = {"id": card.id, "object": "model", "created": card.created, "owned_by": "moonlet"}
    if not extras:
        return model
    return model | {
        "context_length": card.context_length,
        "supports_image_in": card.supports_images,
        "supports_video_in": card.supports_video,
        "supports_reasoning": card.supports_reasoning,
    }


@dataclass
class ChatEncoder:
    """One answer: every object that it writes has the same `id`, `created` and `model`."""

    model: str
    include_usage: bool = False
    n: int = 1
    logprobs: bool = False
    shows_reasoning: bool = True
    extras: bool = True
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    usages: list[Usage] = field(default_factory=list)

    def plain(self, answers: list[Completion]) -> dict[str, Any]:
        """The whole answer. `content` is null only beside tool calls."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = total_usage([answer.usage for answer in answers])
        head = self._head("chat.completion")
        return {**head, "choices": choices, "usage": self._usage(usage)}

    def start(self, prompt_tokens: int = 0) -> bytes:
        """The chunks that open a stream: of each choice the role and nothing else."""
        opening = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, opening) for index in range(self.n))

    def event(self, event: Event) -> bytes:
        """The chunk of one event; empty for one that this dialect does not tell."""
        match event:
            case ReasoningDelta():
                if not self.shows_reasoning:
                    return b""
                return self._chunk(event.choice, self._reasoning(event.text))
            case TextDelta():
                return self._chunk(event.choice, {"content": event.text}, event.logprobs)
            case ToolCallStart():
                call = {"index": event.index, **_call(event.id, event.name, "")}
                return self._chunk(event.choice, {"tool_calls": [call]})
            case ToolCallDelta():
                call = {"index": event.index, "function": {"arguments": event.arguments}}
                return self._chunk(event.choice, {"tool_calls": [call]})
            case Started() | ToolCallEnd():
                return b""
            case Finish():
                return self._last_chunk(event)

    def end(self) -> bytes:
        """[DONE], and before it the usage for clients that asked for `include_usage`."""
        done = b"data: [DONE]\n\n"
        if not self.include_usage:
            return done
        usage = self._usage(total_usage(self.usages))
        return sse({**self._head("chat.completion.chunk"), "choices": [], "usage": usage}) + done

    def error(self, error: ApiError, body: dict[str, Any]) -> bytes:
        return sse(body)

    def _choice(self, index: int, answer: Completion) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.text or not answer.tool_calls else None,
        }
        if answer.reasoning and self.shows_reasoning:
            message |= self._reasoning(answer.reasoning)
        if answer.tool_calls:
            message["tool_calls"] = [
                _call(call.id, call.name, call.arguments) for call in answer.tool_calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs_object(answer.logprobs) if self.logprobs else None,
            "finish_reason": answer.finish_reason,
            **self._stop(answer.stop),
        }

    def _last_chunk(self, finish: Finish) -> bytes:
        """The last of its choice; that of the last choice has the usage of all of them."""
        self.usages.append(finish.usage)
        more: dict[str, Any] = {"finish_reason": finish.reason, **self._stop(finish.stop)}
        if self.extras and len(self.usages) == self.n:
            more["usage"] = self._usage(total_usage(self.usages))
        return self._chunk(finish.choice, {}, more=more)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: Sequence[TokenLogprob] = (),
        more: dict[str, Any] | None = None,
    ) -> bytes:
        told = logprobs_object(logprobs) if self.logprobs and logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": None}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice | (more or {})]}
        return sse({**chunk, "usage": None} if self.include_usage else chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _reasoning(self, text: str) -> dict[str, str]:
        official = {"reasoning_content": text}
        return {**official, "reasoning": text} if self.extras else official

    def _stop(self, stop: str | None) -> dict[str, str]:
        """The stop string that ended a choice, under vLLM's name."""
        return {"stop_reason": stop} if self.extras and stop is not None else {}

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return usage_object(usage, self.extras)


def usage_object(usage: Usage, extras: bool = True) -> dict[str, Any]:
    """Token counts; `cached_tokens` at the top is Kimi's spelling, the nested one OpenAI's.

    Beside that one stand how many of them came from disk, and why there are no more, where that is known: a
    stream's head is sent too early to say so. `cost` is in US dollars, where the request has a price.
    """
    kimi = {"cached_tokens": usage.cached_tokens} if extras else {}
    cost = {"cost": usage.cost} if extras and usage.cost is not None else {}
    details: dict[str, Any] = {"cached_tokens": usage.cached_tokens}
    if extras:
        details["cached_disk_tokens"] = usage.cached_disk_tokens
    if extras and usage.cache_break is not None:
        details["cache_break"] = usage.cache_break
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **kimi,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        **cost,
    }


def logprobs_object(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """The tokens of the visible answer, each with what else was likely."""
    content = [
        {**_token(token.token, token.logprob), "top_logprobs": [_token(*top) for top in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    """A token as text and as bytes, for it may hold a part of a character."""
    text = token.decode("utf-8", "replace")
    finite = logprob if math.isfinite(logprob) else LEAST_LOGPROB
    return {"token": text, "logprob": max(finite, LEAST_LOGPROB), "bytes": list(token)}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
