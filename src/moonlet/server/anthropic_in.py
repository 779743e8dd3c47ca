"""A request of Anthropic's messages API -> the body of a chat completion.

| here                                   | there                                            |
| -------------------------------------- | ------------------------------------------------ |
| system, messages of role system        | messages of role system                          |
| blocks text, image                     | parts of a message                               |
| blocks thinking                        | reasoning_content; what is redacted says nothing |
| blocks tool_use, tool_result           | tool_calls, messages of role tool                |
| tools with their input_schema          | tools, with a nested function                    |
| tool_choice auto, any, tool, none      | tool_choice auto, required, named, none          |
| thinking enabled or adaptive, its budget | thinking enabled, its budget                   |
| thinking disabled, or not mentioned    | thinking disabled, as Anthropic's clients expect |
| output_config.format                   | response_format                                  |

`cache_control` is not needed: every prefix is cached. The server runs no tools of its own and reads
no documents, so those are refused.
"""

import re
from collections.abc import Iterable
from typing import Any

from moonlet.server.dialect import Places, objects, wrong_type
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, choice, integer, kind_of, obj, text

Block = dict[str, Any]

_SAME = ("model", "stream", "max_tokens", "temperature", "top_p", "top_k")
_MEDIA_TYPE = re.compile(r"image/[a-z0-9.+-]{1,40}")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# A header in disguise that Claude Code puts before its system text. It differs in every request, so
# that no prompt would ever begin as the one before.
_BILLING = "x-anthropic-billing-header:"


def to_chat(body: dict[str, Any], *, counts: bool = False) -> tuple[dict[str, Any], Places]:
    """The same request as a chat completion; one that only `counts` needs no max_tokens.

    Raises ApiError that names the member or the block.
    """
    if not counts and body.get("max_tokens") is None:
        raise ApiError("max_tokens is missing", "max_tokens")
    for name in ("container", "mcp_servers"):
        if body.get(name):
            raise ApiError(f"{name} is not supported here; leave it out", name)
    messages = _Messages()
    messages.system(body.get("system"), "system")
    for index, message in enumerate(objects(body.get("messages"), "messages")):
        messages.add(message, f"messages[{index}]")
    messages.prefill()
    places = Places({"stop": "stop_sequences", **messages.places})
    chat = {name: body[name] for name in _SAME if name in body}
    chat["messages"] = messages.chat
    chat["stop"] = body.get("stop_sequences")
    chat["thinking"] = _thinking(obj(body, "thinking"))
    chat["user"] = text(obj(body, "metadata"), "user_id", within="metadata.")
    return chat | _tools(body, places) | _response_format(body, places), places


class _Messages:
    """`chat`: the messages of the chat completion; `places`: where each and its parts stood."""

    def __init__(self) -> None:
        self.chat: list[dict[str, Any]] = []
        self.places: dict[str, str] = {}

    def system(self, content: Any, where: str) -> None:
        blocks = [
            (said, place)
            for block, place in _blocks(content, where)
            if not (said := _text(block, place)).startswith(_BILLING)
        ]
        parts = [({"type": "text", "text": said}, place) for said, place in blocks if said]
        if parts:
            self._append({"role": "system"}, where, parts)

    def add(self, message: dict[str, Any], where: str) -> None:
        match message.get("role"):
            case "user":
                self._user(message.get("content"), where)
            case "assistant":
                self._assistant(message.get("content"), where)
            case "system":
                self.system(message.get("content"), f"{where}.content")
            case role:
                shown = repr(role[:40]) if isinstance(role, str) else kind_of(role)
                place = f"{where}.role"
                raise ApiError(f"{place} is {shown}, but it must be user or assistant", place)

    def prefill(self) -> None:
        """An answer that the assistant has begun is gone on with."""
        last = self.chat[-1] if self.chat else {}
        if last.get("role") == "assistant" and not last.get("tool_calls"):
            last["partial"] = True

    def _user(self, content: Any, where: str) -> None:
        """The results first, as the model was trained, then what else the user says."""
        parts = []
        blocks = list(_blocks(content, f"{where}.content"))
        for block, place in blocks:
            if block.get("type") != "tool_result":
                parts.append((_part(block, place, "text, image or tool_result"), place))
                continue
            answers = text(block, "tool_use_id", within=f"{place}.", required=True)
            result = [
                (_part(inner, inner_place, "text or image"), inner_place)
                for inner, inner_place in _blocks(block.get("content") or "", f"{place}.content")
            ]
            self._append({"role": "tool", "tool_call_id": answers}, place, result)
        if parts or not blocks:
            self._append({"role": "user"}, where, parts)

    def _assistant(self, content: Any, where: str) -> None:
        message: dict[str, Any] = {"role": "assistant"}
        parts, thoughts, calls = [], [], []
        for block, place in _blocks(content, f"{where}.content"):
            match block.get("type"):
                case "text":
                    parts.append(({"type": "text", "text": _text(block, place)}, place))
                case "thinking":
                    thought = text(block, "thinking", within=f"{place}.", required=True)
                    thoughts.append(thought or "")
                case "redacted_thinking":
                    pass
                case "tool_use":
                    to = f"messages[{len(self.chat)}].tool_calls[{len(calls)}]"
                    self.places |= {to: place, f"{to}.function": place}
                    calls.append(_call(block, place))
                case _:
                    wanted = "text, thinking, redacted_thinking or tool_use"
                    raise wrong_type(block, place, wanted)
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if calls:
            message["tool_calls"] = calls
        self._append(message, where, parts)

    def _append(
        self, message: dict[str, Any], where: str, parts: Iterable[tuple[Block, str]]
    ) -> None:
        to = f"messages[{len(self.chat)}]"
        self.places[to] = where
        content = []
        for number, (part, place) in enumerate(parts):
            self.places[f"{to}.content[{number}]"] = place
            content.append(part)
        self.chat.append({**message, "content": content})


def _blocks(content: Any, where: str) -> Iterable[tuple[Block, str]]:
    """Blocks with their places; a string is a block of text."""
    if content is None:
        return []
    if isinstance(content, str):
        return [({"type": "text", "text": content}, where)] if content else []
    if not isinstance(content, list):
        found = kind_of(content)
        raise ApiError(f"{where} must be a string or a list of blocks, not {found}", where)
    return [(block, f"{where}[{i}]") for i, block in enumerate(objects(content, where))]


def _text(block: Block, where: str) -> str:
    if block.get("type") != "text":
        raise wrong_type(block, where, "text")
    return text(block, "text", within=f"{where}.", required=True) or ""


def _part(block: Block, where: str, wanted: str) -> dict[str, Any]:
    match block.get("type"):
        case "text":
            return {"type": "text", "text": _text(block, where)}
        case "image":
            return {"type": "image_url", "image_url": {"url": _image_url(block, where)}}
    raise wrong_type(block, where, wanted)


def _image_url(block: Block, where: str) -> str:
    source, within = obj(block, "source", within=f"{where}."), f"{where}.source."
    match source.get("type"):
        case "base64":
            media_type = text(source, "media_type", within=within, required=True) or ""
            if not _MEDIA_TYPE.fullmatch(media_type):
                place = f"{within}media_type"
                raise ApiError(
                    f"{place} is {media_type[:40]!r}, but it must be one of an image, such as image/png",
                    place,
                )
            return f"data:{media_type};base64,{text(source, 'data', within=within, required=True)}"
        case "url":
            return text(source, "url", within=within, required=True) or ""
        case "file":
            return f"ms://{text(source, 'file_id', within=within, required=True)}"
    raise wrong_type(source, within.removesuffix("."), "base64, url or file")


def _call(block: Block, where: str) -> dict[str, Any]:
    within = f"{where}."
    call_id = text(block, "id", within=within, required=True)
    name = text(block, "name", within=within, required=True)
    function = {"name": name, "arguments": obj(block, "input", within=within)}
    return {"id": call_id, "type": "function", "function": function}


def _tools(body: dict[str, Any], places: Places) -> dict[str, Any]:
    """`tools`, `tool_choice` and `parallel_tool_calls`."""
    tools = []
    for index, tool in enumerate(objects(body.get("tools") or [], "tools")):
        where = f"tools[{index}]"
        if tool.get("type") not in (None, "custom"):
            raise wrong_type(tool, where, "custom: this server runs no tools of its own")
        function = {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": obj(tool, "input_schema", within=f"{where}."),
            "strict": tool.get("strict"),
        }
        function = {name: value for name, value in function.items() if value is not None}
        places.moved[f"{where}.function"] = where
        places.moved[f"{where}.function.parameters"] = f"{where}.input_schema"
        tools.append({"type": "function", "function": function})
    chosen = obj(body, "tool_choice")
    kind = choice(chosen, "type", (*_CHOICES, "tool"), within="tool_choice.")
    asked: Any = None if kind is None else _CHOICES.get(kind)
    if kind == "tool":
        name = text(chosen, "name", within="tool_choice.", required=True)
        asked = {"type": "function", "function": {"name": name}}
    one = boolean(chosen, "disable_parallel_tool_use", within="tool_choice.")
    return {"tools": tools, "tool_choice": asked, "parallel_tool_calls": not one}


def _thinking(switch: dict[str, Any]) -> dict[str, Any]:
    kinds = ("enabled", "disabled", "adaptive", "between_tools")
    kind = choice(switch, "type", kinds, within="thinking.")
    if kind in (None, "disabled"):
        return {"type": "disabled"}
    budget = integer(switch, "budget_tokens", 1, 2**31, within="thinking.")
    return {"type": "enabled"} if budget is None else {"type": "enabled", "budget_tokens": budget}


def _response_format(body: dict[str, Any], places: Places) -> dict[str, Any]:
    form = obj(obj(body, "output_config"), "format", within="output_config.")
    if choice(form, "type", ("json_schema",), within="output_config.format.") is None:
        return {}
    places.moved["response_format"] = "output_config.format"
    places.moved["response_format.json_schema"] = "output_config.format"
    schema = {"name": "output", "schema": form.get("schema")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
