"""`tools` and `tool_choice` of a request, checked for shape.

The declarations go on unchanged: the prompt holds them to the byte, so nothing may be re-ordered or
filled in.

| tool_choice      | thinking off   | thinking on                                           |
| ---------------- | -------------- | ----------------------------------------------------- |
| auto, none       | may, may not   | the same                                              |
| required, named  | must call      | must call once it has thought; profile kimi refuses   |
| allowed_tools    | the tools that it names, with its mode, auto or required               |
| without tools    | refused if a call is forced                                            |
"""

from dataclasses import dataclass
from typing import Any

from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, choice, kind_of, obj, text
from moonlet.server.profiles import OPEN, Profile
from moonlet.server.schemas import check_schema

MAX_TOOLS = 128


@dataclass(frozen=True)
class Tools:
    """The declarations, None when there are none or none may be called; `only` one may be forced."""

    declared: list[dict[str, Any]] | None = None
    must_call: bool = False
    only: str | None = None


def parse_tools(body: dict[str, Any], profile: Profile = OPEN, thinking: bool = False) -> Tools:
    """Raises ApiError, or PromptError for a schema that the profile does not take."""
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise ApiError(f"tools must be a list, not {kind_of(tools)}", "tools")
    tools = tools or []
    if len(tools) > MAX_TOOLS:
        raise ApiError(f"tools has {len(tools)} entries, at most {MAX_TOOLS}", "tools")
    names = [_name(tool, f"tools[{i}]", profile) for i, tool in enumerate(tools)]
    for name in names:
        if names.count(name) > 1:
            raise ApiError(f"tools declares {name!r} more than once", "tools")
    asked = body.get("tool_choice")
    if isinstance(asked, dict) and asked.get("type") == "allowed_tools":
        allowed, asked = _allowed(asked, names)
        tools = [tool for tool, name in zip(tools, names, strict=True) if name in allowed]
        names = allowed
    kind, only = _choice(asked)
    if profile.openai_rules and kind is not None and not tools:
        raise ApiError("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    if kind == "none" or (not tools and kind in (None, "auto")):
        return Tools()
    if kind in (None, "auto"):
        return Tools(tools)
    _check_forced(kind or "", only, names, profile, thinking)
    return Tools(tools, True, only)


def _choice(raw: Any) -> tuple[str | None, str | None]:
    """(auto, none, required or specified; the tool that is specified). Raises ApiError."""
    if raw is None or raw in ("auto", "none", "required"):
        return raw, None
    if isinstance(raw, dict) and raw.get("type") == "function":
        # Responses writes the name beside the type, chat completions inside `function`.
        function, within = raw.get("function", raw), "tool_choice.function."
        if not isinstance(function, dict):
            raise ApiError("tool_choice.function must be an object", "tool_choice")
        return "specified", text(function, "name", within=within, required=True)
    shown = repr(raw[:40]) if isinstance(raw, str) else kind_of(raw)
    raise ApiError(
        f"tool_choice must be auto, none, required, a named function or allowed_tools, not {shown}",
        "tool_choice",
    )


def _allowed(raw: dict[str, Any], names: list[str]) -> tuple[list[str], str]:
    """The tools that OpenAI's `allowed_tools` leaves, and auto or required. Raises ApiError."""
    within = "tool_choice.allowed_tools."
    spec = obj(raw, "allowed_tools", within="tool_choice.") or raw  # some write it flat
    mode = choice(spec, "mode", ("auto", "required"), within=within) or "auto"
    listed = spec.get("tools")
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise ApiError(f"{within}tools must be a list of functions", f"{within}tools")
    allowed = []
    for tool in listed:
        function = obj(tool, "function", within=f"{within}tools.") or tool
        name = text(function, "name", within=f"{within}tools.function.", required=True) or ""
        if name not in names:
            raise ApiError(
                f"{within}tools names {name[:80]!r}, which tools do not have", f"{within}tools"
            )
        allowed.append(name)
    return allowed, mode


def _check_forced(
    kind: str, only: str | None, names: list[str], profile: Profile, thinking: bool
) -> None:
    if not names:
        raise ApiError(f"tool_choice '{kind}' needs tools, and there are none", "tool_choice")
    if only is not None and only not in names:
        raise ApiError(f"tool_choice names {only[:80]!r}, which tools do not have", "tool_choice")
    if thinking and not profile.forces_thinkers:
        raise ApiError(f"tool_choice '{kind}' is incompatible with thinking enabled", "tool_choice")


def _name(tool: Any, where: str, profile: Profile) -> str:
    """The function name of one declaration that has the right shape."""
    if not isinstance(tool, dict):
        raise ApiError(f"{where} must be an object, not {kind_of(tool)}", where)
    if tool.get("type") == "builtin_function":
        raise ApiError(
            f"{where}: this server has no built-in functions such as $web_search; declare a function "
            "and run it yourself",
            f"{where}.type",
        )
    if tool.get("type") != "function":
        raise ApiError(f"{where}.type must be 'function'", f"{where}.type")
    function, within = obj(tool, "function", within=f"{where}."), f"{where}.function."
    name = text(function, "name", within=within, required=True) or ""
    if not profile.tool_name.fullmatch(name):
        raise ApiError(
            f"{within}name is {name[:80]!r}, but it must match ^{profile.tool_name.pattern}$",
            f"{within}name",
        )
    text(function, "description", within=within)
    parameters = obj(function, "parameters", within=within)
    strict = boolean(function, "strict", within=within)
    if parameters and (profile.strict_schemas if strict is None else strict):
        check_schema(parameters, f"{within}parameters", profile)
    return name
