"""`tools` and `tool_choice` of a request, checked for shape.

The declarations go on unchanged: the prompt holds them to the byte, so nothing may be re-ordered or
filled in. Forced calls need a grammar and are refused until there is one.
"""

import re
from typing import Any

from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, kind_of, obj, text

MAX_TOOLS = 128
# Wider than the names of the OpenAI API by the dot, which tool servers use.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_tools(body: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The declarations, or None when there are none or none may be called. Raises ApiError."""
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise ApiError(f"tools must be a list, not {kind_of(tools)}", "tools")
    if len(tools or []) > MAX_TOOLS:
        raise ApiError(f"tools has {len(tools or [])} entries, at most {MAX_TOOLS}", "tools")
    names = [_name(tool, f"tools[{i}]") for i, tool in enumerate(tools or [])]
    for name in names:
        if names.count(name) > 1:
            raise ApiError(f"tools declares {name!r} more than once", "tools")
    return (tools or None) if _may_call(body.get("tool_choice")) else None


def _may_call(tool_choice: Any) -> bool:
    if tool_choice in (None, "auto", "none"):
        return tool_choice != "none"
    if tool_choice == "required" or isinstance(tool_choice, dict):
        raise ApiError("a forced tool_choice is not supported yet; use auto or none", "tool_choice")
    raise ApiError("tool_choice must be auto, none, required or a named function", "tool_choice")


def _name(tool: Any, where: str) -> str:
    """The function name of one declaration that has the right shape."""
    if not isinstance(tool, dict):
        raise ApiError(f"{where} must be an object, not {kind_of(tool)}", where)
    if tool.get("type") != "function":
        raise ApiError(f"{where}.type must be 'function'", f"{where}.type")
    function, within = obj(tool, "function", within=f"{where}."), f"{where}.function."
    name = text(function, "name", within=within, required=True) or ""
    if not _NAME.fullmatch(name):
        raise ApiError(
            f"{within}name is {name[:80]!r}, but it must be 1 to 64 of a-z, A-Z, 0-9, '_', '-', '.'",
            f"{within}name",
        )
    text(function, "description", within=within)
    obj(function, "parameters", within=within)
    boolean(function, "strict", within=within)
    return name
