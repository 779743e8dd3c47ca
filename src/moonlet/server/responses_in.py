"""A request of OpenAI's Responses API -> the body of a chat completion.

| here                              | there                                                 |
| --------------------------------- | ----------------------------------------------------- |
| instructions, the items of input  | messages                                              |
| tools, flat                       | tools, with a nested function                         |
| tool_choice                       | tool_choice; allowed_tools leaves out the other tools |
| max_output_tokens                 | max_completion_tokens                                 |
| text.format                       | response_format                                       |
| top_logprobs, include             | logprobs, top_logprobs                                |

Hosted tools, stored prompts, conversations and work in the background need a service that runs them,
and are refused.
"""

from collections.abc import Iterable
from typing import Any

from moonlet.server.dialect import Places, objects, wrong_type
from moonlet.server.errors import ApiError
from moonlet.server.fields import choice, integer, kind_of, obj, text
from moonlet.server.responses_items import Conversation, Item

# What a chat completion calls by the same name; the last two lines are extras of local servers.
_SAME = [
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "reasoning",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "thinking",
    "chat_template_kwargs",
    "enable_thinking",
    "thinking_budget",
    "include_reasoning",
    "deadline_s",
    "stop",
    "top_k",
    "min_p",
    "seed",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
]
_REFUSED = ("background", "conversation", "prompt")
_LOGPROBS = "message.output_text.logprobs"
_OPAQUE_REASONING = "reasoning.encrypted_content"


def to_chat(body: dict[str, Any], history: Iterable[Item] = ()) -> tuple[dict[str, Any], Places]:
    """The same request as a chat completion. `history`: the items before its own `input`.

    Raises ApiError that names the member or the item.
    """
    for name in _REFUSED:
        if body.get(name):
            raise ApiError(f"{name} is not supported here; leave it out", name)
    conversation = Conversation()
    if instructions := text(body, "instructions"):
        conversation.say("system", instructions, "instructions")
    for item in history:
        conversation.add(item, "previous_response_id")
    for index, item in enumerate(input_items(body)):
        conversation.add(item, f"input[{index}]")
    places = Places({"max_completion_tokens": "max_output_tokens", "messages": "input"})
    places.moved |= conversation.places
    chat = {name: body[name] for name in _SAME if name in body}
    chat["messages"] = conversation.whole()
    chat["max_completion_tokens"] = body.get("max_output_tokens")
    return chat | _tools(body, places) | _response_format(body, places) | _logprobs(body), places


def input_items(body: dict[str, Any]) -> list[Item]:
    """`input` as items; a string is a message of the user. Raises ApiError."""
    given = body.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        found = (
            "is missing" if given is None else f"must be a string or a list, not {kind_of(given)}"
        )
        raise ApiError(f"input {found}", "input")
    return objects(given, "input")


def wants_opaque_reasoning(body: dict[str, Any]) -> bool:
    """Whether reasoning should come in a form that can be handed back unread, too."""
    return _OPAQUE_REASONING in _include(body)


def _tools(body: dict[str, Any], places: Places) -> dict[str, Any]:
    """`tools` and `tool_choice`."""
    asked = body.get("tool_choice")
    allowed = _allowed(asked) if isinstance(asked, dict) else None
    tools = []
    for index, tool in enumerate(objects(body.get("tools") or [], "tools")):
        where = f"tools[{index}]"
        if tool.get("type") != "function":
            raise wrong_type(tool, where, "function: this server runs no tools of its own")
        if allowed is None or tool.get("name") in allowed:
            places.moved[f"tools[{len(tools)}]"] = where
            places.moved[f"tools[{len(tools)}].function"] = where
            function = {name: value for name, value in tool.items() if name != "type"}
            tools.append({"type": "function", "function": function})
    places.moved["tool_choice.function"] = "tool_choice"
    if isinstance(asked, dict) and allowed is not None:
        asked = choice(asked, "mode", ("auto", "required"), within="tool_choice.")
    return {"tools": tools, "tool_choice": asked}


def _allowed(asked: dict[str, Any]) -> list[Any] | None:
    """The names of `allowed_tools`; None for another kind of choice."""
    if asked.get("type") != "allowed_tools":
        return None
    return [tool.get("name") for tool in objects(asked.get("tools"), "tool_choice.tools")]


def _logprobs(body: dict[str, Any]) -> dict[str, Any]:
    top = integer(body, "top_logprobs", 0, 20)
    if not top and _LOGPROBS not in _include(body):
        return {}
    return {"logprobs": True, "top_logprobs": top or 0}


def _include(body: dict[str, Any]) -> list[Any]:
    include = body.get("include")
    if include is not None and not isinstance(include, list):
        raise ApiError(f"include must be a list, not {kind_of(include)}", "include")
    return include or []


def _response_format(body: dict[str, Any], places: Places) -> dict[str, Any]:
    form = obj(obj(body, "text"), "format", within="text.")
    places.moved["response_format"] = "text.format"
    places.moved["response_format.json_schema"] = "text.format"
    if form.get("type") != "json_schema":
        return {"response_format": form}
    schema = {name: value for name, value in form.items() if name != "type"}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
