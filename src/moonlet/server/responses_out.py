"""Events -> the typed events and the response object of OpenAI's Responses API.

    response.created  response.in_progress
      output_item.added                                     one item after another: thinking,
        content_part.added  (delta)*  done  content_part.done   the message, each call
        or for a call: (arguments.delta)*  arguments.done
      output_item.done
    response.completed | response.incomplete | response.failed

The plain answer is the response of the last event, of the same answer replayed.
"""

import time
import uuid
from collections.abc import Callable
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
from moonlet.server.dialect import is_json, replay
from moonlet.server.encode import logprobs_object, sse
from moonlet.server.errors import ApiError
from moonlet.server.responses_items import Item, opaque

_PART_TYPES = {"reasoning": "reasoning_text", "message": "output_text"}


@dataclass
class ResponsesEncoder:
    """One response. `echo`: the members of the response object that repeat the request.

    keep: called with the response object once it is whole.
    """

    model: str
    echo: dict[str, Any]
    shows_reasoning: bool = True
    opaque_reasoning: bool = False
    keep: Callable[[dict[str, Any]], None] = lambda response: None
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    output: list[Item] = field(default_factory=list)
    _item: Item | None = None  # the one that is being told, with the pieces so far
    _pieces: list[str] = field(default_factory=list)
    _logprobs: list[dict[str, Any]] = field(default_factory=list)
    _index: int = 0
    _sequence: int = 0
    _finish: Finish | None = None

    def plain(self, answers: list[Completion]) -> dict[str, Any]:
        for event in replay(answers[0]):
            self.event(event)
        return self._whole()

    def start(self, prompt_tokens: int = 0) -> bytes:
        response = self._response("in_progress")
        return self._tell("response.created", response=response) + self._tell(
            "response.in_progress", response=response
        )

    def event(self, event: Event) -> bytes:
        match event:
            case Started():
                return b""
            case ReasoningDelta():
                if not self.shows_reasoning or not event.text:
                    return b""
                return self._into("reasoning") + self._delta("reasoning_text", event.text)
            case TextDelta():
                if not event.text and not event.logprobs:
                    return b""
                told = logprobs_object(event.logprobs)["content"]
                opened = self._into("message")
                self._logprobs += told
                return opened + self._delta("output_text", event.text, logprobs=told)
            case ToolCallStart():
                return self._close() + self._open(
                    {"type": "function_call", "id": _new_id("fc"), "status": "in_progress"}
                    | {"call_id": event.id, "name": event.name, "arguments": ""}
                )
            case ToolCallDelta():
                return self._delta("function_call_arguments", event.arguments)
            case ToolCallEnd():
                return self._close()
            case Finish():
                self._finish = event
                return self._close()

    def end(self) -> bytes:
        response = self._whole()
        return self._tell(f"response.{response['status']}", response=response)

    def error(self, error: ApiError, body: dict[str, Any]) -> bytes:
        code = "invalid_prompt" if error.status < 500 else "server_error"
        failure = {"code": code, "message": error.message}
        opening = b"" if self._sequence else self.start()
        response = self._response("failed", error=failure, output=self.output)
        return opening + self._tell("response.failed", response=response)

    def _into(self, kind: str) -> bytes:
        """What has to be told before a piece of an item of this kind."""
        if self._item is not None and self._item["type"] == kind:
            return b""
        if kind == "reasoning":
            item: Item = {"type": kind, "id": _new_id("rs"), "summary": [], "content": []}
        else:
            item = {"type": kind, "id": _new_id("msg"), "role": "assistant", "content": []}
        opened = self._close() + self._open({**item, "status": "in_progress"})
        return opened + self._tell(
            "response.content_part.added", part=_part(kind, ""), **self._at()
        )

    def _open(self, item: Item) -> bytes:
        self._item, self._pieces, self._logprobs = item, [], []
        return self._tell("response.output_item.added", output_index=self._index, item=item)

    def _delta(self, name: str, piece: str, **more: Any) -> bytes:
        self._pieces.append(piece)
        return self._tell(f"response.{name}.delta", delta=piece, **more, **self._at())

    def _close(self) -> bytes:
        """The events that end the item which is being told, if there is one."""
        if self._item is None:
            return b""
        whole = "".join(self._pieces)
        kind = self._item["type"]
        cut = self._finish is not None and self._finish.reason == "length"
        if kind == "function_call":
            cut = cut and not is_json(whole)
            done = self._tell(
                "response.function_call_arguments.done",
                name=self._item["name"],
                arguments=whole,
                **self._at(),
            )
            item = self._item | {"arguments": whole}
        else:
            part = _part(kind, whole, self._logprobs)
            logprobs = {"logprobs": self._logprobs} if kind == "message" else {}
            done = self._tell(
                f"response.{_PART_TYPES[kind]}.done", text=whole, **logprobs, **self._at()
            ) + self._tell("response.content_part.done", part=part, **self._at())
            item = self._item | {"content": [part]}
        if kind == "reasoning" and self.opaque_reasoning:
            item["encrypted_content"] = opaque(whole)
        item["status"] = "incomplete" if cut else "completed"
        done += self._tell("response.output_item.done", output_index=self._index, item=item)
        if kind != "function_call" or not cut:
            self.output.append(item)  # nobody can call anything with half a JSON text
        self._item = None
        self._index += 1
        return done

    def _at(self) -> dict[str, Any]:
        """Where a piece belongs: the item, and in it the only part if it has parts."""
        assert self._item is not None, "a provider's pieces of a call follow its start"
        at = {"item_id": self._item["id"], "output_index": self._index}
        return at if self._item["type"] == "function_call" else {**at, "content_index": 0}

    def _whole(self) -> dict[str, Any]:
        assert self._finish is not None, "an answer ends with its Finish"
        length = self._finish.reason == "length"
        response = self._response(
            "incomplete" if length else "completed",
            incomplete_details={"reason": "max_output_tokens"} if length else None,
            output=self.output,
            usage=_usage(self._finish.usage),
            completed_at=int(time.time()),
        )
        self.keep(response)
        return response

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": [],
            "usage": None,
            **self.echo,
            **more,
        }

    def _tell(self, kind: str, **members: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **members}
        self._sequence += 1
        return sse(event, kind)


def _part(kind: str, text: str, logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    part: dict[str, Any] = {"type": _PART_TYPES[kind], "text": text}
    return part | {"annotations": [], "logprobs": logprobs or []} if kind == "message" else part


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
