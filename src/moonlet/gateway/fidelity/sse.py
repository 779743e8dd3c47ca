"""Server-sent events taken apart, in the order in which they came."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerEvent:
    """One event: its name where it has one, and its data lines joined by newlines."""

    name: str | None
    data: str


def read_events(raw: bytes) -> list[ServerEvent]:
    """All events of a whole stream; comments are left out, as are events without data.

    The last one counts even if the stream was cut off before the empty line that ends it: whoever
    compares wants to see what was sent.
    """
    events: list[ServerEvent] = []
    name: str | None = None
    data: list[str] = []
    for line in [*_lines(raw), ""]:
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            continue
        if data:
            events.append(ServerEvent(name, "\n".join(data)))
        name, data = None, []
    return events


def _lines(raw: bytes) -> list[str]:
    """Only these three end a line; `splitlines` knows more, which JSON may hold as they are."""
    text = raw.decode("utf-8", "replace").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
