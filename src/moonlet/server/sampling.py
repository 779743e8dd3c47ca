"""How a request wants its tokens drawn: sampling, choices, logprobs, stop strings."""

import re
from collections.abc import Sequence
from typing import Any

from moonlet.chat.provider import Sampling
from moonlet.server.errors import ApiError
from moonlet.server.fields import boolean, integer, kind_of, number, obj
from moonlet.server.profiles import ModelRules, Profile

MAX_BIASES = 4096
REPETITION_PENALTY = (0.01, 10.0)  # 1 changes nothing; logits are divided by it
MAX_TOP_LOGPROBS = 20
COLD = 1e-5  # as good as temperature 0: the likeliest token, so that all choices would be the same
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")
_INT64 = 2**63


def parse_sampling(body: dict[str, Any], rules: ModelRules, thinking: bool) -> Sampling:
    """Raises ApiError for what is out of range, or fixed for the model by `rules`."""
    top_p = number(body, "top_p", 0, 1)
    if top_p == 0:
        raise ApiError("top_p must be above 0; for the likeliest token use temperature 0", "top_p")
    repetition = number(body, "repetition_penalty", *REPETITION_PENALTY)
    top_k = integer(body, "top_k", -1, 2**31 - 1)
    seed = integer(body, "seed", -_INT64, _INT64 - 1)
    asked = Sampling(
        temperature=number(body, "temperature", 0, 2),
        top_p=top_p,
        top_k=0 if top_k == -1 else top_k,  # both mean "all tokens", -1 is vLLM's spelling
        min_p=number(body, "min_p", 0, 1),
        presence_penalty=number(body, "presence_penalty", -2, 2) or 0.0,
        frequency_penalty=number(body, "frequency_penalty", -2, 2) or 0.0,
        repetition_penalty=1.0 if repetition is None else repetition,
        logit_bias=_logit_bias(obj(body, "logit_bias")),
        seed=None if seed is None else seed % 2**64,  # generators take no negative seed
    )
    _check_fixed("temperature", asked.temperature, rules.thinking if thinking else rules.instant)
    _check_fixed("top_p", asked.top_p, rules.top_p)
    _check_fixed("presence_penalty", asked.presence_penalty, rules.penalties)
    _check_fixed("frequency_penalty", asked.frequency_penalty, rules.penalties)
    return asked


def parse_n(body: dict[str, Any], rules: ModelRules, sampling: Sampling) -> int:
    """How many choices. Raises ApiError."""
    if rules.max_n == 1 and (integer(body, "n", 1, 2**31) or 1) > 1:
        raise ApiError("invalid n: only 1 is allowed for this model", "n")
    n = integer(body, "n", 1, rules.max_n) or 1
    cold = sampling.temperature is not None and sampling.temperature < COLD
    if n > 1 and cold and rules.cold_alone:
        raise ApiError(f"invalid n: with temperature 0 only 1 is allowed, not {n}", "n")
    return n


def parse_logprobs(body: dict[str, Any]) -> int | None:
    """How many alternatives to tell beside each token; None tells no logprobs. Raises ApiError."""
    wanted = boolean(body, "logprobs")
    top = integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise ApiError("top_logprobs needs logprobs: true", "top_logprobs")
    return (top or 0) if wanted else None


def parse_stop(value: Any, profile: Profile) -> tuple[str, ...]:
    """The stop strings: one, or a list of them. Raises ApiError."""
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(item, str) and item for item in stops):
        raise ApiError("stop must be a non-empty string or a list of them", "stop")
    if len(stops) > profile.max_stops:
        raise ApiError(
            f"stop has {len(stops)} strings, but at most {profile.max_stops} are taken", "stop"
        )
    longest = max((len(stop.encode("utf-8", "replace")) for stop in stops), default=0)
    if longest > profile.max_stop_bytes:
        raise ApiError(
            f"stop has a string of {longest} bytes, but at most {profile.max_stop_bytes} are taken",
            "stop",
        )
    return tuple(stops)


def _logit_bias(raw: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    if len(raw) > MAX_BIASES:
        raise ApiError(f"logit_bias has {len(raw)} entries, at most {MAX_BIASES}", "logit_bias")
    biases = []
    for key, value in raw.items():
        if not _TOKEN_ID.fullmatch(key):
            raise ApiError(f"logit_bias has the key {key[:40]!r}, not a token id", "logit_bias")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ApiError(
                f"logit_bias[{key}] must be a number, not {kind_of(value)}", "logit_bias"
            )
        if not -100 <= value <= 100:
            raise ApiError(f"logit_bias[{key}] must be within -100 and 100", "logit_bias")
        biases.append((int(key), float(value)))
    return tuple(biases)


def _check_fixed(name: str, value: float | None, allowed: Sequence[float] | None) -> None:
    """The Kimi API takes a fixed parameter when it has the fixed value, and says so otherwise."""
    if value is None or allowed is None:
        return
    if value not in allowed:
        shown = " or ".join(f"{one:g}" for one in allowed)
        raise ApiError(f"invalid {name}: only {shown} is allowed for this model", name)
