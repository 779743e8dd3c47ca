"""What the dialects beside chat completions share.

Each translates its request into the body of a chat completion, so that there is one place that
checks fields, repairs histories and knows the profiles; `Places` remembers where everything stood, so
that a refusal still points into what the client sent. Each tells its plain answer by replaying it
as a stream, so that the two cannot differ.
"""

import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from moonlet.chat.provider import (
    Completion,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from moonlet.errors import MediaError, PromptError
from moonlet.server.errors import ApiError, as_api_error
from moonlet.server.fields import kind_of


@dataclass
class Places:
    """Where the members of a translated body stood before: `moved["messages[3]"] = "input[5]"`."""

    moved: dict[str, str] = field(default_factory=dict)

    def relocated(self, error: ApiError | PromptError | MediaError) -> ApiError:
        """`error` about the translated body as one about the client's."""
        known = as_api_error(error)
        old = known.param
        if old is None:
            return known
        # The places that hold this one, itself first; there may be 100,000 that do not.
        ends = [len(old), *(at for at in reversed(range(len(old))) if old[at] in ".[")]
        within = [old[:end] for end in ends if old[:end] in self.moved]
        if not within:
            return known
        new = self.moved[within[0]] + old[len(within[0]) :]
        message = known.message
        for key in within:
            message = re.sub(rf"(?<![\w.]){re.escape(key)}(?!\w)", self.moved[key], message)
        return ApiError(message, new, status=known.status, kind=known.kind, code=known.code)

    async def relocate(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The same events; a prompt that cannot be rendered is told at its place. Closes `events`."""
        async with aclosing(events):
            try:
                async for event in events:
                    yield event
            except (PromptError, MediaError) as error:
                raise self.relocated(error) from error


def replay(answer: Completion) -> Iterator[Event]:
    """A whole answer as the shortest stream that tells it."""
    if answer.reasoning:
        yield ReasoningDelta(answer.reasoning)
    if answer.text or answer.logprobs:
        yield TextDelta(answer.text, logprobs=answer.logprobs)
    for index, call in enumerate(answer.tool_calls):
        yield ToolCallStart(index, call.id, call.name)
        yield ToolCallDelta(index, call.arguments)
        yield ToolCallEnd(index)
    yield Finish(answer.finish_reason, answer.usage, stop=answer.stop)


def objects(value: Any, where: str) -> list[dict[str, Any]]:
    """`value` as a list of objects. Raises ApiError that names the place."""
    if not isinstance(value, list):
        raise ApiError(f"{where} must be a list, not {kind_of(value)}", where)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            place = f"{where}[{index}]"
            raise ApiError(f"{place} must be an object, not {kind_of(item)}", place)
    return value


def wrong_type(item: dict[str, Any], where: str, wanted: str) -> ApiError:
    """The refusal of an item whose `type` is none of those `wanted`."""
    kind = item.get("type")
    shown = repr(kind[:60]) if isinstance(kind, str) else kind_of(kind)
    return ApiError(f"{where}.type is {shown}, but it must be {wanted}", f"{where}.type")


def is_json(text: str) -> bool:
    """Whether the arguments of a call are whole."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
