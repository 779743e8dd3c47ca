"""How a training run is spread over ranks, and which parameters lie on which of them.

Five ways to split, with Megatron-Core's meanings (github.com/NVIDIA/Megatron-LM, parallel_state): the
`ranks = pipeline * tensor * data`, and the `expert` ranks that share the experts of a layer are among the
data-parallel ones, so that `data / expert` copies of each expert remain.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from moonlet.config import ModelConfig
from moonlet.config.tensors import Part, TensorSpec, tensor_specs
from moonlet.errors import ConfigError

_MOST = 1_000_000  # ranks
Zero = Literal[0, 1, 2, 3]

# Every rank computes these whole: the two down projections of MLA, which feed all heads; the router and the
# norms; and the vision tower, which K2.5 copies to every rank (arXiv 2602.02276, "decoupled encoder").
_NOT_TENSOR_SPLIT: tuple[Part, ...] = ("router", "norm", "vision", "projector")
_LATENT = ("q_a_proj", "kv_a_proj_with_mqa")


@dataclass(frozen=True)
class Split:
    """pipeline: ranks that share the layers, each with `virtual` chunks of them. context: data-parallel ranks
    that share one sequence. zero: what the copies of a
    parameter share out among themselves: 1 the optimizer's state, 2 also gradients, 3 also parameters
    (ZeRO, arXiv 1910.02054)."""

    pipeline: int = 1
    virtual: int = 1
    expert: int = 1
    tensor: int = 1
    data: int = 1
    context: int = 1
    zero: Zero = 0

    def __post_init__(self) -> None:
        for name in ("pipeline", "virtual", "expert", "tensor", "data", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= _MOST:
                raise ConfigError(
                    f"{name} is {value!r}, but it must be a whole number from 1 to {_MOST}"
                )
        if self.data % self.expert:
            raise ConfigError(
                f"{self.expert} expert-parallel ranks must divide the {self.data} data-parallel ones, "
                "which they are among"
            )
        if self.data % self.context:
            raise ConfigError(
                f"{self.context} ranks to a sequence must divide the {self.data} data-parallel ranks"
            )
        if self.virtual > 1 and self.pipeline == 1:
            raise ConfigError(f"virtual is {self.virtual}, but there is only 1 pipeline rank")
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError(f"zero is {self.zero!r}, but it must be 0, 1, 2 or 3")

    @property
    def ranks(self) -> int:
        return self.pipeline * self.tensor * self.data

    @property
    def chunks(self) -> int:
        """Chunks of layers in the whole pipeline; chunk c lies on pipeline rank c % pipeline."""
        return self.pipeline * self.virtual

    def copies(self, spec: TensorSpec) -> int:
        """How many ranks hold the same piece of a tensor: those that ZeRO shares it out to."""
        return self.data // self.expert if spec.part == "experts" else self.data

    def pieces(self, spec: TensorSpec) -> int:
        """In how many equal pieces the ranks of a pipeline stage hold a tensor, before ZeRO."""
        if spec.part in _NOT_TENSOR_SPLIT or any(name in spec.name for name in _LATENT):
            return 1
        return self.tensor * (self.expert if spec.part == "experts" else 1)


@dataclass(frozen=True)
class Chunk:
    """Neighbouring layers that a pipeline rank computes in one go."""

    layers: range
    embedding: bool
    head: bool


def check_fits(config: ModelConfig, split: Split) -> None:
    """Raises ConfigError where the model cannot be cut in so many pieces."""
    if config.n_routed_experts % split.expert:
        raise ConfigError(
            f"{config.n_routed_experts} experts cannot be shared evenly by {split.expert} ranks"
        )
    if config.num_attention_heads % split.tensor:
        raise ConfigError(
            f"{config.num_attention_heads} attention heads cannot be shared evenly by {split.tensor} ranks"
        )
    units = config.num_hidden_layers + 2
    if split.chunks > units:
        raise ConfigError(
            f"{split.pipeline} pipeline ranks with {split.virtual} chunks each are {split.chunks}, more than "
            f"the {units} layers, embedding and head included"
        )


def chunks(config: ModelConfig, split: Split) -> list[Chunk]:
    """The pipeline's chunks in order. Embedding and head count as a layer each; what is left over makes the
    last chunk the shortest, whose head is the costliest unit. How K2 cut its layers is not published."""
    check_fits(config, split)
    units, n = config.num_hidden_layers + 2, split.chunks
    bounds = [-(-i * units // n) for i in range(n + 1)]
    return [
        Chunk(range(max(first - 1, 0), min(last - 1, units - 2)), first == 0, last == units)
        for first, last in pairwise(bounds)
    ]


def specs_of_rank(config: ModelConfig, split: Split, rank: int) -> list[TensorSpec]:
    """Tensors of which pipeline rank `rank` holds at least a piece; the vision tower is on every rank."""
    mine = [
        spec
        for chunk in chunks(config, split)[rank :: split.pipeline]
        for spec in specs_of(config, chunk)
    ]
    return mine + _placed(config).get("vision", [])


def specs_of(config: ModelConfig, chunk: Chunk) -> list[TensorSpec]:
    """Tensors of a chunk, in the order of the network."""
    places = [*(["embedding"] if chunk.embedding else []), *map(str, chunk.layers)]
    places += ["head"] if chunk.head else []
    return [spec for place in places for spec in _placed(config)[place]]


@lru_cache(maxsize=4)
def _placed(config: ModelConfig) -> dict[str, list[TensorSpec]]:
    """Tensors by place: a layer's number, "embedding", "head" (with the last norm) or "vision"."""
    placed: dict[str, list[TensorSpec]] = {}
    for spec in tensor_specs(config):
        if spec.part in ("vision", "projector"):
            place = "vision"
        elif ".layers." in spec.name:
            place = spec.name.split(".layers.")[1].split(".")[0]
        else:
            place = "embedding" if spec.part == "embedding" else "head"
        placed.setdefault(place, []).append(spec)
    return placed


def is_trained(spec: TensorSpec) -> bool:
    """Whether gradients change it; the router's correction bias is moved by a rule of its own."""
    return not spec.name.endswith("e_score_correction_bias")


def is_matrix(spec: TensorSpec) -> bool:
    """Whether Muon updates it, as in `moonlet train`; AdamW has the others (arXiv 2502.16982, section 2.2)."""
    if spec.part in ("embedding", "head"):
        return False
    return len(spec.shape) == 2 or spec.part == "experts"
