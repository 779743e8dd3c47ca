"""How strict the server is, as data: `moonlet serve --compat open|kimi|openai`.

open     the default: serves everything that can be served, whoever's dialect it is
kimi     refuses what the Kimi API refuses, in its words, so that its verifiers pass
openai   refuses what OpenAI refuses, and answers without members that OpenAI does not have,
         apart from `reasoning_content`
"""

import re
from dataclasses import dataclass
from typing import Literal

SchemaRules = Literal["any", "mfjs", "openai"]


@dataclass(frozen=True)
class ModelRules:
    """The sampling that the Kimi API leaves open for one model. None: anything in range.

    `thinking` and `instant` are the temperatures that each mode takes; cold_alone: at temperature 0 one
    choice is all there is.
    """

    name: re.Pattern[str]
    thinking: tuple[float, ...] | None = None
    instant: tuple[float, ...] | None = None
    top_p: tuple[float, ...] | None = None
    penalties: tuple[float, ...] | None = None
    max_n: int = 5
    cold_alone: bool = True


# Read from the top: the first whose pattern is found in the model's name. Of K2.5's temperatures two
# generations of Moonshot's verifier disagree; this set satisfies both.
_KIMI_MODELS = (
    ModelRules(re.compile(r"moonshot-v1")),
    ModelRules(re.compile(r"(?i)k2[-_]?thinking")),
    ModelRules(re.compile(r"(?i)k2(?![.\d])|moonlight")),
    ModelRules(re.compile(r""), (0.0, 0.6, 1.0), (0.6,), top_p=(0.95,), penalties=(0.0,), max_n=1),
)

_ANY_MODEL = (ModelRules(re.compile(""), max_n=16, cold_alone=False),)
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # wider than OpenAI by the dot, for tool servers

_OPENAI_MEMBERS = frozenset(
    [
        "messages",
        "model",
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    ]
)


@dataclass(frozen=True)
class Profile:
    """What one `compat` profile takes and tells.

    schemas: what schemas with `strict` may hold: anything, MFJS, or OpenAI's subset. schemas are strict
    unless told otherwise if `strict_schemas`. forces_thinkers: a call can be forced while thinking is on.
    wants_reasoning: a tool loop must be sent back with its reasoning. empty_texts: a part of a
    user's message may be an empty text where others are not. openai_rules: fields and messages that
    OpenAI takes only together are held to that. members: all that a request may have, if not
    anything. extras: answers have members that OpenAI's lack.
    """

    name: str
    models: tuple[ModelRules, ...] = _ANY_MODEL
    max_stops: int = 5
    max_stop_bytes: int = 1024
    tool_name: re.Pattern[str] = _TOOL_NAME
    schemas: SchemaRules = "any"
    strict_schemas: bool = True
    forces_thinkers: bool = True
    wants_reasoning: bool = False
    empty_texts: bool = True
    openai_rules: bool = False
    thinking_members: tuple[str, ...] = ("type", "keep", "budget_tokens")
    members: frozenset[str] | None = None
    extras: bool = True

    def rules(self, model: str) -> ModelRules:
        """What holds for sampling from the model of that name."""
        return next(rules for rules in self.models if rules.name.search(model))


OPEN = Profile("open")
KIMI = Profile(
    "kimi",
    models=_KIMI_MODELS,
    max_stop_bytes=32,
    tool_name=re.compile(r"[A-Za-z_][A-Za-z0-9_-]{2,63}"),
    schemas="mfjs",
    forces_thinkers=False,
    wants_reasoning=True,
    empty_texts=False,
    thinking_members=("type", "keep"),
)
OPENAI = Profile(
    "openai",
    max_stops=4,
    tool_name=re.compile(r"[A-Za-z0-9_-]{1,64}"),
    schemas="openai",
    strict_schemas=False,
    openai_rules=True,
    members=_OPENAI_MEMBERS,
    extras=False,
)
PROFILES = {profile.name: profile for profile in (OPEN, KIMI, OPENAI)}
