"""How many bytes a model's weights take, part by part, and how many of them a step reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from moonlet.config import ModelConfig
from moonlet.config.sizes import model_sizes
from moonlet.config.tensors import Part

NOT_READ: tuple[Part, ...] = ("embedding", "vision", "projector")  # by a step over text


@dataclass(frozen=True)
class Weights:
    """A model as it is stored. stored: bytes by part and type. label: "native", "q4_k_m", a file's name.

    note: what is assumed where the bytes are not those of a known file, for people; else empty.
    """

    config: ModelConfig
    label: str
    stored: Mapping[Part, Mapping[str, float]] = field(hash=False)
    note: str = ""

    @property
    def total_bytes(self) -> float:
        return self.bytes_of(*self.stored)

    def bytes_of(self, *parts: Part) -> float:
        return sum(sum(self.stored[part].values()) for part in parts if part in self.stored)

    @cached_property
    def parameters_active(self) -> int:
        """That one token passes through, the input embedding left out."""
        return model_sizes(self.config).parameters_active

    @property
    def num_moe_layers(self) -> int:
        return self.config.num_hidden_layers - self.config.first_k_dense_replace

    def distinct_experts(self, tokens: float) -> float:
        """Routed experts of a layer that so many tokens use together, chosen evenly and independently."""
        c = self.config
        return c.n_routed_experts * (1 - (1 - c.num_experts_per_tok / c.n_routed_experts) ** tokens)

    def bytes_read(self, tokens: float) -> dict[Part, float]:
        """By one step over `tokens` tokens, by part; the rows of the embedding are too few to count."""
        share = self.distinct_experts(tokens) / self.config.n_routed_experts
        return {
            part: self.bytes_of(part) * (share if part == "experts" else 1.0)
            for part in self.stored
            if part not in NOT_READ
        }
