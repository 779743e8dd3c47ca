"""The bytes of a stream of server-sent events, cut anywhere -> JSON objects, within bounds.

One line is one event, as all endpoints of this API send them; what is not `data:` (comments, names, ids)
is skipped. Whoever sends is not trusted: a line, the whole and the nesting have limits.
"""

import json
from typing import Any

from moonlet.errors import UpstreamError

MAX_LINE = 4 * 2**20  # bytes; the largest whole answer is below that
MAX_BYTES = 512 * 2**20  # of one answer: a context full of tokens, each in a chunk of its own
MAX_STRUCTURE = 100_000  # commas and brackets of one event
MAX_DEPTH = 64

_DONE = b"[DONE]"


class Events:
    """`push` bytes and get the objects of the events that they complete; `done` once [DONE] has come.

    who: what errors call the sender. Every failure is an UpstreamError.
    """

    def __init__(self, who: str) -> None:
        self.done = False
        self._who = who
        self._rest = bytearray()  # of a line that has not ended
        self._searched = 0  # bytes of it that hold no newline
        self._bytes = 0

    def push(self, data: bytes) -> list[dict[str, Any]]:
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            raise UpstreamError(f"{self._who} sent more than {MAX_BYTES} bytes without an end")
        self._rest += data
        found, begin = [], 0
        while (end := self._rest.find(b"\n", max(begin, self._searched))) >= 0:
            found += self._line(bytes(self._rest[begin:end]))
            begin = end + 1
        del self._rest[:begin]
        self._searched = len(self._rest)
        self._check(self._searched)
        return found

    def end(self) -> list[dict[str, Any]]:
        """What the last line holds, where nothing ended it."""
        rest, self._rest = bytes(self._rest), bytearray()
        return self._line(rest)

    def _line(self, line: bytes) -> list[dict[str, Any]]:
        self._check(len(line))
        if self.done or not line.startswith(b"data:"):
            return []
        data = line[len(b"data:") :].strip()
        if data == _DONE:
            self.done = True
        return [] if self.done or not data else [parse_object(data, self._who)]

    def _check(self, length: int) -> None:
        if length > MAX_LINE:
            raise UpstreamError(
                f"{self._who} sent a line of more than {MAX_LINE} bytes, which is no event of this API"
            )


def parse_object(data: bytes, who: str) -> dict[str, Any]:
    """`data` as a JSON object of well-formed text and finite numbers. Raises UpstreamError."""
    try:
        if sum(map(data.count, (b"[", b"{", b","))) > MAX_STRUCTURE:
            raise ValueError("too much structure")
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
        if not isinstance(value, dict) or _depth(value) > MAX_DEPTH:
            raise ValueError("no object, or one that is too deep")
        # An escape can spell half a character, which no UTF-8 can carry on.
        return _whole(value) if b"\\u" in data else value
    except (ValueError, RecursionError):
        raise UpstreamError(f"{who} does not speak the OpenAI API: it sent {data[:80]!r}") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _depth(value: Any) -> int:
    """Levels of nesting, counted no further than one above what is allowed."""
    row, depth = [value], 0
    while row and depth <= MAX_DEPTH:
        row = [
            child
            for item in row
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        depth += 1
    return depth


def _whole(value: dict[str, Any]) -> dict[str, Any]:
    """The same with U+FFFD for every half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
