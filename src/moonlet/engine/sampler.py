"""Logits -> the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moonlet.errors import EngineError

COLDEST = (
    1e-5  # below this the likeliest token has all the probability, and dividing would overflow
)


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 takes the likeliest token; top_p 1 and top_k 0 leave everything in play.

    The same seed gives the same tokens; without one every request differs.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < 1e4 and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise EngineError(
                f"{self} is out of range: temperature from 0, top_p in (0, 1], top_k from 0"
            )


class Sampler:
    """Draws the tokens of one request, in order."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed % 2**63)

    def draw(self, logits: Tensor) -> int:
        """One token id from `logits` [vocab_size]. Raises EngineError when they are not finite."""
        logits = logits.float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise EngineError(
                "the model produced logits that are not finite, so its weights or its input are broken"
            )
        if self.params.temperature < COLDEST:
            return int(logits.argmax())
        probabilities, ids = (
            (logits / self.params.temperature).softmax(-1).sort(descending=True, stable=True)
        )
        keep = self._kept(probabilities)
        choice = torch.multinomial(probabilities[:keep], 1, generator=self.generator)
        return int(ids[choice])

    def _kept(self, probabilities: Tensor) -> int:
        """How many of the sorted tokens stay: the top k, and of those the smallest set reaching top p."""
        keep = min(self.params.top_k or len(probabilities), len(probabilities))
        head = probabilities[:keep]
        before = head.cumsum(0) - head
        return max(int((before < self.params.top_p * head.sum()).sum()), 1)
