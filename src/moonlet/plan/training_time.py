"""Time of a training run: operations, bytes over links, and how both add up to an optimizer step.

Everything here is a closed formula; `pipeline.py` plays the same step task by task. What no data sheet says
stands in `Efficiency`, with its source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from moonlet.config import ModelConfig
from moonlet.config.tensors import TensorSpec
from moonlet.errors import ConfigError
from moonlet.plan.machine import Machine
from moonlet.plan.split import Chunk, chunks, is_matrix, is_trained, specs_of, specs_of_rank
from moonlet.plan.training import BYTES, TrainingRun, held, in_flight, training_memory

NEWTON_SCHULZ_STEPS = 5  # arXiv 2502.16982, section 2.2
_SECONDS_PER_DAY, _SECONDS_PER_HOUR = 86400, 3600


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that a run reaches.

    compute: of the bf16 peak, while matrices are multiplied. 0.47 makes the one published step time on H800s
    come out, DeepSeek-V3's 19.9 s (arXiv 2505.09343, table 4; test_training_time.py), though its products were
    partly FP8; K2's and K2.5's are not published. network: over 40 of 50 GB/s per GPU (same paper, section 5.1).
    overlap: of the exchange of experts, at most what runs beside computation. multimodal: K2.5 trains images
    and text at 0.9 of its speed on text (arXiv 2602.02276, appendix C).
    """

    compute: float = 0.47
    memory: float = 0.8
    network: float = 0.8
    overlap: float = 1.0
    multimodal: float = 1.0

    def __post_init__(self) -> None:
        for name in ("compute", "memory", "network", "multimodal"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(
                    f"the efficiency of {name} is {value!r}, but it must be above 0 and at most 1"
                )
        if not 0 <= self.overlap <= 1:
            raise ConfigError(f"overlap is {self.overlap!r}, but it must be from 0 to 1")


@dataclass(frozen=True)
class Rates:
    """What one rank computes and moves in a second."""

    flops: float
    memory: float
    link: float
    network: float
    host: float

    @classmethod
    def of(cls, run: TrainingRun, machine: Machine, efficiency: Efficiency) -> "Rates":
        """Raises ConfigError where the machine has too few accelerators, or nobody says how fast it is."""
        kind = run.activations
        if not machine.accelerators:
            if run.split.ranks > machine.nodes:
                raise ConfigError(
                    f"the run has {run.split.ranks} ranks, but {machine.name} has no accelerators and "
                    f"{machine.nodes} nodes"
                )
            host = machine.host
            memory = host.bandwidth_bytes_s * efficiency.memory
            network = machine.network_bytes_s * efficiency.network
            return cls(
                _peak(host.flops, kind, host.name) * efficiency.compute,
                memory,
                memory,
                network,
                memory,
            )
        if run.split.ranks > machine.num_accelerators:
            raise ConfigError(
                f"the run has {run.split.ranks} ranks, but {machine.name} has {machine.num_accelerators} "
                "accelerators"
            )
        one = machine.accelerators[0]
        return cls(
            _peak(one.flops, kind, one.name) * efficiency.compute,
            one.bandwidth_bytes_s * efficiency.memory,
            one.link_bytes_s * efficiency.network,
            machine.network_bytes_s / len(machine.accelerators) * efficiency.network,
            one.pcie_bytes_s * efficiency.network,
        )


def _peak(flops: Mapping[str, float], kind: str, name: str) -> float:
    if not flops.get(kind):
        raise ConfigError(f"nobody says how many {kind} operations {name} does in a second")
    return flops[kind]


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by what they go to, which add up. model_flops: of forward and backward
    passes of the whole batch without recomputation. peak_flops: of all ranks together."""

    parts: Mapping[str, float] = field(hash=False)
    model_flops: float
    peak_flops: float
    tokens: int
    ranks: int

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation (arXiv 2204.02311, appendix B), attention counted causal."""
        return self.model_flops / (self.seconds * self.peak_flops)

    def days(self, tokens: float) -> float:
        return tokens / self.tokens_per_s / _SECONDS_PER_DAY

    def gpu_hours(self, tokens: float) -> float:
        return tokens / self.tokens_per_s * self.ranks / _SECONDS_PER_HOUR


def forward_flops(config: ModelConfig, chunk: Chunk, sequence: int) -> float:
    """Of one token: two operations per weight that it meets, and causal attention in its plain form,
    `heads * (qk + v) * sequence` per layer (each token sees half the sequence on average)."""
    per_layer = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim) * sequence
    met = sum(_met(config, spec) for spec in specs_of(config, chunk))
    return 2 * met + len(chunk.layers) * per_layer


def model_flops(config: ModelConfig, sequence: int) -> float:
    """Of one trained token of text: forward, and twice that backward (6 N and attention's three passes)."""
    whole = Chunk(range(config.num_hidden_layers), embedding=True, head=True)
    return 3 * forward_flops(config, whole, sequence)


def recomputed_flops(run: TrainingRun, chunk: Chunk) -> float:
    """Of one token. Selective: MLA's up projections and the experts' down projections; norms and SwiGLU are
    too cheap to count (arXiv 2507.20534, section 2.4.3). Full: the layers' forward pass."""
    if run.recompute == "none":
        return 0.0
    if run.recompute == "full":
        layers_only = Chunk(chunk.layers, embedding=False, head=False)
        return forward_flops(run.config, layers_only, run.sequence)
    again = ("q_b_proj.weight", "self_attn.q_proj.weight", "kv_b_proj.weight", "experts.down_proj")
    specs = (spec for spec in specs_of(run.config, chunk) if spec.name.endswith(again))
    return sum(2 * _met(run.config, spec) for spec in specs)


def _met(c: ModelConfig, spec: TensorSpec) -> float:
    """Weights of a tensor that one token is multiplied with."""
    if spec.part in ("embedding", "norm") or not is_trained(spec):
        return 0.0
    share = c.num_experts_per_tok / c.n_routed_experts if spec.part == "experts" else 1.0
    return spec.numel * share


def newton_schulz_flops(rows: int, columns: int) -> float:
    """Of one matrix: per step two products n x n x m and one n x n x n, n the shorter side."""
    n, m = min(rows, columns), max(rows, columns)
    return NEWTON_SCHULZ_STEPS * (4 * n * n * m + 2 * n**3)


@dataclass(frozen=True)
class ChunkTime:
    """Seconds of one micro-batch in one chunk. exchange and tensor: in each of the two passes. offload: one way,
    while both passes compute."""

    forward: float
    backward: float
    recompute: float
    exchange: float
    tensor: float
    offload: float

    @property
    def computed(self) -> float:
        """Both passes, with what holds computation up."""
        return self.forward + self.backward + self.recompute + 2 * self.tensor


def chunk_times(run: TrainingRun, machine: Machine, efficiency: Efficiency) -> list[ChunkTime]:
    """Of every chunk of the pipeline, in order."""
    rates = Rates.of(run, machine, efficiency)
    cut, memory = chunks(run.config, run.split), training_memory(run)
    times = []
    for number, chunk in enumerate(cut):
        stage = number % run.split.pipeline
        forward = _seconds(run, rates, forward_flops(run.config, chunk, run.sequence))
        moe = sum(layer >= run.config.first_k_dense_replace for layer in chunk.layers)
        times.append(
            ChunkTime(
                forward,
                2 * forward,
                _seconds(run, rates, recomputed_flops(run, chunk)),
                moe * _exchange_seconds(run, machine, rates),
                len(chunk.layers) * _tensor_seconds(run, rates),
                memory.ranks[stage].host_bytes / in_flight(run, stage) / rates.host,
            )
        )
    return times


def _seconds(run: TrainingRun, rates: Rates, flops_per_token: float) -> float:
    return flops_per_token * run.micro_batch_tokens / rates.flops


def _exchange_seconds(run: TrainingRun, machine: Machine, rates: Rates) -> float:
    """Dispatch and combine of one MoE layer in one pass.

    A token goes once to each other node that has one of its experts, and on from there inside the node, as
    in DeepEP (arXiv 2412.19437, section 3.2.2); experts are chosen evenly; ranks of a layer are neighbours.
    """
    ranks, chosen = run.split.expert, run.config.num_experts_per_tok
    if ranks == 1:
        return 0.0
    in_node = max(len(machine.accelerators) // run.split.tensor, 1)
    nodes = -(-ranks // in_node)
    token = run.config.hidden_size * BYTES[run.activations] * run.micro_batch_tokens
    over_network = _reached(nodes, chosen) * token / rates.network if nodes > 1 else 0.0
    return 2 * max(over_network, _reached(ranks, chosen) * token / rates.link)


def _reached(places: int, chosen: int) -> float:
    """Expected number of other places, of `places`, that hold at least one of a token's experts."""
    return (places - 1) * (1 - (1 - 1 / places) ** chosen)


def _tensor_seconds(run: TrainingRun, rates: Rates) -> float:
    """Of one layer in one pass: an all-gather and a reduce-scatter around attention and around the MLP
    (arXiv 2205.05198, section 4.2.2), not hidden."""
    moved = (run.split.tensor - 1) * run.micro_batch_tokens  # (t - 1) / t of the whole micro-batch
    return 4 * moved * run.config.hidden_size * BYTES[run.activations] / rates.link


def step_seconds(
    run: TrainingRun, machine: Machine, efficiency: Efficiency | None = None
) -> StepTime:
    """One optimizer step. Raises ConfigError where the machine does not fit the run.

    forward, backward, recompute: of the mean stage. imbalance: what the slowest stage needs more. bubble:
    (p - 1) / (v m) of the slowest stage's work, interleaved 1F1B (arXiv 2104.04473, section 2.2.2). exchange,
    offload: what of them computation does not hide. gradients, parameters, muon, optimizer: of the fullest
    stage, one after another. vision: what images cost beside text.
    """
    efficiency = efficiency or Efficiency()
    rates, p, m = Rates.of(run, machine, efficiency), run.split.pipeline, run.micro_batches
    times = chunk_times(run, machine, efficiency)
    stages = [times[stage::p] for stage in range(p)]
    parts = {
        name: m * sum(getattr(time, name) for mine in stages for time in mine) / p
        for name in ("forward", "backward", "recompute", "tensor")
    }
    parts["tensor"] *= 2  # both passes
    slowest = m * max(_busy(mine) for mine in stages)
    parts["imbalance"] = slowest - sum(parts.values())
    parts["exchange"] = m * _exposed(stages, efficiency.overlap)
    parts["offload"] = max(0.0, m * max(sum(t.offload for t in mine) for mine in stages) - slowest)
    parts["bubble"] = (p - 1) / (run.split.virtual * m) * (slowest + parts["exchange"])
    late = optimizer_seconds(run, rates, alone=machine.nodes == 1)
    parts |= max(late, key=lambda stage: sum(stage.values()))
    parts["vision"] = sum(parts.values()) * (1 / efficiency.multimodal - 1)
    peak = rates.flops / efficiency.compute * run.split.ranks
    whole = model_flops(run.config, run.sequence) * run.tokens_per_step
    return StepTime(parts, whole, peak, run.tokens_per_step, run.split.ranks)


def _busy(mine: Iterable[ChunkTime]) -> float:
    return sum(t.computed for t in mine)


def _exposed(stages: list[list[ChunkTime]], overlap: float) -> float:
    """Exchange of a micro-batch, both passes, that nothing hides; no more is hidden than there is work."""
    return max(
        max((1 - overlap) * (both := 2 * sum(t.exchange for t in mine)), both - _busy(mine))
        for mine in stages
    )


def optimizer_seconds(run: TrainingRun, rates: Rates, alone: bool) -> list[dict[str, float]]:
    """Of each stage, after its last backward pass: gradients, Muon's products, reading and writing the state,
    parameters.

    Muon of a sharded momentum gathers it in bf16 first (arXiv 2502.16982, algorithm 1), counted under
    gradients. alone: all ranks are in one node.
    """
    wire = rates.link if alone else rates.network
    return [_optimizer_of(run, rates, wire, stage) for stage in range(run.split.pipeline)]


def _optimizer_of(run: TrainingRun, rates: Rates, wire: float, stage: int) -> dict[str, float]:
    zero, m = run.split.zero, run.micro_batches
    reduced = gathered = products = moved = 0.0
    for spec in specs_of_rank(run.config, run.split, stage):
        if not is_trained(spec):
            continue
        copies = run.split.copies(spec)
        piece = spec.numel / run.split.pieces(spec) * (copies - 1) / copies
        muon = is_matrix(spec)
        reduced += piece * BYTES[run.gradients] * (2 if zero == 0 else m if zero >= 2 else 1)
        reduced += piece * 2 * (muon and zero >= 1)
        gathered += piece * BYTES[run.weights] * (0, 1, 1, 2 * m)[zero]
        moments = 1 if muon else 2
        touched = (
            BYTES[run.gradients] + 2 * moments * BYTES[run.state] + 8 + (run.weights == "bf16") * 2
        )
        moved += held(run, spec, 1) * touched
        products += _muon_flops(run, spec) if muon else 0.0
    return {
        "gradients": reduced / wire if reduced else 0.0,
        "muon": products / rates.flops,
        "optimizer": moved / rates.memory,
        "parameters": gathered / wire if gathered else 0.0,
    }


def _muon_flops(run: TrainingRun, spec: TensorSpec) -> float:
    """On one rank: with ZeRO the copies share out the matrices, without it each copy does them all."""
    rows, columns = spec.shape[-2:]
    number = spec.shape[0] if len(spec.shape) == 3 else 1
    if spec.name.endswith("gate_up_proj"):  # gate and up are two matrices
        number, rows = 2 * number, rows // 2
    workers = run.split.pieces(spec) * (run.split.copies(spec) if run.split.zero >= 1 else 1)
    return number * newton_schulz_flops(rows, columns) / workers
