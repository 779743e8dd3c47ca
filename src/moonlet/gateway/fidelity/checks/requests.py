"""Requests that no API can serve: each has to be a 400 with an error object."""

from typing import Any

from moonlet.gateway.fidelity.check import Group
from moonlet.gateway.fidelity.endpoint import Endpoint, user
from moonlet.gateway.fidelity.errors import Failed

group = Group("requests")

BODIES: dict[str, tuple[str, bytes]] = {
    "not-json": ("a body that is no JSON", b'{"model": '),
    "list": ("a body that is a list", b"[1, 2]"),
    "empty": ("an empty body", b""),
}
FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "no-model": ("a request without a model", {"model": None}),
    "no-messages": ("a request without messages", {"messages": None}),
    "empty-messages": ("an empty list of messages", {"messages": []}),
    "messages-text": ("messages that are a string", {"messages": "hi"}),
    "unknown-role": ("an unknown role", {"messages": [{"role": "robot", "content": "hi"}]}),
    "no-role": ("a message without a role", {"messages": [{"content": "hi"}]}),
    "content-number": ("a content that is a number", {"messages": [user(7)]}),
    "unknown-part": ("an unknown kind of part", {"messages": [user([{"type": "smell"}])]}),
    "temperature-text": ("a temperature that is a word", {"temperature": "hot"}),
    "stream-text": ("a stream that is a word", {"stream": "perhaps"}),
    "max-tokens-text": ("a token limit that is a word", {"max_tokens": "many"}),
    "max-tokens-negative": ("a negative token limit", {"max_tokens": -1}),
    "stop-number": ("a stop that is a number", {"stop": 3}),
    "top-logprobs-alone": ("top_logprobs without logprobs", {"top_logprobs": 2}),
    "top-logprobs-many": ("21 top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    "tool-message-alone": (
        "a tool message that answers no call",
        {"messages": [user("hi"), {"role": "tool", "tool_call_id": "x", "content": "1"}]},
    ),
}


async def _bare(endpoint: Endpoint, name: str) -> None:
    what, body = BODIES[name]
    reply = await endpoint.send(body)
    if reply.status != 400:
        raise Failed(f"{what} was answered with {reply.told}, not with 400")


async def _field(endpoint: Endpoint, name: str) -> None:
    what, fields = FIELDS[name]
    await endpoint.refused(what, **fields)


for _name in BODIES:
    group.add(_name, BODIES[_name][0], lambda endpoint, name=_name: _bare(endpoint, name))
for _name in FIELDS:
    group.add(_name, FIELDS[_name][0], lambda endpoint, name=_name: _field(endpoint, name))
