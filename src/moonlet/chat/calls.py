"""The tool calls of one answer: headers read, ids given, arguments passed on.

A header is `functions.NAME:N`, `NAME:N`, `N`, or the name of a declared tool with no usable number.
N counts the calls of the whole conversation from 0. What the model wrote stays; only where N is
missing or taken does the call get the next free one.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moonlet.chat.held import BLANKS
from moonlet.chat.messages import canonical_id
from moonlet.chat.provider import Event, ToolCallDelta, ToolCallEnd, ToolCallStart

logger = logging.getLogger(__name__)

_MAX_DIGITS = 9  # of a number in a header; int() refuses some thousands


@dataclass(frozen=True)
class Declared:
    """What a declaration says of a tool's arguments, however odd it is."""

    name: str
    known: frozenset[str]
    required: frozenset[str]

    @classmethod
    def from_tool(cls, tool: dict[str, Any]) -> "Declared":
        function = tool.get("function")
        function = function if isinstance(function, dict) else {}
        schema = function.get("parameters")
        schema = schema if isinstance(schema, dict) else {}
        known, required = (_names(schema.get(key)) for key in ("properties", "required"))
        return cls(str(function.get("name")), known, required)

    def fits(self, arguments: Any) -> bool:
        """Whether arguments could be meant for it: they hold what it needs and nothing else."""
        return isinstance(arguments, dict) and self.required <= arguments.keys() <= self.known


class Calls:
    """At most one call is open; `header` is the text before its arguments, in pieces.

    `tools` are None when the declarations are not known, and empty when nothing may be called.
    `first_index` is the number of the next call of the conversation: all below it are taken.
    """

    def __init__(self, tools: Sequence[Declared] | None, first_index: int = 0) -> None:
        self.count = 0
        self.header: list[str] = []
        self._tools = tools
        self._first_index = first_index
        self._next_index = first_index
        self._used: set[int] = set()
        self._open: ToolCallStart | None = None
        self._nameless: str | None = None  # the number of a call whose arguments must name it
        self._arguments: list[str] = []  # of a nameless call
        self._blanks: list[str] = []  # after the arguments so far
        self._any = False

    def open(self) -> list[Event] | None:
        """Read the header and begin the call; None when it can be no call, which is then skipped."""
        header = "".join(self.header).strip()
        self._open = self._nameless = None
        if self._tools is not None and not self._tools:
            return None
        body = header.removeprefix("functions.").strip()
        name, colon, number = (part.strip() for part in body.rpartition(":"))
        if not _is_number(number):
            named = [whole for whole in (body, name) if self._declares(whole)]
            return self._start(named[0], None) if named else None
        if colon:
            return self._start(name, number) if name else None
        if self._tools is not None and len(self._tools) == 1:
            return self._start(self._tools[0].name, number)
        self._nameless, self._arguments = number, []
        return []

    def arguments(self, text: str) -> list[Event]:
        """Blanks around the arguments are dropped, everything between them is passed on."""
        if self._nameless is not None:
            self._arguments.append(text)
            return []
        if self._open is None:
            return []
        text = text if self._any else text.lstrip(BLANKS)
        body = text.rstrip(BLANKS)
        if not body:
            self._blanks.append(text)
            return []
        body = "".join([*self._blanks, body])
        self._any, self._blanks = True, [text[len(text.rstrip(BLANKS)) :]]
        return [ToolCallDelta(self._open.index, body)]

    def close(self) -> list[Event]:
        """End the open call; one without arguments gets an empty object."""
        events: list[Event] = []
        if self._nameless is not None:
            text, number = "".join(self._arguments).strip(BLANKS) or "{}", self._nameless
            self._nameless = None
            names = self._names_that_fit(text)
            if len(names) == 1:
                events += [*self._start(names[0], number), *self.arguments(text)]
        if self._open is not None:
            if not self._any:
                events.append(ToolCallDelta(self._open.index, "{}"))
            events.append(ToolCallEnd(self._open.index))
        self._open = None
        return events

    def _start(self, name: str, number: str | None) -> list[Event]:
        if self._tools is not None and not self._declares(name):
            logger.warning("the model called %.80r, which is not declared", name)
        self._open = ToolCallStart(self.count, canonical_id(name, self._index(number)), name)
        self._blanks, self._any, self.count = [], False, self.count + 1
        return [self._open]

    def _index(self, number: str | None) -> int:
        """The number that the model wrote, if it is new in this conversation, else the next."""
        index = -1 if number is None else int(number)
        if index < self._first_index or index in self._used:
            self._next_index = max(self._next_index, self._first_index + self.count)
            while self._next_index in self._used:
                self._next_index += 1
            index = self._next_index
        self._used.add(index)
        return index

    def _declares(self, name: str) -> bool:
        return any(tool.name == name for tool in self._tools or ())

    def _names_that_fit(self, text: str) -> list[str]:
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            return []
        return [tool.name for tool in self._tools or () if tool.fits(arguments)]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def _names(value: Any) -> frozenset[str]:
    known: Iterable[Any] = value if isinstance(value, dict | list) else ()
    return frozenset(name for name in known if isinstance(name, str))
