"""Events -> the typed events and the message object of Anthropic's API.

    message_start  ping
      content_block_start  content_block_delta*  content_block_stop      one block after another
    message_delta  message_stop | error

The plain answer is the message of the same answer replayed. How much of the prompt came from the cache is
known at the end only: message_start counts all of its tokens as input, message_delta says it right.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any

from moonlet.chat.provider import (
    Completion,
    Event,
    Finish,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from moonlet.server.body import parse_finite
from moonlet.server.dialect import replay
from moonlet.server.encode import sse
from moonlet.server.errors import ApiError

# Of thinking, where Anthropic's clients keep what they cannot read. Nothing here depends on it.
_SIGNATURE = "moonlet"
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_STATUS_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: ApiError, request_id: str | None) -> dict[str, Any]:
    """A refusal in Anthropic's shape; it has no place for the field, so the message begins with it."""
    kind = _STATUS_TYPES.get(
        error.status, "invalid_request_error" if error.status < 500 else "api_error"
    )
    if error.kind == "engine_overloaded_error":
        kind = "overloaded_error"
    told = error.param is None or error.param in error.message
    message = error.message if told else f"{error.param}: {error.message}"
    body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    return body if request_id is None else {**body, "request_id": request_id}


@dataclass
class MessageEncoder:
    """One message. Calls get ids of the form that Anthropic's clients know.

    What they send back is renamed to the model's own ids with the rest of the history.
    """

    model: str
    shows_thinking: bool = True
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    content: list[dict[str, Any]] = field(default_factory=list)
    _block: dict[str, Any] | None = None  # the one that is being told, with the pieces so far
    _pieces: list[str] = field(default_factory=list)
    _finish: Finish | None = None

    def plain(self, answers: list[Completion]) -> dict[str, Any]:
        for event in replay(answers[0]):
            self.event(event)
        finish = self._finished()
        return self._message(content=self.content, usage=_usage(finish.usage), **_stop(finish))

    def start(self, prompt_tokens: int = 0) -> bytes:
        usage = _usage(Usage(prompt_tokens, 0, 0))
        message = self._message(content=[], usage=usage, stop_reason=None, stop_sequence=None)
        return _tell("message_start", message=message) + _tell("ping")

    def event(self, event: Event) -> bytes:
        match event:
            case Started():
                return b""
            case ReasoningDelta():
                if not self.shows_thinking or not event.text:
                    return b""
                opened = self._into({"type": "thinking", "thinking": "", "signature": ""})
                return opened + self._delta("thinking_delta", "thinking", event.text)
            case TextDelta():
                if not event.text:
                    return b""
                return self._into({"type": "text", "text": ""}) + self._delta(
                    "text_delta", "text", event.text
                )
            case ToolCallStart():
                block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}"}
                return self._close() + self._open({**block, "name": event.name, "input": {}})
            case ToolCallDelta():
                return self._delta("input_json_delta", "partial_json", event.arguments)
            case ToolCallEnd():
                return self._close()
            case Finish():
                self._finish = event
                return self._close()

    def end(self) -> bytes:
        finish = self._finished()
        ending = _tell("message_delta", delta=_stop(finish), usage=_usage(finish.usage))
        return ending + _tell("message_stop")

    def error(self, error: ApiError, body: dict[str, Any]) -> bytes:
        return sse(body, "error")

    def _into(self, block: dict[str, Any]) -> bytes:
        """What has to be told before a piece of a block of this kind."""
        if self._block is not None and self._block["type"] == block["type"]:
            return b""
        return self._close() + self._open(block)

    def _open(self, block: dict[str, Any]) -> bytes:
        self._block, self._pieces = block, []
        return _tell("content_block_start", index=len(self.content), content_block=block)

    def _delta(self, kind: str, member: str, piece: str) -> bytes:
        self._pieces.append(piece)
        delta = {"type": kind, member: piece}
        return _tell("content_block_delta", index=len(self.content), delta=delta)

    def _close(self) -> bytes:
        """The events that end the block which is being told, if there is one."""
        if self._block is None:
            return b""
        whole, index, signed = "".join(self._pieces), len(self.content), b""
        match self._block["type"]:
            case "thinking":
                told = {"thinking": whole, "signature": _SIGNATURE}
                delta = {"type": "signature_delta", "signature": _SIGNATURE}
                signed = _tell("content_block_delta", index=index, delta=delta)
            case "text":
                told = {"text": whole}
            case _:
                told = {"input": _input(whole)}
        self.content.append(self._block | told)
        self._block = None
        return signed + _tell("content_block_stop", index=index)

    def _finished(self) -> Finish:
        assert self._finish is not None, "an answer ends with its Finish"
        return self._finish

    def _message(self, **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            **more,
        }


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call as the object that they should be.

    Anthropic has no place for other text; what the model wrote is not lost all the same. JSON has no
    infinity, which 1e999 would become.
    """
    try:
        value = parse_finite(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"_raw": arguments}


def _stop(finish: Finish) -> dict[str, Any]:
    reason = "stop_sequence" if finish.stop is not None else _STOP_REASONS[finish.reason]
    return {"stop_reason": reason, "stop_sequence": finish.stop}


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts what came from the cache apart from the rest of the prompt."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _tell(kind: str, **members: Any) -> bytes:
    return sse({"type": kind, **members}, kind)
