"""One prompt or a few steps of decoding, prepared so that they can be run again and again and timed.

Token ids are random: what they say does not matter for speed, and random ones spread over the experts. A depth
is reached without computing it: the cache is filled with random latents, since attention reads them all the
same whatever they hold.
"""

import time

import torch
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.model.cache import LatentCache
from moonlet.model.network import Model

_PATTERN = 512  # positions of random latents that are repeated up to the depth


def cache_bytes(model: Model, batch: int, positions: int) -> int:
    """Bytes of a cache for `batch` sequences of `positions` each."""
    row = model.new_cache(1, 1).rows
    return batch * positions * row.numel() * row.element_size()


class Prefill:
    """A prompt of `tokens`, with the logits of its last token, or of all with `all_logits`."""

    def __init__(self, model: Model, tokens: int, all_logits: bool = False) -> None:
        self.model, self.tokens, self._all_logits = model, tokens, all_logits
        self._cache = model.new_cache(1, tokens)
        self._ids = _random_ids(model.config, 1, tokens)

    def run(self) -> float:
        """Seconds that it took."""
        start = time.perf_counter()
        self.next_token()
        return time.perf_counter() - start

    def next_token(self) -> int:
        """The greedy choice of what comes after the prompt."""
        self._cache.length = 0
        with torch.inference_mode():
            hidden = self.model.hidden(self._ids, cache=self._cache)
            logits = self.model.logits(hidden if self._all_logits else hidden[:, -1:])
            return int(logits[0, -1].argmax())


class Decode:
    """`steps` steps of `batch` sequences at once, each of which has `depth` tokens behind it."""

    def __init__(self, model: Model, depth: int, batch: int, steps: int) -> None:
        self.model, self.depth, self.batch, self.steps = model, depth, batch, steps
        self._cache = model.new_cache(batch, depth + steps)
        _fill(self._cache, depth)
        self._ids = _random_ids(model.config, batch, steps)

    def run(self) -> float:
        """Seconds for all steps. Each run begins at `depth` again."""
        start = time.perf_counter()
        for step in range(self.steps):
            self.step(step)
        return time.perf_counter() - start

    def step(self, step: int = 0) -> None:
        """One token of every sequence, `step` tokens behind the depth; the greedy choice included."""
        self._cache.length = self.depth + step
        with torch.inference_mode():
            hidden = self.model.hidden(self._ids[:, step : step + 1], cache=self._cache)
            self.model.logits(hidden).argmax(-1)


def _random_ids(config: ModelConfig, batch: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(config.vocab_size, (batch, tokens), generator=generator)


def _fill(cache: LatentCache, depth: int) -> None:
    """Random latents for all positions below `depth`."""
    generator = torch.Generator().manual_seed(depth)
    pattern = torch.randn(_PATTERN, cache.rows.shape[-1], generator=generator).to(cache.rows.dtype)
    for start in range(0, depth, _PATTERN):
        count = min(_PATTERN, depth - start)
        cache.rows[:, :, start : start + count] = pattern[:count]
    cache.length = depth
