"""Repair of histories that a client kept in another form than the model knows.

The model counts its calls over the whole conversation, and goes wrong where the ids it finds do not
(they stop early, or repeat calls). So ids are written anew before anything is rendered, and what a
client sees is the canonical id too. Some systems also lose what the template needs.

| word         | what was done                                                                 |
| ------------ | ----------------------------------------------------------------------------- |
| `tool_ids`   | ids became `functions.NAME:N`, N counted from 0; results follow their calls    |
| `reasoning`  | an assistant message with calls but no reasoning got an empty one              |
| `empty_text` | text parts without text were dropped                                           |
| `unanswered` | nothing: calls have no result although the conversation went on; they stay     |

Unanswered calls stay because a made-up result would be a lie, and without the call the model would
make it again. Several system messages stay as they are: each is a turn of its own in every style.
"""

from collections.abc import Sequence
from dataclasses import replace

from moonlet.chat.messages import Message, TextPart, ToolCall, canonical_id
from moonlet.errors import PromptError


def repair(messages: list[Message]) -> tuple[list[Message], list[str]]:
    """The conversation in canonical form and one word for each kind of repair.

    Of a history that is canonical all messages are the very same objects. Raises PromptError, with
    `param`, for a tool message of which nobody can say which call it answers.
    """
    words: dict[str, None] = {}
    ids = _Ids()
    repaired = []
    for index, message in enumerate(messages):
        if any(map(_is_empty, message.parts)):
            message = replace(message, parts=tuple(p for p in message.parts if not _is_empty(p)))
            words["empty_text"] = None
        if message.tool_calls and message.reasoning is None:
            message = replace(message, reasoning="")
            words["reasoning"] = None
        renamed = ids.rename(message, index)
        if renamed != message:
            words["tool_ids"] = None
        repaired.append(message if renamed == message else renamed)
    waits_now = len(messages[-1].tool_calls) if messages else 0
    if ids.num_calls - len(ids.answered) > waits_now:
        words["unanswered"] = None
    return repaired, list(words)


def next_call_index(messages: Sequence[Message]) -> int:
    """The number that the next call of a repaired conversation gets."""
    return sum(len(message.tool_calls) for message in messages)


class _Ids:
    """The ids of a conversation, met in order: new ones by old ones, and which calls wait."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.answered: set[str] = set()
        self._new: dict[str | None, str] = {}
        self._waiting: dict[str, None] = {}  # new ids of this turn's calls without a result
        self._last_role = "system"

    def rename(self, message: Message, index: int) -> Message:
        if message.role == "assistant":
            if self._last_role not in ("assistant", "tool"):
                self._waiting.clear()  # nobody will answer calls of a turn that is over
            message = replace(message, tool_calls=tuple(map(self._call, message.tool_calls)))
        elif message.role == "tool":
            message = replace(message, tool_call_id=self._answered(message.tool_call_id, index))
        self._last_role = message.role
        return message

    def _call(self, call: ToolCall) -> ToolCall:
        new = canonical_id(call.name, self.num_calls)
        self.num_calls += 1
        self._new[call.id] = new  # of calls with one id the latest is meant
        self._waiting[new] = None
        return replace(call, id=new)

    def _answered(self, old: str | None, index: int) -> str:
        new = self._new.get(old)
        if new is None and len(self._waiting) == 1:
            new = self._new[old] = next(iter(self._waiting))
        if new is None:
            raise PromptError(
                f"messages[{index}] answers the call {str(old)[:80]!r}, which no assistant message "
                f"made, and {len(self._waiting)} calls wait for a result; send the id of the call.",
                f"messages[{index}].tool_call_id",
            )
        self._waiting.pop(new, None)
        self.answered.add(new)
        return new


def _is_empty(part: object) -> bool:
    return isinstance(part, TextPart) and not part.text
