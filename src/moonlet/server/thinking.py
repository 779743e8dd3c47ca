"""Every server's switch for thinking, read as one.

| said by                          | on or off                            | budget in tokens           |
| -------------------------------- | ------------------------------------ | -------------------------- |
| Kimi (and Anthropic's budget)    | thinking.type                        | thinking.budget_tokens     |
| vLLM, SGLang                     | chat_template_kwargs.thinking, .enable_thinking | thinking_token_budget |
| OpenAI, llama-server, Kimi K3    | reasoning_effort ("none" is off)     | thinking_budget_tokens     |
| OpenRouter, Together             | reasoning.enabled, reasoning.effort  | reasoning.max_tokens       |
| Alibaba                          | enable_thinking                      | thinking_budget            |

A budget of 0 means off. The model knows no efforts: every one but "none" is on. Two that disagree are
refused. Kept from earlier turns: thinking.keep, chat_template_kwargs.preserve_thinking. Left out of the
answer, though it takes place: include_reasoning (vLLM), reasoning.exclude (OpenRouter).
"""

from dataclasses import dataclass
from typing import Any

from moonlet.chat.provider import ModelCard
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, choice, integer, obj
from moonlet.server.profiles import OPEN, Profile

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True)
class Thinking:
    """What a request wants: `budget` in tokens, `shown` in the answer.

    foreign: it was said in the words of another API, of which a client may not know that they are read.
    """

    on: bool
    preserve: bool = False
    budget: int | None = None
    shown: bool = True
    foreign: bool = False


def parse_thinking(body: dict[str, Any], card: ModelCard, profile: Profile = OPEN) -> Thinking:
    """Raises ApiError when two switches disagree, or for thinking that the model cannot do."""
    kimi, router = obj(body, "thinking"), obj(body, "reasoning")
    template = obj(body, "chat_template_kwargs")
    unknown = sorted(kimi.keys() - set(profile.thinking_members))
    if unknown:
        known = " and ".join(profile.thinking_members)
        raise ApiError(f"thinking has no member {unknown[0][:80]!r}, only {known}", "thinking")
    budget = _budget(body, kimi, router, card)
    wishes = {*_switches(body, kimi, router, template), False if budget == 0 else None} - {None}
    if len(wishes) == 2:
        raise ApiError("thinking is switched on and off in the same request", "thinking")
    if True in wishes and not card.supports_reasoning:
        raise ApiError(f"the model {card.id!r} cannot think; leave the switch out", "thinking")
    on = card.supports_reasoning and False not in wishes
    keep = choice(kimi, "keep", ("all",), within="thinking.") == "all"
    preserve = boolean(template, "preserve_thinking", within="chat_template_kwargs.")
    boolean(body, "stream_reasoning")  # SGLang's: here the thinking always streams
    hidden = (
        boolean(body, "include_reasoning") is False
        or boolean(router, "exclude", within="reasoning.") is True
    )
    foreign = (
        body.get("enable_thinking") is not None
        or router.get("enabled") is not None
        or (body.get("reasoning_effort") == "none" and not profile.openai_rules)
    )
    return Thinking(on, keep or bool(preserve), budget if on else None, not hidden, foreign)


def _switches(
    body: dict[str, Any],
    kimi: dict[str, Any],
    router: dict[str, Any],
    template: dict[str, Any],
) -> list[bool | None]:
    kind = choice(kimi, "type", ("enabled", "disabled"), within="thinking.")
    efforts = [
        choice(body, "reasoning_effort", EFFORTS),
        choice(router, "effort", EFFORTS, within="reasoning."),
    ]
    return [
        None if kind is None else kind == "enabled",
        boolean(template, "thinking", within="chat_template_kwargs."),
        boolean(template, "enable_thinking", within="chat_template_kwargs."),
        boolean(body, "enable_thinking"),
        boolean(router, "enabled", within="reasoning."),
        *(None if effort is None else effort != "none" for effort in efforts),
    ]


def _budget(
    body: dict[str, Any], kimi: dict[str, Any], router: dict[str, Any], card: ModelCard
) -> int | None:
    names = ("thinking_budget", "thinking_token_budget", "thinking_budget_tokens")
    most = card.context_length
    found = {
        *(integer(body, name, 0, most) for name in names),
        integer(kimi, "budget_tokens", 0, most, within="thinking."),
        integer(router, "max_tokens", 0, most, within="reasoning."),
    } - {None}
    if len(found) > 1:
        shown = " and ".join(str(value) for value in sorted(filter(None, found)))
        raise ApiError(f"the budget for thinking is given as {shown}; send one", "thinking_budget")
    return found.pop() if found else None
