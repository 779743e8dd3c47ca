"""Conversations: OpenAI-shaped dictionaries become frozen dataclasses, or a PromptError that points.

Lenient where real clients differ and the meaning is clear (a bare string for `image_url`,
`reasoning` for `reasoning_content`, an object for `arguments`, `developer` for `system`); strict
about everything else, because a field that is silently dropped changes the prompt.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from moonlet.errors import PromptError

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class TextPart:
    """Plain text of a message. It never contains a special token, whatever it spells."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An image by its URL (in practice a data URL); it is opened when the prompt is rendered."""

    url: str


@dataclass(frozen=True)
class VideoPart:
    """A video by its URL."""

    url: str


Part = TextPart | ImagePart | VideoPart


@dataclass(frozen=True)
class ToolCall:
    """One call made by the assistant. `arguments` is the exact text, normally a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn. `reasoning` is None when the client sent none, which differs from empty.

    partial: the last message, an assistant's, which the answer goes on with where it ends.
    """

    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    partial: bool = False

    @property
    def text(self) -> str:
        """The text parts, joined without a separator as the template joins them."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def canonical_id(name: str, index: int) -> str:
    """The id of call number `index` of a conversation, as the model writes it itself."""
    return f"functions.{name}:{index}"


def parse_messages(raw: Any) -> list[Message]:
    """Messages of a request. Raises PromptError with `param` such as "messages[2].content"."""
    if not isinstance(raw, list):
        found = (
            "messages is missing." if raw is None else f"messages must be a list, not {_kind(raw)}."
        )
        raise PromptError(found, "messages")
    if not raw:
        raise PromptError("messages must hold at least one message.", "messages")
    messages = [_message(item, f"messages[{index}]") for index, item in enumerate(raw)]
    called = False
    for index, message in enumerate(messages):
        called = called or bool(message.tool_calls)
        if message.role == "tool" and not called:
            raise PromptError(
                "A tool message must follow an assistant message with tool_calls.",
                f"messages[{index}]",
            )
        if message.partial and index < len(messages) - 1:
            raise PromptError("Only the last message can be partial.", f"messages[{index}].partial")
    return messages


def _message(raw: Any, where: str) -> Message:
    if not isinstance(raw, dict):
        raise _bad(where, f"must be an object, not {_kind(raw)}.")
    role = _role(raw.get("role"), f"{where}.role")
    calls = _tool_calls(raw, where) if role == "assistant" else ()
    call_id = _optional_text(raw, "tool_call_id", where) if role == "tool" else None
    if role == "tool" and not call_id:
        raise PromptError(
            "A tool message needs the tool_call_id of the call that it answers.",
            f"{where}.tool_call_id",
        )
    return Message(
        role=role,
        parts=_parts(raw.get("content"), role, bool(calls), f"{where}.content"),
        name=_optional_text(raw, "name", where) or None,
        reasoning=_reasoning(raw, where) if role == "assistant" else None,
        tool_calls=calls,
        tool_call_id=call_id,
        partial=_partial(raw, role, bool(calls), f"{where}.partial"),
    )


def _partial(raw: dict[str, Any], role: Role, has_calls: bool, where: str) -> bool:
    partial = raw.get("partial")
    if partial is not None and not isinstance(partial, bool):
        raise _bad(where, f"must be true or false, not {_kind(partial)}.")
    if partial and role != "assistant":
        raise PromptError(f"A {role} message cannot be partial, only an assistant's can.", where)
    if partial and has_calls:
        raise PromptError("A message with tool_calls is complete and cannot be partial.", where)
    return bool(partial)


def _role(raw: Any, where: str) -> Role:
    match raw:
        case "system" | "developer":
            return "system"
        case "user" | "assistant" | "tool":
            return raw
    if raw is None:
        raise _bad(where, "is missing.")
    raise _bad(where, f"must be system, developer, user, assistant or tool, not {_show(raw)}.")


def _parts(raw: Any, role: Role, has_calls: bool, where: str) -> tuple[Part, ...]:
    if raw is None:
        # An assistant turn may consist of its calls, or of reasoning that the budget cut off.
        if role == "assistant":
            return ()
        raise PromptError(f"A {role} message needs content.", where)
    if isinstance(raw, str):
        if not raw and role == "user":
            raise PromptError("text content is empty.", where)
        return (TextPart(raw),) if raw else ()
    if not isinstance(raw, list):
        raise _bad(where, f"must be a string or a list of parts, not {_kind(raw)}.")
    parts = tuple(_part(item, role, f"{where}[{index}]") for index, item in enumerate(raw))
    if role == "user" and all(part == TextPart("") for part in parts):
        raise PromptError("text content is empty.", f"{where}[0].text" if parts else where)
    return parts


def _part(raw: Any, role: Role, where: str) -> Part:
    if not isinstance(raw, dict):
        raise _bad(where, f"must be an object with a type, not {_kind(raw)}.")
    match raw.get("type"):
        case "text":
            return _text_part(raw, "text", where)
        case "refusal" if role == "assistant":  # OpenAI's: the text of an answer that declined
            return _text_part(raw, "refusal", where)
        case "image_url" | "video_url" as kind:
            if role not in ("user", "tool"):
                raise PromptError(f"A {role} message cannot hold an {kind} part.", where)
            url = _url(raw.get(kind), f"{where}.{kind}")
            return ImagePart(url) if kind == "image_url" else VideoPart(url)
        case other:
            raise _bad(
                f"{where}.type", f"must be text, image_url or video_url, not {_show(other)}."
            )


def _text_part(raw: dict[str, Any], member: str, where: str) -> TextPart:
    text = raw.get(member)
    if not isinstance(text, str):
        raise _bad(f"{where}.{member}", f"must be a string, not {_kind(text)}.")
    return TextPart(text)


def _url(raw: Any, where: str) -> str:
    url = raw.get("url") if isinstance(raw, dict) else raw
    if not isinstance(url, str) or not url:
        raise _bad(where, "must be a URL or an object with a url.")
    return url


def _reasoning(raw: dict[str, Any], where: str) -> str | None:
    """Kimi says `reasoning_content`; some servers and clients say `reasoning`."""
    official = _optional_text(raw, "reasoning_content", where)
    return official if official is not None else _optional_text(raw, "reasoning", where)


def _tool_calls(raw: dict[str, Any], where: str) -> tuple[ToolCall, ...]:
    calls = raw.get("tool_calls")
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise _bad(f"{where}.tool_calls", f"must be a list, not {_kind(calls)}.")
    return tuple(_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls))


def _tool_call(raw: Any, where: str) -> ToolCall:
    function = raw.get("function") if isinstance(raw, dict) else None
    if not isinstance(function, dict):
        raise _bad(where, "must be an object with an id and a function.")
    call_id, name = raw.get("id"), function.get("name")
    if not isinstance(call_id, str) or not call_id:
        raise _bad(f"{where}.id", "must be a non-empty string.")
    if not isinstance(name, str) or not name:
        raise _bad(f"{where}.function.name", "must be a non-empty string.")
    return ToolCall(call_id, name, _arguments(function.get("arguments"), where))


def _arguments(raw: Any, where: str) -> str:
    """A string stays untouched: re-serialised JSON would differ from what the model produced."""
    where = f"{where}.function.arguments"
    if raw is None:
        return "{}"
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, dict):
        raise _bad(where, f"must be a string or an object, not {_kind(raw)}.")
    try:
        return json.dumps(raw, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _bad(where, "cannot be written as JSON.") from error


def _optional_text(raw: dict[str, Any], key: str, where: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise _bad(f"{where}.{key}", f"must be a string, not {_kind(value)}.")
    return value


def _bad(where: str, detail: str) -> PromptError:
    return PromptError(f"{where} {detail}", where)


def _kind(value: Any) -> str:
    """JSON's name for the type of `value`."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"a {type(value).__name__}"


def _show(value: Any) -> str:
    return repr(value[:40]) if isinstance(value, str) else _kind(value)
