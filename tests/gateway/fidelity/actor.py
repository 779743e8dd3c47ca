"""An endpoint that does everything right without a model, and a way to break it.

`Actor` is a provider that writes the first value that comes to mind for any schema; the real server stands
in front of it. `Bent` is the transport of the HTTP client: it lets the server answer and then changes
what it said.
"""

import base64
import io
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import httpx2
from fastapi import FastAPI
from PIL import Image, UnidentifiedImageError

from moonlet.chat.messages import ImagePart, TextPart, canonical_id
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    ModelCard,
    ReasoningDelta,
    TextDelta,
    TextRequest,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from moonlet.chat.repair import next_call_index
from moonlet.errors import MediaError, PromptError

CARD = ModelCard("actor", 1_700_000_000, 8192, supports_images=True, supports_reasoning=True)
THOUGHT = "Let me see."
SPEECH = "one two three four five six seven eight nine ten eleven twelve"

# What was sent, the status and the body -> the latter two, changed.
Bend = Callable[[dict[str, Any], int, bytes], tuple[int, bytes]]


class Actor:
    """Tokens are characters."""

    def __init__(self, card: ModelCard = CARD) -> None:
        self.card = card

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        prompt = self._count(request)
        limit = request.max_tokens or 1000
        if prompt + limit > self.card.context_length:
            raise PromptError("That does not fit into the context.", "max_tokens")
        for choice in range(request.n):
            for event in _answer(request, choice, prompt, limit):
                yield event

    async def complete(self, request: TextRequest) -> AsyncGenerator[Event, None]:
        yield Finish("stop", Usage(1, 0, 0))

    async def count_tokens(self, request: ChatRequest) -> int:
        return self._count(request)

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def detokenize(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode(errors="replace")

    def close(self) -> None: ...

    def _count(self, request: ChatRequest) -> int:
        count = len(json.dumps(request.tools)) if request.tools else 0
        for message in request.messages:
            count += 4 + sum(len(call.arguments) for call in message.tool_calls)
            for part in message.parts:
                count += len(part.text) if isinstance(part, TextPart) else self._see(part)
        return count

    def _see(self, part: Any) -> int:
        if not self.card.supports_images or not isinstance(part, ImagePart):
            raise MediaError("This model does not see.", "messages")
        head, _, data = part.url.partition(",")
        if not head.startswith("data:image/"):
            raise MediaError("Only data URLs are opened here.", "messages")
        try:
            Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
        except (ValueError, OSError, UnidentifiedImageError, SyntaxError) as error:
            raise MediaError("That is no image.", "messages") from error
        return 50


def _answer(request: ChatRequest, choice: int, prompt: int, limit: int) -> Iterator[Event]:
    thought = THOUGHT[:limit] if request.thinking else ""
    for word in _words(thought):
        yield ReasoningDelta(word, choice)
    left = limit - len(thought)
    events = list(_calls(request) if request.must_call else _text(request, choice, left))
    made = 0
    reason: Any = "tool_calls" if request.must_call else "stop"
    stop = None
    for event in events:
        size = _size(event)
        if made + size > left:
            reason = "length"
            break
        made += size
        if isinstance(event, Finish):
            reason, stop = event.reason, event.stop
        else:
            yield event
    yield Finish(reason, Usage(prompt, len(thought) + made, len(thought)), choice, stop)


def _size(event: Event) -> int:
    match event:
        case TextDelta():
            return len(event.text)
        case ToolCallDelta():
            return len(event.arguments)
    return 0


def _text(request: ChatRequest, choice: int, left: int) -> Iterator[Event]:
    whole = SPEECH
    if request.schema is not None:
        whole = json.dumps(value_of(request.schema), ensure_ascii=False, separators=(",", ":"))
    found = [(whole.find(stop), stop) for stop in request.stop if stop in whole]
    end, stop = min(found, default=(len(whole), None))
    text = whole[: min(end, left)]
    for letter in text:
        told = ()
        if request.logprobs is not None:
            others = ((letter.encode(), -0.1), (b"?", -2.5))[: request.logprobs]
            told = (TokenLogprob(letter.encode(), -0.1, others),)
        yield TextDelta(letter, choice, told)
    yield Finish("length" if len(text) < end else "stop", Usage(0, 0, 0), choice, stop)


def _calls(request: ChatRequest) -> Iterator[Event]:
    tools = [tool["function"] for tool in request.tools or []]
    if request.only_tool is not None:
        tools = [tool for tool in tools if tool["name"] == request.only_tool]
    first = next_call_index(request.messages)
    for index in range(2 if request.parallel_tool_calls else 1):
        tool = tools[index % len(tools)]
        arguments = json.dumps(value_of(tool.get("parameters") or {}), ensure_ascii=False)
        yield ToolCallStart(index, canonical_id(tool["name"], first + index), tool["name"])
        for begin in range(0, len(arguments), 7):
            yield ToolCallDelta(index, arguments[begin : begin + 7])
        yield ToolCallEnd(index)


def _words(text: str) -> list[str]:
    return (
        [word if number == 0 else f" {word}" for number, word in enumerate(text.split(" "))]
        if text
        else []
    )


def value_of(schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    """The plainest value that satisfies a schema of fidelity/schemas.py."""
    root = schema if root is None else root
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#").removeprefix("/$defs/")
        return value_of(root["$defs"][name] if name else root, root)
    for name in ("anyOf", "oneOf"):
        if name in schema:
            options = schema[name]
            plain = next((one for one in options if one.get("type") == "null"), options[0])
            return value_of(plain, root)
    for name, pick in (("const", lambda value: value), ("enum", lambda values: values[-1])):
        if name in schema:
            return pick(schema[name])
    kind = schema.get("type", "object")
    match kind if isinstance(kind, str) else kind[-1]:
        case "object":
            wanted = schema.get("required", [])
            return {name: value_of(schema["properties"][name], root) for name in wanted}
        case "array":
            return [value_of(schema["items"], root)] * schema.get("minItems", 0)
        case "string":
            known = {"^[a-c]{2,4}-[0-9]$": "ab-1"}.get(schema.get("pattern", ""))
            date = "2020-01-31" if schema.get("format") == "date" else None
            return known or date or "é" * schema.get("minLength", 0)
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        case "boolean":
            return True
    return None


class Bent(httpx2.AsyncBaseTransport):
    """The app, called directly; `bend` changes its answers. Of requests without a JSON object it sees {}."""

    def __init__(self, app: FastAPI, bend: Bend | None = None) -> None:
        self._inner = httpx2.ASGITransport(app)
        self._bend = bend

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        sent = await request.aread()
        response = await self._inner.handle_async_request(request)
        raw, status = await response.aread(), response.status_code
        if self._bend is not None:
            status, raw = self._bend(_parsed(sent), status, raw)
        headers = {k: v for k, v in response.headers.items() if k != "content-length"}
        return httpx2.Response(status, headers=headers, content=raw)


def _parsed(sent: bytes) -> dict[str, Any]:
    try:
        value = json.loads(sent)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}
