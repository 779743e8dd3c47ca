"""Memory of a training run, rank by rank: parameters, gradients, optimizer, activations, buffers.

`moonlet train` and a plan for a cluster use the same arithmetic: `moonlet_run` describes the first,
`k2_run` the pretraining of Kimi K2 (arXiv 2507.20534, section 2.4). Bytes are counted over the network's own
tensors. Per parameter, with bf16 weights and float32 for the rest:

    weight 2, gradient 4, master weight 4, momentum 4 (Muon) or two moments 8 (AdamW)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from moonlet.config import ModelConfig
from moonlet.config.tensors import TensorSpec
from moonlet.errors import ConfigError
from moonlet.plan.activations import (
    Recompute,
    Storage,
    embedding_saved,
    head_saved,
    layer_saved,
)
from moonlet.plan.pipeline import warmup
from moonlet.plan.split import (
    Chunk,
    Split,
    check_fits,
    chunks,
    is_matrix,
    is_trained,
    specs_of_rank,
)

Float = Literal["bf16", "fp32"]
Kind = Literal["parameters", "gradients", "optimizer", "activations", "buffers"]
KINDS: tuple[Kind, ...] = ("parameters", "gradients", "optimizer", "activations", "buffers")
BYTES: dict[Float, int] = {"bf16": 2, "fp32": 4}
_STEP_COUNT = 4  # bytes; torch's AdamW counts the steps of each parameter by itself
# Of a rank whose activations go to the host: the chunk at work, the one going out, the one coming in.
_RESIDENT = 3


@dataclass(frozen=True)
class TrainingRun:
    """One optimizer step takes `global_batch` sequences of `sequence` tokens, `micro_batch` at a time per rank.

    fp8: the inputs of the experts' up projection and of SwiGLU are kept in FP8. fused: kernels keep only what
    they need; plain torch modules keep more. offload: activations wait in the host's memory.
    extra_warmup: micro-batches that a rank runs ahead of the plain schedule, to hide the exchange of experts.
    """

    config: ModelConfig
    split: Split = field(default_factory=Split)
    global_batch: int = 1
    micro_batch: int = 1
    sequence: int = 4096
    weights: Float = "bf16"
    gradients: Float = "fp32"
    state: Float = "fp32"
    activations: Float = "bf16"
    recompute: Recompute = "none"
    fp8: bool = False
    fused: bool = True
    offload: bool = False
    extra_warmup: int = 0

    def __post_init__(self) -> None:
        check_fits(self.config, self.split)
        for name, least in (
            ("global_batch", 1),
            ("micro_batch", 1),
            ("sequence", 1),
            ("extra_warmup", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value < 2**40:
                raise ConfigError(
                    f"{name} is {value!r}, but it must be a whole number from {least}"
                )
        together = self.split.data // self.split.context * self.micro_batch
        if self.global_batch % together:
            raise ConfigError(
                f"a batch of {self.global_batch} sequences is no multiple of the {together} that "
                f"{self.split.data} data-parallel ranks work on at once"
            )
        if self.split.virtual > 1 and self.micro_batches % self.split.pipeline:
            raise ConfigError(
                f"{self.micro_batches} micro-batches a step are no multiple of the {self.split.pipeline} "
                "pipeline ranks, which virtual chunks need; change the batch or the data-parallel ranks"
            )

    @property
    def micro_batches(self) -> int:
        """That each pipeline works through in one step."""
        return self.global_batch // (self.split.data // self.split.context * self.micro_batch)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.sequence

    @property
    def micro_batch_tokens(self) -> float:
        """Of one rank: context- and tensor-parallel ranks share the tokens of a micro-batch."""
        return self.micro_batch * self.sequence / (self.split.tensor * self.split.context)

    @property
    def storage(self) -> Storage:
        return Storage(BYTES[self.activations], self.fp8, self.fused, self.recompute)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank by kind. host_bytes: its activations that wait in the memory of the host."""

    stage: int
    bytes: Mapping[Kind, float]
    host_bytes: float

    @property
    def state_bytes(self) -> float:
        """All that stays from step to step: parameters, gradients, optimizer."""
        return self.bytes["parameters"] + self.bytes["gradients"] + self.bytes["optimizer"]

    @property
    def total_bytes(self) -> float:
        return sum(self.bytes.values())


@dataclass(frozen=True)
class TrainingMemory:
    """One entry for each pipeline rank; all ranks of a stage hold the same amount."""

    ranks: tuple[RankMemory, ...]

    @property
    def worst(self) -> RankMemory:
        return max(self.ranks, key=lambda rank: rank.total_bytes)

    @property
    def mean_state_bytes(self) -> float:
        return sum(rank.state_bytes for rank in self.ranks) / len(self.ranks)


def moonlet_run(
    config: ModelConfig, micro_batch: int, sequence: int, global_batch: int | None = None
) -> TrainingRun:
    """What `moonlet train` does: one process, everything float32, plain torch modules, nothing recomputed."""
    return TrainingRun(
        config, Split(), global_batch or micro_batch, micro_batch, sequence, "fp32", "fp32", "fp32", "fp32",
        fused=False,
    )  # fmt: skip


def k2_run(
    config: ModelConfig,
    gpus: int = 2048,
    virtual: int = 2,
    global_batch: int = 16384,
    sequence: int = 4096,
) -> TrainingRun:
    """Kimi K2's pretraining: 16-way pipeline with virtual stages, 16-way experts, ZeRO-1, BF16 weights, FP32
    gradients, selective recomputation, FP8 storage, offload, one more warm-up micro-batch (arXiv 2507.20534,
    section 2.4, figure 7); 67 M tokens a step in sequences of 4096 (section 2.5).

    Not published, so assumed: how many GPUs, how many chunks a rank has, one sequence a micro-batch.
    Raises ConfigError unless `gpus` is a multiple of 256, the GPUs of one model-parallel group.
    """
    if gpus < 256 or gpus % 256:
        raise ConfigError(
            f"{gpus} GPUs are no multiple of 256: 16 pipeline ranks, 16 ranks of experts"
        )
    return TrainingRun(
        config, Split(16, virtual, expert=16, data=gpus // 16, zero=1), global_batch, 1, sequence,
        recompute="selective", fp8=True, offload=True, extra_warmup=1,
    )  # fmt: skip


def training_memory(run: TrainingRun) -> TrainingMemory:
    """Bytes of every pipeline rank at its fullest moment.

    Left out: what the vision tower keeps (K2.5 recomputes it and drops it before the text network runs,
    arXiv 2602.02276, appendix C), the CUDA context, and what an allocator cannot use.
    """
    return TrainingMemory(tuple(_rank(run, stage) for stage in range(run.split.pipeline)))


def _rank(run: TrainingRun, stage: int) -> RankMemory:
    specs = specs_of_rank(run.config, run.split, stage)
    trained = [spec for spec in specs if is_trained(spec)]
    kept, working = _activations(run, stage)
    resident = kept
    if run.offload:
        resident = min(kept, _RESIDENT * kept / in_flight(run, stage))
    return RankMemory(
        stage,
        {
            "parameters": _sharded(run, trained, BYTES[run.weights], 3),
            "gradients": _sharded(run, trained, BYTES[run.gradients], 2),
            "optimizer": sum(_optimizer_bytes(run, spec) for spec in trained),
            "activations": resident + working,
            "buffers": _buffers(run, specs),
        },
        kept - resident,
    )


def _sharded(run: TrainingRun, specs: list[TensorSpec], width: int, zero: int) -> float:
    return sum(held(run, spec, zero) * width for spec in specs)


def held(run: TrainingRun, spec: TensorSpec, zero: int) -> float:
    """Numbers of a tensor on one rank, of the kind that ZeRO shares out from stage `zero` on."""
    copies = run.split.copies(spec) if run.split.zero >= zero else 1
    return spec.numel / (run.split.pieces(spec) * copies)


def _optimizer_bytes(run: TrainingRun, spec: TensorSpec) -> float:
    """Master weights where the weights are narrower; Muon has one momentum, AdamW two moments and a count."""
    master = 4 if run.weights == "bf16" else 0
    moments = 1 if is_matrix(spec) else 2
    count = 0 if is_matrix(spec) else _STEP_COUNT
    return held(run, spec, 1) * (master + moments * BYTES[run.state]) + count


def in_flight(run: TrainingRun, stage: int) -> int:
    """Chunks of micro-batches whose activations a rank holds at once, at most: those that it runs ahead, and
    the one at work."""
    p, v, m = run.split.pipeline, run.split.virtual, run.micro_batches
    return min(warmup(p, v, m, stage, run.extra_warmup) + 1, m * v)


def _activations(run: TrainingRun, stage: int) -> tuple[float, float]:
    """Bytes kept for backward passes to come, and those of the backward pass at work."""
    mine = chunks(run.config, run.split)[stage :: run.split.pipeline]
    storage, tokens = run.storage, run.micro_batch_tokens
    per_chunk = [_chunk_bytes(run, chunk) for chunk in mine]
    layers = [layer_saved(run.config, layer) for chunk in mine for layer in chunk.layers]
    working = max((storage.working_bytes(rows) for rows in layers), default=0.0)
    kept = in_flight(run, stage) * sum(per_chunk) / len(per_chunk)
    if any(chunk.head for chunk in mine):  # its backward pass follows at once: one at a time
        kept += storage.kept_bytes(head_saved(run.config)) * tokens
        working = max(working, storage.working_bytes(head_saved(run.config)))
    return kept, working * tokens


def _chunk_bytes(run: TrainingRun, chunk: Chunk) -> float:
    """Of one micro-batch, the head left out."""
    per_token = sum(
        run.storage.kept_bytes(layer_saved(run.config, layer)) for layer in chunk.layers
    )
    if chunk.embedding:
        per_token += run.storage.kept_bytes(embedding_saved(run.config))
    return per_token * run.micro_batch_tokens


def _buffers(run: TrainingRun, specs: list[TensorSpec]) -> float:
    """The router's biases; send and receive buffers of the exchange of experts in both directions; and the
    three matrices that Newton-Schulz works on in bf16, for the largest matrix."""
    biases = 4 * sum(spec.numel for spec in specs if not is_trained(spec))
    exchanged = 0.0
    if run.split.expert > 1:
        c = run.config
        exchanged = (
            4
            * c.num_experts_per_tok
            * c.hidden_size
            * BYTES[run.activations]
            * run.micro_batch_tokens
        )
    largest = max((_largest_matrix(spec) for spec in specs if is_matrix(spec)), default=0)
    return biases + exchanged + 3 * 2 * largest


def _largest_matrix(spec: TensorSpec) -> int:
    return ceil(spec.numel / (spec.shape[0] if len(spec.shape) == 3 else 1))
