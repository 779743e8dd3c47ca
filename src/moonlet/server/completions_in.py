"""The body of `POST /v1/completions` -> one TextRequest for each prompt.

The Kimi API has no such route, so no profile fixes its sampling.
"""

from dataclasses import dataclass
from typing import Any

from moonlet.chat.provider import ModelCard, TextRequest
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, integer, kind_of, number, obj, text
from moonlet.server.profiles import OPEN, Profile
from moonlet.server.request import MAX_DEADLINE_S, refuse_not_here
from moonlet.server.sampling import MAX_TOP_LOGPROBS, parse_n, parse_sampling, parse_stop

MAX_CHOICES = 128  # prompts times n: what one request may set to work at once
MAX_TOKENS = 16  # OpenAI's default here
_MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True)
class CompletionRequest:
    """One parsed request: a text to continue for each prompt, `n` times."""

    model: str
    texts: list[TextRequest]
    n: int
    stream: bool
    include_usage: bool


def parse_completion(body: dict[str, Any], card: ModelCard, profile: Profile) -> CompletionRequest:
    """Raises ApiError that names the field."""
    refuse_not_here(body)
    if body.get("echo"):
        raise ApiError("echo is not supported; put the prompt before the answer yourself", "echo")
    if body.get("suffix"):
        raise ApiError("suffix is not supported: this model only continues a text", "suffix")
    rules = OPEN.rules(card.id)
    sampling = parse_sampling(body, rules, thinking=False)
    n = parse_n(body, rules, sampling)
    if (best_of := integer(body, "best_of", 1, 2**31)) not in (None, n):
        raise ApiError(
            f"best_of is {best_of}, but all answers are returned; set it to n ({n})", "best_of"
        )
    prompts = _prompts(body.get("prompt"))
    if len(prompts) * n > MAX_CHOICES:
        raise ApiError(
            f"{len(prompts)} prompts with n = {n} are {len(prompts) * n} answers, at most "
            f"{MAX_CHOICES} are given in one request",
            "prompt",
        )
    max_tokens = integer(body, "max_tokens", 1, card.context_length)
    texts = [
        TextRequest(
            prompt,
            sampling,
            max_tokens=MAX_TOKENS if max_tokens is None else max_tokens,
            stop=parse_stop(body.get("stop"), profile),
            n=n,
            logprobs=integer(body, "logprobs", 0, MAX_TOP_LOGPROBS),
            deadline_s=number(body, "deadline_s", 0, MAX_DEADLINE_S),
        )
        for prompt in prompts
    ]
    text(body, "user")
    usage = boolean(obj(body, "stream_options"), "include_usage", within="stream_options.")
    return CompletionRequest(card.id, texts, n, bool(boolean(body, "stream")), bool(usage))


def token_ids(value: Any, where: str) -> list[int]:
    """`value` as a list of token ids, of which the provider knows the range. Raises ApiError."""
    if not isinstance(value, list):
        raise ApiError(f"{where} must be a list of token ids, not {kind_of(value)}", where)
    for index, item in enumerate(value):
        if type(item) is not int or not 0 <= item <= _MAX_TOKEN_ID:
            shown = item if type(item) is int and abs(item) < 1e30 else kind_of(item)
            place = f"{where}[{index}]"
            raise ApiError(f"{place} must be a token id, not {shown}", place)
    return value


def _prompts(value: Any) -> list[str | list[int]]:
    """A string, token ids, or a list of either."""
    if value is None:
        raise ApiError("prompt is missing", "prompt")
    many = isinstance(value, list) and bool(value) and isinstance(value[0], str | list)
    if not many:
        return [_prompt(value, "prompt")]
    if len(value) > MAX_CHOICES:
        raise ApiError(
            f"prompt has {len(value)} entries, at most {MAX_CHOICES} are taken", "prompt"
        )
    return [_prompt(item, f"prompt[{i}]") for i, item in enumerate(value)]


def _prompt(value: Any, where: str) -> str | list[int]:
    if not isinstance(value, str | list):
        found = kind_of(value)
        raise ApiError(f"{where} must be a string or a list of token ids, not {found}", where)
    if not value:
        raise ApiError(f"{where} is empty; there is nothing to continue", where)
    return value if isinstance(value, str) else token_ids(value, where)
