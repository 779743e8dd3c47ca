"""The seam between those who ask (server, agents, evals) and those who answer (engine, gateway).

A provider turns one ChatRequest into a stream of events:

    ReasoningDelta*  TextDelta*  (ToolCallStart ToolCallDelta*)*  Finish

The plain answer of an API is the collected stream, so that the two can never differ.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from moonlet.chat.messages import Message, ToolCall
from moonlet.errors import EngineError

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token. None leaves the choice to the provider."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ChatRequest:
    """One request. `tools` are the OpenAI-shaped declarations; `max_tokens` counts new tokens."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = True
    preserve_thinking: bool = False
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Token counts. `reasoning_tokens` are part of `completion_tokens`, `cached` of `prompt`."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of the thinking."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """A piece of the visible answer."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """Call number `index` of this answer (0, 1, 2, ...) begins; its arguments follow as deltas."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of the arguments of call `index`; joined they are the exact text of the model."""

    index: int
    arguments: str


@dataclass(frozen=True)
class Finish:
    """The last event of every complete stream."""

    reason: FinishReason
    usage: Usage


Event = ReasoningDelta | TextDelta | ToolCallStart | ToolCallDelta | Finish


@dataclass(frozen=True)
class ModelCard:
    """What a provider serves, as `/v1/models` shows it. `created` is in Unix seconds."""

    id: str
    created: int
    context_length: int
    supports_images: bool = False
    supports_video: bool = False
    supports_reasoning: bool = False


class Provider(Protocol):
    """Something that answers."""

    card: ModelCard

    def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Events of one answer, the last one a Finish.

        Raises PromptError or MediaError before the first event when the request cannot be
        rendered, EngineError when generation fails. `aclose()` stops the generation.
        """
        ...


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    reasoning: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage


async def collect(events: AsyncIterator[Event]) -> Completion:
    """The whole answer of a stream. Raises EngineError when it ends without a Finish.

    In one case the answer says less than the stream: a call that the token limit cut off is left
    out, though its start and the pieces of its arguments were already sent to whoever streams. Half
    a JSON text is not what the model meant, and nobody can call anything with it.
    """
    reasoning: list[str] = []
    text: list[str] = []
    calls: dict[int, ToolCallStart] = {}
    arguments: dict[int, list[str]] = {}
    finish: Finish | None = None
    async for event in events:
        match event:
            case ReasoningDelta():
                reasoning.append(event.text)
            case TextDelta():
                text.append(event.text)
            case ToolCallStart():
                calls[event.index] = event
                arguments[event.index] = []
            case ToolCallDelta():
                arguments[event.index].append(event.arguments)
            case Finish():
                finish = event
    if finish is None:
        raise EngineError("The answer broke off before it was finished.")
    tool_calls = [
        ToolCall(call.id, call.name, "".join(arguments[index])) for index, call in calls.items()
    ]
    if finish.reason == "length" and tool_calls and not _is_json(tool_calls[-1].arguments):
        tool_calls.pop()
    return Completion(
        "".join(reasoning), "".join(text), tuple(tool_calls), finish.reason, finish.usage
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
