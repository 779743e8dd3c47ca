"""Generated token ids to events: reasoning, answer, tool calls.

    [reasoning </think>] [content] [section { call } ]        (formats: see template.py)

Works on ids, so a marker is always one whole token and text that merely spells one stays text.
What cannot be decided yet is held back: unfinished characters, the beginning of a stop string,
blanks before a possible tool call. One parser per answer.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from moonlet.chat.provider import (
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
)
from moonlet.chat.tokenizer import TextStream, Tokenizer

SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS_BEGIN = "<|tool_call_argument_begin|>"
# No token: a misspelling that some checkpoints write as plain text before a call.
_SINGULAR_SECTION = "<|tool_call_section_begin|>"

State = Literal["reasoning", "content", "section", "header", "arguments"]


class OutputParser:
    """Events of one answer, token by token.

    `tools` are the request's declarations: they name calls whose header is only a number. An empty
    list means that none were offered, and calls are dropped; None means that they are not known.
    `stopped` becomes true when a stop string was met; the engine then ends the generation.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        starts_in_reasoning: bool,
        stop: tuple[str, ...] = (),
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        self.stopped = False
        self._special_text = tokenizer.special_text
        self._stream = TextStream(tokenizer)
        self._state: State = "reasoning" if starts_in_reasoning else "content"
        self._stop = tuple(filter(None, stop))
        self._reasoning = ""  # held back
        self._content = ""  # held back
        self._calls = _Calls(tools)
        self._completion_tokens = 0
        self._reasoning_tokens = 0

    def push(self, token_id: int) -> list[Event]:
        """Events that this token completes."""
        if self.stopped:
            return []
        self._completion_tokens += 1
        marker = self._special_text.get(token_id)
        if marker is not None:
            return [*self._text(self._stream.flush()), *self._marker(marker)]
        self._reasoning_tokens += self._state == "reasoning"
        return self._text(self._stream.push(token_id))

    def finish(
        self, reason: Literal["stop", "length"], prompt_tokens: int = 0, cached_tokens: int = 0
    ) -> list[Event]:
        """What was held back, then Finish. The prompt's counts are passed through to its usage."""
        events: list[Event] = []
        if not self.stopped:
            events += self._text(self._stream.flush())
        if not self.stopped:  # the flushed character may have completed a stop string
            events += _delta(ReasoningDelta, self._reasoning)
            events += _delta(TextDelta, self._content)
            if self._state == "arguments" and reason == "stop":
                events += self._calls.close()
        final: FinishReason = "tool_calls" if reason == "stop" and self._calls.count else reason
        usage = Usage(prompt_tokens, self._completion_tokens, self._reasoning_tokens, cached_tokens)
        return [*events, Finish(final, usage)]

    def _text(self, text: str) -> list[Event]:
        if not text:
            return []
        match self._state:
            case "reasoning":
                ready, self._reasoning = _split(self._reasoning + text)
                return _delta(ReasoningDelta, ready)
            case "content":
                return self._content_text(self._content + text)
            case "header":
                self._calls.header += text
            case "arguments":
                return self._calls.arguments(text)
        return []  # noise between and after calls

    def _content_text(self, text: str) -> list[Event]:
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._content = True, ""
            return _delta(TextDelta, text[: min(found)])
        ready, self._content = _split(text, self._stop, holds_blanks=True)
        return _delta(TextDelta, ready)

    def _marker(self, marker: str) -> list[Event]:
        if self.stopped:
            return []
        if self._state in ("reasoning", "content"):
            return self._marker_in_text(marker)
        events: list[Event] = []
        if self._state == "header" and marker in (ARGUMENTS_BEGIN, CALL_END, SECTION_END):
            events += self._calls.open()
            self._state = "arguments"
        if self._state == "arguments" and marker in (CALL_END, SECTION_END, CALL_BEGIN):
            events += self._calls.close()
            self._state = "section"
        if marker == CALL_BEGIN:
            self._calls.header = ""
            self._state = "header"
        return events

    def _marker_in_text(self, marker: str) -> list[Event]:
        """Markers outside the tool section; all others (turns, media, reserved) are dropped."""
        if marker == "<think>":
            self._state = "reasoning"
        elif marker == "</think>" and self._state == "reasoning":
            self._state = "content"
            ready, self._reasoning = self._reasoning, ""
            return _delta(ReasoningDelta, ready)
        elif marker in (SECTION_BEGIN, CALL_BEGIN):  # also ends reasoning that was left open
            ready = [
                *_delta(ReasoningDelta, _without_singular(self._reasoning)),
                *_delta(TextDelta, _without_singular(self._content).rstrip()),
            ]
            self._reasoning = self._content = self._calls.header = ""
            self._state = "header" if marker == CALL_BEGIN else "section"
            return ready
        return []


class _Calls:
    """The calls of one answer: at most one is open, `header` is the text before its arguments."""

    def __init__(self, tools: Sequence[dict[str, Any]] | None) -> None:
        self.count = 0
        self.header = ""
        self._tools = None if tools is None else [_signature(tool) for tool in tools]
        self._open: ToolCallStart | None = None
        self._number: str | None = None  # of an open call whose name is not known yet
        self._held = ""
        self._any = False

    def open(self) -> list[Event]:
        """Read the header: `functions.NAME:N`, `NAME:N` or `N`. Any other call is skipped."""
        header = self.header.strip()
        name, colon, number = header.removeprefix("functions.").rpartition(":")
        name, number = name.strip(), number.strip()
        self._open, self._number, self._held, self._any = None, None, "", False
        if self._tools == [] or not (number.isascii() and number.isdigit()):
            return []
        if colon:
            return self._start(name, number) if name else []
        if self._tools and len(self._tools) == 1:
            return self._start(self._tools[0][0], number)
        self._number = number
        return []

    def arguments(self, text: str) -> list[Event]:
        """Blanks around the arguments are dropped, everything between them is passed on."""
        text = self._held + text
        if not self._any:
            text = text.lstrip()
        body = text.rstrip()
        if self._open is None:
            self._held = text if self._number is not None else ""
            return []
        self._held = text[len(body) :]
        self._any = self._any or bool(body)
        return [ToolCallDelta(self._open.index, body)] if body else []

    def close(self) -> list[Event]:
        """End the open call; one without arguments gets an empty object."""
        events: list[Event] = []
        if self._open is None and self._number is not None:
            text = self._held.strip() or "{}"
            names = [tool[0] for tool in self._tools or [] if _fits(text, tool)]
            if len(names) == 1:
                events += self._start(names[0], self._number)
                events += self.arguments(text)
        if self._open is not None and not self._any:
            events.append(ToolCallDelta(self._open.index, "{}"))
        self._open, self._number = None, None
        return events

    def _start(self, name: str, number: str) -> list[Event]:
        self._open = ToolCallStart(self.count, f"functions.{name}:{number}", name)
        self._held, self._any, self.count = "", False, self.count + 1
        return [self._open]


def _delta(kind: type[ReasoningDelta] | type[TextDelta], text: str) -> list[Event]:
    return [kind(text)] if text else []


def _split(text: str, stop: tuple[str, ...] = (), holds_blanks: bool = False) -> tuple[str, str]:
    """`text` as what may be emitted and what must wait for the next token."""
    bare = text.rstrip()
    cut = len(text)
    if bare.endswith(_SINGULAR_SECTION):
        cut = len(bare) - len(_SINGULAR_SECTION)
    cut = min([cut, *(_partial(text, word) for word in (*stop, _SINGULAR_SECTION))])
    if holds_blanks:
        cut = len(text[:cut].rstrip())
    return text[:cut], text[cut:]


def _partial(text: str, word: str) -> int:
    """Where the longest ending of `text` that begins `word` starts; the end if there is none."""
    for size in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:size]):
            return len(text) - size
    return len(text)


def _without_singular(text: str) -> str:
    bare = text.rstrip()
    return bare.removesuffix(_SINGULAR_SECTION) if bare.endswith(_SINGULAR_SECTION) else text


def _signature(tool: dict[str, Any]) -> tuple[str, set[str], set[str]]:
    """Name, known arguments and required arguments of a declaration, however odd it is."""
    function = tool.get("function")
    function = function if isinstance(function, dict) else {}
    schema = function.get("parameters")
    schema = schema if isinstance(schema, dict) else {}
    return str(function.get("name")), _names(schema, "properties"), _names(schema, "required")


def _names(schema: dict[str, Any], key: str) -> set[str]:
    value = schema.get(key)
    known: Iterable[Any] = value if isinstance(value, dict | list) else ()
    return {name for name in known if isinstance(name, str)}


def _fits(arguments: str, tool: tuple[str, set[str], set[str]]) -> bool:
    """Whether arguments could be meant for a tool: they hold what it needs and nothing else."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    _, known, required = tool
    return isinstance(value, dict) and required <= value.keys() <= known
