"""The typed, named events that the other dialects stream."""

from typing import Any

from moonlet.gateway.fidelity.client import Reply, parse_json, shown
from moonlet.gateway.fidelity.errors import Failed
from moonlet.gateway.fidelity.schemas import DIGIT, FLAG, closed
from moonlet.gateway.fidelity.shape import needed

Event = dict[str, Any]
SCHEMA = closed(
    {"n": DIGIT, "sure": FLAG}, "n", "sure"
)  # of the call that is forced in each dialect


def typed_events(reply: Reply) -> list[Event]:
    """The typed events of a stream. Raises Failed unless each is named by its type."""
    if reply.status != 200:
        raise Failed(f"a stream was answered with {reply.told}")
    events = []
    for number, event in enumerate(reply.events):
        try:
            value = parse_json(event.data)
        except ValueError:
            raise Failed(f"event {number} is no JSON: {shown(event.data)}") from None
        kind = needed(value, "type", str, f"event {number}")
        if event.name != kind:
            raise Failed(f"event {number} is named {shown(event.name)} and has the type {kind}")
        events.append(value)
    if not events:
        raise Failed("the stream has no event")
    return events
