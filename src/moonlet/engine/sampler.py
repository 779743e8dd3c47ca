"""Logits -> the next token.

In the order of vLLM and Hugging Face:

    penalties     repetition_penalty (CTRL, over prompt and answer), then OpenAI's two (over the answer)
    logit_bias    added
    mask          what the answer's guide allows
    temperature   divides
    min_p         tokens at least this share as likely as the likeliest stay
    top_k         of those the k likeliest
    top_p         of those the fewest likeliest that reach this share of what is left

Each of the last three keeps a head of the tokens sorted by probability, ties by id, so all a draw needs
is the mass of that head: one uniform number below it falls on one token of the sorted line. Probabilities
are whole numbers here. Their sums are exact in any order, so the token that a number falls on can be
found without sorting (`kernels.reach`).
"""

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moonlet.errors import EngineError
from moonlet.kernels import reach

COLDEST = (
    1e-5  # below this the likeliest token has all the probability, and dividing would overflow
)
_EXACT_BITS = 52  # whole numbers up to here are exact in float64
_RANGES = (
    ("temperature", 0, 9999, "from 0 to 9999"),
    ("top_p", math.ulp(0.0), 1, "above 0 and at most 1"),
    ("top_k", 0, 2**31, "from 0"),
    ("min_p", 0, 1, "from 0 to 1"),
    ("presence_penalty", -2, 2, "from -2 to 2"),
    ("frequency_penalty", -2, 2, "from -2 to 2"),
    ("repetition_penalty", 0.01, 100, "from 0.01 to 100"),
)


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 takes the likeliest token; top_p 1, top_k 0 and min_p 0 leave everything in play.

    presence_penalty and frequency_penalty as OpenAI defines them, over the answer's tokens;
    repetition_penalty as in CTRL (arXiv 1909.05858, section 4.1), over the prompt's too. logit_bias:
    pairs of token id and what is added to its logit. The same seed gives the same tokens; without
    one every request differs.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high, wanted in _RANGES:
            if not low <= getattr(self, name) <= high:
                raise EngineError(
                    f"{name} is out of range: {getattr(self, name)}, but it must be {wanted}"
                )
        for token, bias in self.logit_bias:
            if token < 0 or not -100 <= bias <= 100:
                raise EngineError(
                    f"logit_bias is out of range: {bias} for token {token}, but it must be from -100 to 100 "
                    "for a token from 0"
                )


@dataclass(frozen=True)
class Drawn:
    """A token with its natural logarithm of probability, and the likeliest tokens with theirs.

    They are those of the model: of its logits before penalties, bias, mask and temperature, which is
    what clients compare and add up.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws the tokens of one answer, in order.

    They depend on the seed, on `choice` (the answer's number among those of its request) and on the logits,
    and on nothing else that the engine does at the same time.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int] = (), choice: int = 0
    ) -> None:
        self.params = params
        seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        self._key = f"{seed},{choice}"
        self._prompt_ids = prompt_ids
        self._count = 0
        self._history: _History | None = None

    def draw(
        self,
        logits: NDArray[np.float32],
        mask: NDArray[np.bool_] | None = None,
        logprobs: int | None = None,
    ) -> Drawn:
        """The next token from `logits` [vocab_size]; `mask` as a guide gives it.

        logprobs: how many of the likeliest tokens to tell; None tells no probability at all. Raises
        EngineError when logits are not finite or the mask allows nothing.
        """
        if self._history is None:
            self._history = _History(self.params, self._prompt_ids, len(logits))
        token = self._token(self._history.adjusted(logits), mask)
        self._history.add(token)
        self._count += 1
        if logprobs is None:
            return Drawn(token)
        return Drawn(token, *_logprobs(logits, token, logprobs))

    def _token(self, logits: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> int:
        # Two passes: the first not-a-number is the argmax, an infinite one is the greatest or smallest.
        if not np.isfinite(logits[logits.argmax()]) or not np.isfinite(logits.min()):
            raise EngineError(
                "the model produced logits that are not finite, so its weights or its input are broken"
            )
        ids = None
        if mask is not None:
            ids = np.flatnonzero(mask)
            if not len(ids):
                raise EngineError("the guide of this answer allows no token, so it cannot go on")
            logits = logits[ids]
        chosen = self._choice(logits)
        return chosen if ids is None else int(ids[chosen])

    def _choice(self, logits: NDArray[np.float32]) -> int:
        likeliest = int(logits.argmax())
        if self.params.temperature < COLDEST:
            return likeliest
        weights = _weights(logits, likeliest, self.params.temperature)
        mass = _kept_mass(weights, self.params)
        return reach(weights, 1 + np.floor(uniform(self._key, self._count) * mass))[1]


def uniform(key: str, count: int) -> float:
    """Number `count` of a row of random numbers in [0, 1), the same row for the same key everywhere."""
    digest = hashlib.blake2b(f"{key},{count}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class _History:
    """What penalties and biases do to the logits of one answer, as arrays over the vocabulary."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int) -> None:
        self._params = params
        self._offset: NDArray[np.float32] | None = None  # bias less the penalties that are added
        self._seen: NDArray[np.bool_] | None = None  # what the repetition penalty is for
        if params.presence_penalty or params.frequency_penalty or params.logit_bias:
            self._offset = np.zeros(vocab_size, np.float32)
            for token, bias in params.logit_bias:
                if token >= vocab_size:
                    raise EngineError(
                        f"logit_bias names token {token}, but the model has tokens 0 to {vocab_size - 1}"
                    )
                self._offset[token] += bias
        if params.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, np.bool_)
            self._seen[list(prompt_ids)] = True
        self._counted: set[int] = set()

    def adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """`logits` themselves where nothing applies, else a changed copy."""
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at what comes out
            if self._seen is not None:
                ids = np.flatnonzero(self._seen)
                values, penalty = logits[ids], np.float32(self._params.repetition_penalty)
                logits = logits.copy()
                logits[ids] = np.where(values > 0, values / penalty, values * penalty)
            return logits if self._offset is None else logits + self._offset

    def add(self, token: int) -> None:
        if self._seen is not None:
            self._seen[token] = True
        if self._offset is not None:
            self._offset[token] -= self._params.frequency_penalty
            if token not in self._counted:
                self._offset[token] -= self._params.presence_penalty
                self._counted.add(token)


def _weights(
    logits: NDArray[np.float32], likeliest: int, temperature: float
) -> NDArray[np.float32]:
    """Probabilities as whole numbers: the likeliest token has the greatest power of two with which the
    sum over the vocabulary is still exact in float64. What is 10^-10 times as likely for Kimi's
    vocabulary, and less, is never drawn.
    """
    with np.errstate(over="ignore"):  # to minus infinity, whose exponential is 0
        weights = logits - logits[likeliest]
        weights *= np.float32(1 / temperature)
    np.exp(weights, out=weights)
    weights *= 2.0 ** (_EXACT_BITS - len(weights).bit_length())
    return np.floor(weights, out=weights)


def _kept_mass(weights: NDArray[np.float32], params: SamplingParams) -> float:
    """The mass of the head of the sorted tokens that min_p, top_k and top_p leave."""
    stays = weights[weights >= params.min_p * weights.max()] if params.min_p else weights
    mass = _sum(stays)
    if 0 < params.top_k < len(weights):
        mass = min(mass, _sum(_largest(weights, params.top_k)))
    if params.top_p < 1:
        mass = reach(weights, np.ceil(params.top_p * mass))[0]
    return mass


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The `count` largest values, in no order."""
    heavier = values[values > float(values.mean(dtype=np.float64))]
    values = heavier if len(heavier) > count else values
    return np.partition(values, -count)[-count:]


def _sum(weights: NDArray[np.float32]) -> float:
    return float(weights.sum(dtype=np.float64))


def _logprobs(
    logits: NDArray[np.float32], token: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Of `token` and of the `count` likeliest tokens, likeliest first, ties by id."""
    count = min(count, len(logits))
    top = logits[:0].astype(np.intp)
    if count:
        top = np.flatnonzero(logits >= _largest(logits, count).min())
        top = top[np.argsort(-logits[top], kind="stable")][:count]
    with np.errstate(over="ignore"):
        shifted = logits - logits.max()
    norm = np.log(_sum(np.exp(shifted)))
    return float(shifted[token] - norm), tuple((int(i), float(shifted[i] - norm)) for i in top)
