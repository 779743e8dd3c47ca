"""The chunks of a streamed chat completion -> events.

Lenient where endpoints are known to differ (members left out or null, reasoning under two names, usage in
three places, calls that are not numbered), strict about everything else: what has another shape than the
API says ends the answer with an UpstreamError. Then there is no telling what else is wrong with it.

* Calls are numbered as they come, and their ids written anew: `functions.NAME:N`, N counted over the whole
  conversation, whatever the endpoint called them.
* An answer that the endpoint calls stopped is called `tool_calls` if it has calls, and the other way round.
* What comes too late for its place (thoughts after the answer, text after a call) is dropped.
* All Finish events come last, since usage is told after the end.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from moonlet.chat.messages import canonical_id
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from moonlet.chat.repair import next_call_index
from moonlet.errors import UpstreamError
from moonlet.gateway.refusal import failure_in_stream
from moonlet.gateway.usage import read_usage, rough_tokens

MAX_CALLS = 1024  # of one choice

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}
# In the visible text these say that the endpoint does not read its model's calls.
_LEAKS = ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "<|tool_call_begin|>")

T = TypeVar("T")


class Chunks:
    """One answer: `push` each chunk and get its events, then `finish`.

    who: what errors call the endpoint. `rough` says that no usage was told and the counts are estimates.
    """

    def __init__(self, who: str, request: ChatRequest) -> None:
        self.rough = False
        self.request = request
        self._who = who
        first = next_call_index(request.messages)
        self._choices = [_Choice(who, index, first, request) for index in range(request.n)]
        self._ended: list[_Choice] = []
        self._usage: Usage | None = None

    @property
    def complete(self) -> bool:
        """Whether all choices have ended; usage may still come."""
        return len(self._ended) == len(self._choices)

    def push(self, chunk: dict[str, Any]) -> list[Event]:
        """Raises UpstreamError, and PromptError where the endpoint refuses the request itself."""
        if chunk.get("error") is not None:
            raise failure_in_stream(chunk, self._who)
        events: list[Event] = []
        try:
            for raw in member(chunk, "choices", list, []):
                index = member(raw, "index", int, 0)
                if not 0 <= index < len(self._choices):
                    raise TypeError(f"choice {index} was not asked for")
                choice = self._choices[index]
                if choice.reason is None:
                    events += choice.read(raw)
                    if choice.reason is not None:
                        self._ended.append(choice)
                self._note(member(raw, "usage", dict, {}))
            self._note(member(chunk, "usage", dict, {}))
        except TypeError as error:
            raise UpstreamError(f"{self._who} sent a chunk in which {error}") from None
        return events

    def finish(self) -> list[Event]:
        """The ends of all choices. Raises UpstreamError when one has none."""
        if not self.complete:
            raise UpstreamError(f"{self._who} broke the answer off before it was finished")
        return self._finishes()

    def cut(self) -> list[Event]:
        """The ends of an answer that nobody waits for any longer, as if the token limit were reached."""
        for choice in self._choices:
            if choice.reason is None:
                choice.reason = "length"
                self._ended.append(choice)
        return self._finishes()

    def _finishes(self) -> list[Event]:
        """Usage is of the whole request: the last choice has what all of them wrote."""
        usage, self.rough = self._usage, self._usage is None
        if usage is None:
            written = sum(choice.written for choice in self._choices)
            thought = sum(choice.thought for choice in self._choices)
            prompt = rough_tokens(self.request)
            usage = Usage(prompt, -(-written // 4), -(-thought // 4))
        shared = Usage(usage.prompt_tokens, 0, 0, usage.cached_tokens)
        return [
            Finish(
                choice.told_reason,
                usage if choice is self._ended[-1] else shared,
                choice.index,
                choice.stop,
            )
            for choice in self._ended
        ]

    def _note(self, usage: dict[str, Any]) -> None:
        if usage:
            self._usage = read_usage(usage)


@dataclass
class _Choice:
    """What has come of one choice. written, thought: bytes of UTF-8 of the answer, and of its thoughts."""

    who: str
    index: int
    first_call: int
    request: ChatRequest
    reason: FinishReason | None = None
    stop: str | None = None
    written: int = 0
    thought: int = 0
    calls: int = 0
    _their_call: tuple[int | None, str] | None = None  # number and id of the open call
    _has_arguments: bool = False
    _tail: str = ""  # of the visible text, as far as a leak may begin in it

    @property
    def told_reason(self) -> FinishReason:
        if self.reason == "length":
            return "length"
        return "tool_calls" if self.calls else "stop"

    def read(self, raw: Any) -> list[Event]:
        """Raises TypeError, whose text goes on after "a chunk in which", or UpstreamError."""
        delta = member(raw, "delta", dict, {})
        events: list[Event] = []
        thought = member(delta, "reasoning_content", str, "") or member(delta, "reasoning", str, "")
        if thought and not (self._tail or self.calls):
            self.written, self.thought = self._added(thought), self.thought + _size(thought)
            events.append(ReasoningDelta(thought, self.index))
        text = member(delta, "content", str, "") + member(delta, "refusal", str, "")
        logprobs = self._logprobs(raw)
        if (text or logprobs) and not self.calls:
            self._check_leak(text)
            self.written = self._added(text)
            events.append(TextDelta(text, self.index, logprobs))
        for call in member(delta, "tool_calls", list, []):
            events += self._call(call)
        reason = member(raw, "finish_reason", str, "")
        return events + self._end(reason, raw) if reason else events

    def _call(self, raw: Any) -> list[Event]:
        """One piece of a call; it begins a new one if its number or id is new."""
        number = None if member(raw, "index", int, -1) < 0 else raw["index"]
        function = member(raw, "function", dict, {})
        call_id, name = member(raw, "id", str, ""), member(function, "name", str, "")
        arguments = member(function, "arguments", str, "")
        events: list[Event] = []
        if self._begins(number, call_id, name):
            if not name:
                raise TypeError("a call has no name")
            if self.calls >= MAX_CALLS:
                raise TypeError(f"there are more than {MAX_CALLS} calls")
            events += self._close()
            new_id = canonical_id(name, self.first_call + self.calls)
            events.append(ToolCallStart(self.calls, new_id, name, self.index))
            self.calls += 1
            self._their_call, self._has_arguments = (number, call_id), False
            self.written = self._added(name)
        if arguments:
            self._has_arguments = True
            self.written = self._added(arguments)
            events.append(ToolCallDelta(self.calls - 1, arguments, self.index))
        return events

    def _begins(self, number: int | None, call_id: str, name: str) -> bool:
        if self._their_call is None:
            return True
        open_number, open_id = self._their_call
        if number is not None and open_number is not None and number != open_number:
            if number < open_number:
                raise TypeError(f"call {number} goes on after call {open_number} has begun")
            return True
        # Some number all calls 0, and some none: then a name with a new id begins one.
        return bool(name and call_id and call_id != open_id)

    def _close(self) -> list[Event]:
        """The end of the open call; one without arguments gets an empty object."""
        if self._their_call is None:
            return []
        self._their_call, at = None, self.calls - 1
        empty = [] if self._has_arguments else [ToolCallDelta(at, "{}", self.index)]
        return [*empty, ToolCallEnd(at, self.index)]

    def _end(self, reason: str, raw: Any) -> list[Event]:
        if reason == "content_filter":
            raise UpstreamError(f"{self.who} stopped the answer by its content filter")
        if reason not in _REASONS:
            raise TypeError(f"finish_reason is {reason[:40]!r}")
        self.reason = _REASONS[reason]
        for name in (
            "stop_reason",
            "matched_stop",
        ):  # vLLM's and SGLang's, which may be token ids too
            if (stop := raw.get(name)) in self.request.stop:
                self.stop = stop
        return [] if self.reason == "length" else self._close()

    def _logprobs(self, raw: Any) -> tuple[TokenLogprob, ...]:
        if self.request.logprobs is None:
            return ()
        content = member(member(raw, "logprobs", dict, {}), "content", list, [])
        return tuple(
            TokenLogprob(*_token(item), tuple(map(_token, member(item, "top_logprobs", list, []))))
            for item in content
        )

    def _check_leak(self, text: str) -> None:
        seen = self._tail + text
        leak = next((word for word in _LEAKS if word in seen), None)
        if leak is not None and self.request.tools:
            raise UpstreamError(
                f"{self.who} shows {leak} in its text: it does not read the calls of its model, and "
                "must be started with a parser for them"
            )
        self._tail = seen[-max(map(len, _LEAKS)) :]

    def _added(self, text: str) -> int:
        return self.written + _size(text)


def member(parent: Any, name: str, kind: type[T], absent: T) -> T:
    """`parent[name]`, or `absent` where there is none or null. Raises TypeError for another type."""
    if not isinstance(parent, dict):
        raise TypeError(f"there is no object around {name}")
    value = parent.get(name)
    if value is None:
        return absent
    if type(value) is not kind:
        raise TypeError(f"{name} is no {kind.__name__}")
    return value


def _token(raw: Any) -> tuple[bytes, float]:
    """A token's bytes and log-probability; without bytes those of its text."""
    listed = member(raw, "bytes", list, [])
    if not all(type(byte) is int and 0 <= byte < 256 for byte in listed):
        raise TypeError("bytes hold no bytes")
    value = raw.get("logprob")
    if type(value) not in (int, float):
        raise TypeError("logprob is no number")
    return bytes(listed) or member(raw, "token", str, "").encode("utf-8", "replace"), float(value)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
