"""The seam between those who ask (server, agents, evals) and those who answer (engine, gateway).

A provider turns one ChatRequest into a stream of events: Started, if it knows the prompt before the answer
comes, and then of each choice, in this order:

    ReasoningDelta*  TextDelta*  (ToolCallStart ToolCallDelta* ToolCallEnd)*  Finish

The plain answer of an API is the collected stream, so that the two can never differ.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from moonlet.chat.messages import Message, ToolCall
from moonlet.errors import EngineError

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token. None leaves the choice to the provider.

    Penalties as OpenAI defines them, over the answer's tokens; `repetition_penalty` as in CTRL, over the
    prompt's too. `logit_bias` is added to the logits of token ids.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class ChatRequest:
    """One request. `tools` are the OpenAI-shaped declarations; `max_tokens` counts new tokens.

    must_call: the answer is one or more calls; only_tool: of this tool alone. schema: a JSON schema that
    the visible answer satisfies ({"type": "object"} for any object). Both begin after the thinking,
    which `thinking_budget` bounds in tokens. logprobs: how many alternatives are told beside each token of
    the visible answer; None tells nothing. n: independent answers to the same prompt. deadline_s: seconds
    after which the answer ends as if the token limit were reached.

    A conversation that ends in a partial assistant message is continued where that message ends.
    asked_by: a digest of the API key, on whose account it is; None where there was none.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    must_call: bool = False
    only_tool: str | None = None
    parallel_tool_calls: bool = True
    schema: dict[str, Any] | None = None
    thinking: bool = True
    preserve_thinking: bool = False
    thinking_budget: int | None = None
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    deadline_s: float | None = None
    asked_by: str | None = None


@dataclass(frozen=True)
class TextRequest:
    """Plain text to continue, or token ids; no template, no parser. What spells a special token is one."""

    prompt: str | list[int]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    deadline_s: float | None = None
    asked_by: str | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts. `reasoning_tokens` are part of `completion_tokens`, `cached` of `prompt`.

    Of the cached tokens, `cached_disk_tokens` came from disk. cache_break: why the cache did not hold more
    of the prompt, in a word or two. cost: in US dollars, where the request has a price.
    """

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int = 0
    cached_disk_tokens: int = 0
    cache_break: str | None = None
    cost: float | None = None


def total_usage(usages: Iterable[Usage]) -> Usage:
    """The usage of all choices of one request: the prompt they share counts once.

    Of its cached tokens those count that came from an earlier request, not from another choice.
    """
    usages = list(usages)
    first = min(usages, key=lambda usage: usage.cached_tokens)
    costs = [usage.cost for usage in usages if usage.cost is not None]
    return replace(
        first,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        cost=sum(costs) if costs else None,
    )


UNKNOWN_PROMPT = Usage(0, 0, 0)  # of which nothing is told


@dataclass(frozen=True)
class TokenLogprob:
    """A token as bytes, its natural logarithm of probability, and the likeliest alternatives."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Started:
    """The prompt can be used and has so many tokens; from here on only the engine can fail."""

    prompt_tokens: int
    choice: int = 0


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of the thinking."""

    text: str
    choice: int = 0


@dataclass(frozen=True)
class TextDelta:
    """A piece of the visible answer, with the tokens that made it where they were asked for."""

    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ToolCallStart:
    """Call number `index` of this answer (0, 1, 2, ...) begins; its arguments follow as deltas."""

    index: int
    id: str
    name: str
    choice: int = 0


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of the arguments of call `index`; joined they are the exact text of the model."""

    index: int
    arguments: str
    choice: int = 0


@dataclass(frozen=True)
class ToolCallEnd:
    """Call `index` is complete. A call that the token limit cut off has no end."""

    index: int
    choice: int = 0


@dataclass(frozen=True)
class Finish:
    """The last event of every complete choice. `stop`: the stop string that ended it."""

    reason: FinishReason
    usage: Usage
    choice: int = 0
    stop: str | None = None


Event = Started | ReasoningDelta | TextDelta | ToolCallStart | ToolCallDelta | ToolCallEnd | Finish


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
        """Events of all choices, interleaved; the last one of each is a Finish.

        Raises PromptError or MediaError before the first event when the request cannot be
        rendered, EngineError when generation fails. `aclose()` stops the generation.
        """
        ...

    def close(self) -> None:
        """Ends what still runs and gives back what is held; not to be asked any more."""
        ...


class TextProvider(Provider, Protocol):
    """A provider with the model at hand: plain text, counts and tokens too."""

    def complete(self, request: TextRequest) -> AsyncGenerator[Event, None]:
        """TextDelta* Finish of each choice. Raises as `stream` does."""
        ...

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt, exactly `usage.prompt_tokens` of the answer. Raises as `stream` does."""
        ...

    async def prompt_ids(self, request: ChatRequest) -> list[int]:
        """The same tokens themselves."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Plain text as token ids; what looks like a special token is text too. Raises PromptError."""
        ...

    def detokenize(self, token_ids: list[int]) -> str:
        """Raises PromptError for an id that does not exist."""
        ...


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    reasoning: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


async def collect(events: AsyncIterator[Event]) -> Completion:
    """The whole answer of a stream of one choice; see `collect_all`."""
    return (await collect_all(events))[0]


async def collect_all(events: AsyncIterator[Event]) -> list[Completion]:
    """The whole answers of a stream, by choice. Raises EngineError when one ends without a Finish.

    In one case an answer says less than the stream: a call that the token limit cut off is left
    out, though its start and the pieces of its arguments were already sent to whoever streams. Half
    a JSON text is not what the model meant, and nobody can call anything with it.
    """
    parts: dict[int, _Collected] = {}
    async for event in events:
        parts.setdefault(event.choice, _Collected()).add(event)
    if not parts:
        raise _broken_off()
    return [parts[choice].completion() for choice in sorted(parts)]


@dataclass
class _Collected:
    """What has come of one choice."""

    reasoning: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: dict[int, ToolCallStart] = field(default_factory=dict)
    arguments: dict[int, list[str]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    finish: Finish | None = None

    def add(self, event: Event) -> None:
        match event:
            case ReasoningDelta():
                self.reasoning.append(event.text)
            case TextDelta():
                self.text.append(event.text)
                self.logprobs += event.logprobs
            case ToolCallStart():
                self.calls[event.index] = event
                self.arguments[event.index] = []
            case ToolCallDelta():
                self.arguments[event.index].append(event.arguments)
            case ToolCallEnd():
                self.ended.add(event.index)
            case Finish():
                self.finish = event

    def completion(self) -> Completion:
        if self.finish is None:
            raise _broken_off()
        reason = self.finish.reason
        calls = [
            ToolCall(call.id, call.name, "".join(self.arguments[index]))
            for index, call in self.calls.items()
        ]
        may_be_cut = reason == "length" and bool(calls) and max(self.calls) not in self.ended
        # Not every stream tells its ends; whole JSON without one is taken as it is.
        if may_be_cut and not _is_json(calls[-1].arguments):
            calls.pop()
        return Completion(
            "".join(self.reasoning), "".join(self.text), tuple(calls), reason,
            self.finish.usage, self.finish.stop, tuple(self.logprobs),
        )  # fmt: skip


def _broken_off() -> EngineError:
    return EngineError("The answer broke off before it was finished.")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
