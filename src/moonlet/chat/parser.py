"""Generated token ids to events: reasoning, answer, tool calls.

    [reasoning </think>] [content] [section { call } ]        (formats: see template.py)

Works on ids, so a marker is always one whole token and text that merely spells one stays text.
What cannot be decided yet is held back: unfinished characters, and what held.py says.

A tool section inside reasoning that is still open has two readings. Usually the model forgot
`</think>` and the call is meant; but it may also quote, in its thoughts, what it could write later.
What no model means (text between the section's markers, a header that names nothing, no call at
all) is a quotation at once. All else only the future tells: if `</think>` still comes it was one,
if the answer ends it was not. So a stream must wait there, and shows such a call only at the end.
When the token limit is the end and the model had gone on writing after the section, nobody can know;
it is taken for a quotation, because a call that was not meant does more harm than one that is missed.

Every character of the model's text goes into exactly one event, except these, which are dropped:
blanks before a tool section and around headers and arguments; the misspelt section marker before a
call; all other text inside and after a section that is not a call; calls that cannot be told (a header
that names no tool) or may not be made; what follows a stop string, itself included; and what follows
the first call where only one is wanted. Bytes that are no UTF-8 become U+FFFD.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moonlet.chat.calls import Calls, Declared
from moonlet.chat.held import BLANKS, HeldText
from moonlet.chat.provider import (
    UNKNOWN_PROMPT,
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallEnd,
    Usage,
)
from moonlet.chat.tokenizer import TextStream, Tokenizer

THINK_BEGIN, THINK_END = "<think>", "</think>"
SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS_BEGIN = "<|tool_call_argument_begin|>"

State = Literal["reasoning", "content", "section", "header", "arguments", "after"]


@dataclass
class _Quote:
    """A tool section inside open reasoning, as text and as calls, until it is known which it is."""

    texts: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    num_tokens: int = 0
    text_follows: bool = False


class OutputParser:
    """Events of one answer, token by token; one parser for one answer.

    `tools` are the request's declarations: they name calls whose header is incomplete. An empty list
    means that nothing may be called, and calls are dropped; None means that they are not known.
    `first_index` is the number of the conversation's next call (repair.next_call_index). `choice`
    is written on every event. `stopped` becomes true when a stop string was met, or the first call
    is complete and only one is wanted; the caller then ends the generation.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        starts_in_reasoning: bool,
        stop: tuple[str, ...] = (),
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        first_index: int = 0,
        stop_after_first_call: bool = False,
        choice: int = 0,
    ) -> None:
        self.stopped = False
        self._special_text = tokenizer.special_text
        self._stream = TextStream(tokenizer)
        self._state: State = "reasoning" if starts_in_reasoning else "content"
        self._reasoning = HeldText()
        self._content = HeldText(stop, trims_blanks=True)
        self._tools = None if tools is None else [Declared.from_tool(tool) for tool in tools]
        self._first_index = first_index
        self._calls = Calls(self._tools, first_index)
        self._quote: _Quote | None = None
        self._wants_one_call = stop_after_first_call
        self._choice = choice
        self._completion_tokens = 0
        self._reasoning_tokens = 0

    def push(self, token_id: int, logprob: TokenLogprob | None = None) -> list[Event]:
        """Events that this token completes. Raises TokenizerError for an id that does not exist."""
        if self.stopped:
            return []
        self._completion_tokens += 1
        marker = self._special_text.get(token_id)
        if marker is not None:
            events = self._text(self._stream.flush())
            return self._of_choice(events + self._marker(marker))
        self._reasoning_tokens += self._state == "reasoning"
        if self._quote is not None:
            self._quote.num_tokens += 1
        return self._of_choice(self._text(self._stream.push(token_id), logprob))

    def finish(
        self, reason: Literal["stop", "length"], prompt: Usage = UNKNOWN_PROMPT
    ) -> list[Event]:
        """What was held back, then Finish, whose usage is that of the prompt and the answer's tokens."""
        events: list[Event] = []
        if not self.stopped:
            events += self._text(self._stream.flush())
        if self._quote is not None:
            events += self._as_calls() if self._is_call(self._quote, reason) else self._as_quote()
        if not self.stopped:  # the flushed character may have completed a stop string
            events += _reasoning(self._reasoning.release())
            events += self._visible(self._content.release())
            if self._state == "arguments" and reason == "stop":
                events += self._calls.close()
        ended = "stop" if self.stopped else reason
        final: FinishReason = "tool_calls" if ended == "stop" and self._calls.count else ended
        usage = replace(
            prompt,
            completion_tokens=self._completion_tokens,
            reasoning_tokens=self._reasoning_tokens,
        )
        return self._of_choice([*events, Finish(final, usage, stop=self._content.met)])

    def _text(self, text: str, logprob: TokenLogprob | None = None) -> list[Event]:
        if self._state == "content":
            return self._visible(self._content.push(text, logprob, self._stream.is_unfinished))
        if not text:
            return []
        if self._state == "reasoning":
            return _reasoning(self._reasoning.push(text))
        if self._quote is not None:
            self._quote.texts.append(text)
            if text.strip(BLANKS):
                if self._state == "section":
                    return self._as_quote()
                self._quote.text_follows = True
        if self._state == "header":
            self._calls.header.append(text)
        elif self._state == "arguments":
            return self._waiting(self._calls.arguments(text))
        return []  # noise between and after calls

    def _visible(self, text: str) -> list[Event]:
        self.stopped = self.stopped or self._content.met is not None
        return [TextDelta(text, logprobs=self._content.told)] if text else []

    def _marker(self, marker: str) -> list[Event]:
        if self.stopped:
            return []
        if self._state in ("reasoning", "content"):
            return self._marker_in_text(marker)
        if self._quote is not None and marker == THINK_END:
            return [*self._as_quote(), *self._marker_in_text(marker)]
        return self._marker_in_section(marker)

    def _marker_in_text(self, marker: str) -> list[Event]:
        """Markers outside the tool section; all others (turns, media, reserved) are dropped."""
        if marker == THINK_BEGIN and not self._content.begun:  # later it can only be a quotation
            self._state = "reasoning"
        elif marker == THINK_END and self._state == "reasoning":
            self._state = "content"
            ready, self._reasoning = self._reasoning.release(), HeldText()
            return _reasoning(ready)
        elif marker in (SECTION_BEGIN, CALL_BEGIN):
            return self._section_begins(marker)
        return []

    def _section_begins(self, marker: str) -> list[Event]:
        events: list[Event] = []
        if self._state == "content":
            events = self._visible(self._content.before_call())
        elif self._tools is not None and not self._tools:
            return []  # nothing can be called, so it is a quotation
        else:
            self._quote = _Quote()
        self._state = "section"
        return [*events, *self._marker_in_section(marker)]

    def _marker_in_section(self, marker: str) -> list[Event]:
        events: list[Event] = []
        if self._state == "header" and marker in (ARGUMENTS_BEGIN, CALL_END, SECTION_END):
            opened = self._calls.open()
            if opened is None and self._quote is not None:
                return self._as_quote()
            events += opened or []
            self._state = "arguments"
        if self._state == "arguments" and marker in (CALL_BEGIN, CALL_END, SECTION_END):
            events += self._calls.close()
            self._state = "section"
            one_is_enough = self._wants_one_call and self._calls.count > 0
            self.stopped = one_is_enough and self._quote is None
        if marker == CALL_BEGIN:
            self._calls.header.clear()
            self._state = "header"
        elif marker == SECTION_BEGIN and self._state == "after":
            self._state = "section"
        elif marker == SECTION_END:
            if self._quote is not None:
                if not self._calls.count:
                    return self._as_quote()
                self._quote.text_follows = False
            self._state = "after"
        return self._waiting(events)

    def _waiting(self, events: list[Event]) -> list[Event]:
        """Events of calls go out, or wait as long as their section may be a quotation."""
        if self._quote is None:
            return events
        self._quote.events += events
        return []

    def _is_call(self, quote: _Quote, reason: Literal["stop", "length"]) -> bool:
        """Whether a section in reasoning that was never closed is meant, now that the answer ends."""
        has_call = self._calls.count > 0 or self._state == "arguments"
        went_on = self._state == "after" and quote.text_follows
        return has_call and not (went_on and reason == "length")

    def _as_calls(self) -> list[Event]:
        assert self._quote is not None
        events, self._quote = self._quote.events, None
        if self._wants_one_call and (first_end := ToolCallEnd(0)) in events:
            events = events[: events.index(first_end) + 1]
            self.stopped = True
        self._content.before_call()  # it can hold nothing but blanks
        return [*_reasoning(self._reasoning.before_call()), *events]

    def _as_quote(self) -> list[Event]:
        """The section was a quotation: its text is reasoning, and there were no calls."""
        assert self._quote is not None
        quote, self._quote = self._quote, None
        self._state = "reasoning"
        self._reasoning_tokens += quote.num_tokens
        self._calls = Calls(self._tools, self._first_index)
        return _reasoning(self._reasoning.push("".join(quote.texts)))

    def _of_choice(self, events: list[Event]) -> list[Event]:
        if not self._choice:
            return events
        return [replace(event, choice=self._choice) for event in events]


def _reasoning(text: str) -> list[Event]:
    return [ReasoningDelta(text)] if text else []
