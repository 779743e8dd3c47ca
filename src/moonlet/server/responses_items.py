"""The items of a conversation in OpenAI's Responses API -> messages of a chat completion.

    message                 a turn of its role, strings and parts
    reasoning               thinking of the assistant's turn
    function_call           a call in it
    function_call_output    the result of a call, matched by its call_id

Reasoning, a message of the assistant and calls that follow one another are one turn there.
"""

import base64
import binascii
from typing import Any

from moonlet.server.dialect import objects, wrong_type
from moonlet.server.errors import ApiError
from moonlet.server.fields import kind_of, text

Item = dict[str, Any]

_ITEM_TYPES = "message, function_call, function_call_output or reasoning"
_PART_TYPES = "input_text, input_image, output_text or refusal"
_OPAQUE = "moonlet:"


class Conversation:
    """Messages as items join them, and the `places` of each among the items."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: dict[str, str] = {}
        self._turn: dict[str, Any] | None = None  # the assistant's, while it can still grow

    def whole(self) -> list[dict[str, Any]]:
        """The messages, when all items are in: of each turn the pieces of reasoning joined, once."""
        for message in self.messages:
            if "reasoning_content" in message:
                message["reasoning_content"] = "".join(message["reasoning_content"])
        return self.messages

    def say(self, role: str, content: Any, where: str, **more: Any) -> None:
        """A turn of somebody else than the assistant."""
        self._turn = None
        self._append({"role": role, "content": content, **more}, where)

    def add(self, item: Item, where: str) -> None:
        """Raises ApiError for an item that cannot be used."""
        match item.get("type", "message"):
            case "message":
                self._message(item, where)
            case "reasoning":
                turn = self._assistant(where, not_with=("content", "tool_calls"))
                turn.setdefault("reasoning_content", []).append(_reasoning(item, where))
            case "function_call":
                calls = self._assistant(where).setdefault("tool_calls", [])
                to = f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}]"
                self.places |= {to: where, f"{to}.function": where}
                calls.append(_call(item, where))
            case "function_call_output":
                call_id = text(item, "call_id", within=f"{where}.", required=True)
                content = _content(item.get("output"), f"{where}.output")
                self.places[f"messages[{len(self.messages)}].content"] = f"{where}.output"
                self.say("tool", content, where, tool_call_id=call_id)
            case _:
                raise wrong_type(item, where, _ITEM_TYPES)

    def _message(self, item: Item, where: str) -> None:
        role = text(item, "role", within=f"{where}.", required=True) or ""
        content = _content(item.get("content"), f"{where}.content")
        if role == "assistant":
            self._assistant(where, not_with=("content", "tool_calls"))["content"] = content
        elif role in ("user", "system", "developer"):
            self.say(role, content, where)
        else:
            place = f"{where}.role"
            wanted = "user, assistant, system or developer"
            raise ApiError(f"{place} is {role[:40]!r}, but it must be {wanted}", place)

    def _assistant(self, where: str, not_with: tuple[str, ...] = ()) -> dict[str, Any]:
        """The assistant's turn that can still grow; a new one if it has one of `not_with`."""
        if self._turn is None or any(name in self._turn for name in not_with):
            self._turn = {"role": "assistant"}
            self._append(self._turn, where)
        return self._turn

    def _append(self, message: dict[str, Any], where: str) -> None:
        self.places[f"messages[{len(self.messages)}]"] = where
        self.messages.append(message)


def opaque(reasoning: str) -> str:
    """`reasoning` as `encrypted_content`, for clients that hand back that and drop the open text.

    It is no secret, but without it their tool loops would go on as if the model had never thought.
    """
    return _OPAQUE + base64.b64encode(reasoning.encode("utf-8", "replace")).decode()


def _reasoning(item: Item, where: str) -> str:
    """The open text where it was kept, else what `opaque` hid; a foreign cipher says nothing."""
    pieces = []
    for index, part in enumerate(objects(item.get("content") or [], f"{where}.content")):
        pieces.append(text(part, "text", within=f"{where}.content[{index}].") or "")
    cipher = text(item, "encrypted_content", within=f"{where}.") or ""
    if pieces or not cipher.startswith(_OPAQUE):
        return "".join(pieces)
    try:
        return base64.b64decode(cipher[len(_OPAQUE) :], validate=True).decode()
    except (binascii.Error, ValueError):
        place = f"{where}.encrypted_content"
        raise ApiError(f"{place} is damaged; send it as it was received", place) from None


def _call(item: Item, where: str) -> dict[str, Any]:
    within = f"{where}."
    function = {
        "name": text(item, "name", within=within, required=True),
        "arguments": text(item, "arguments", within=within),
    }
    call_id = text(item, "call_id", within=within, required=True)
    return {"id": call_id, "type": "function", "function": function}


def _content(value: Any, where: str) -> Any:
    """A string, or the parts of a message as chat completions spell them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ApiError(f"{where} must be a string or a list of parts, not {kind_of(value)}", where)
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(objects(value, where))]


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    within = f"{where}."
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": text(part, "text", within=within, required=True)}
        case "refusal":
            return {"type": "text", "text": text(part, "refusal", within=within, required=True)}
        case "input_image":
            url = text(part, "image_url", within=within)
            file_id = text(part, "file_id", within=within)
            if not url and not file_id:
                raise ApiError(f"{where} has neither image_url nor file_id", where)
            return {"type": "image_url", "image_url": {"url": url or f"ms://{file_id}"}}
    raise wrong_type(part, where, _PART_TYPES)
