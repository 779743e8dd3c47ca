"""Pretraining at paper scale: Kimi K2's and K2.5's stages, one optimizer step of each played task by task.

What is published: the network, the stages' tokens and lengths, the parallel split, what is recomputed and
offloaded (arXiv 2507.20534, sections 2.4 and 2.5; arXiv 2602.02276, section 4.3 and appendix C). What is not, and
therefore assumed, stands in `assumptions`.
"""

from dataclasses import dataclass, replace

from moonlet.config import ModelConfig
from moonlet.errors import ConfigError
from moonlet.plan.machine import Machine
from moonlet.plan.pipeline import ChunkCost, Late, Played, play
from moonlet.plan.split import Split
from moonlet.plan.training import (
    BYTES,
    RankMemory,
    TrainingRun,
    in_flight,
    k2_run,
    training_memory,
)
from moonlet.plan.training_time import (
    ChunkTime,
    Efficiency,
    Rates,
    StepTime,
    chunk_times,
    optimizer_seconds,
    step_seconds,
)

GROUP = 256  # GPUs that hold one copy of K2's experts: 16 pipeline ranks, 16 ranks of experts
TOKENS_PER_STEP = 2**26  # 67 M, K2's batch; K2.5's is not published
UNSURE = 0.2  # of the efficiency of computation, either way: the interval of days
_RANK_TOKENS = 4096  # that a rank works on at once; longer sequences are shared by several ranks
_DECOUPLED_ENCODER = 0.9  # of the speed on text, arXiv 2602.02276, appendix C


@dataclass(frozen=True)
class Stage:
    """tokens: how many it trains on, in sequences of `sequence`. images: beside text."""

    name: str
    tokens: float
    sequence: int
    images: bool = False


STAGES: dict[str, tuple[Stage, ...]] = {
    "kimi-k2": (
        Stage("pretraining", 15.5e12, 4096),
        Stage("annealing", 400e9, 4096),
        Stage("annealing, long", 60e9, 32768),
    ),
    # On top of K2. The table gives the two ends of mid-training: 500 to 200 B tokens, 32768 to 262144.
    "kimi-k2.5": (
        Stage("text and images", 15e12, 4096, images=True),
        Stage("mid-training, 32k", 500e9, 32768, images=True),
        Stage("mid-training, 256k", 200e9, 262144, images=True),
    ),
}


@dataclass(frozen=True)
class SimulatedStep:
    """One optimizer step, played. seconds: its length. idle_share: of all computing lanes, bubbles and waiting
    together. exchange_share: of the network lane of the busiest rank. formula: the same step in closed form.
    """

    run: TrainingRun
    played: Played
    formula: StepTime
    memory: RankMemory
    seconds: float
    idle_share: float
    exchange_share: float

    @property
    def mfu(self) -> float:
        return self.formula.model_flops / (self.seconds * self.formula.peak_flops)

    @property
    def tokens_per_s(self) -> float:
        return self.run.tokens_per_step / self.seconds

    def days(self, tokens: float) -> float:
        return tokens / self.tokens_per_s / 86400


@dataclass(frozen=True)
class SimulatedStage:
    """days: of the stage, with the interval that an efficiency of computation 20 % higher or lower gives."""

    stage: Stage
    step: SimulatedStep
    days: float
    days_low: float
    days_high: float
    gpu_hours: float


def simulate_step(
    run: TrainingRun, machine: Machine, efficiency: Efficiency | None = None
) -> SimulatedStep:
    """Play one optimizer step of any run. Raises ConfigError as `step_seconds` and `play` do.

    Backward passes are cut in two halves, of the inputs and of the weights; what is recomputed precedes the
    first.
    """
    efficiency = efficiency or Efficiency()
    formula = step_seconds(run, machine, efficiency)
    rates = Rates.of(run, machine, efficiency)
    costs = [_cost(time, efficiency.overlap) for time in chunk_times(run, machine, efficiency)]
    token = run.config.hidden_size * BYTES[run.activations]
    after = [
        [
            Late("gradients", "network", late["gradients"]),
            Late("optimizer", "compute", late["muon"] + late["optimizer"]),
            Late("parameters", "network", late["parameters"]),
        ]
        for late in optimizer_seconds(run, rates, alone=machine.nodes == 1)
    ]
    p = run.split.pipeline
    between = rates.link if machine.nodes == 1 else rates.network
    transfer = run.micro_batch_tokens * token / between if p > 1 else 0.0
    played = play(costs, p, run.micro_batches, transfer, run.extra_warmup, after)
    exchange = max(played.busy(rank, "network") for rank in range(p)) / played.seconds
    return SimulatedStep(
        run, played, formula, training_memory(run).worst, played.seconds / efficiency.multimodal,
        played.idle_share, exchange,
    )  # fmt: skip


def _cost(time: ChunkTime, overlap: float) -> ChunkCost:
    """What of the exchange cannot overlap holds computation up; so does a copy engine that falls behind."""
    slowed = max(1.0, time.offload / time.computed) if time.computed else 1.0
    waits = time.tensor + (1 - overlap) * time.exchange
    half = time.backward / 2
    return ChunkCost(
        slowed * (time.forward + waits),
        slowed * (time.recompute + half + waits),
        slowed * half,
        overlap * time.exchange,
    )


def stage_run(config: ModelConfig, stage: Stage, gpus: int, virtual: int = 2) -> TrainingRun:
    """K2's recipe for a stage: sequences longer than 4096 tokens are shared by several ranks."""
    run = k2_run(config, gpus, virtual)
    context = max(stage.sequence // _RANK_TOKENS, 1)
    if run.split.data % context:
        raise ConfigError(
            f"{stage.name}: {context} ranks to a sequence do not divide {run.split.data}"
        )
    split: Split = replace(run.split, context=context)
    return replace(
        run, split=split, sequence=stage.sequence, global_batch=TOKENS_PER_STEP // stage.sequence
    )


def simulate_pretraining(
    config: ModelConfig,
    stages: tuple[Stage, ...],
    machine: Machine,
    gpus: int = 2048,
    virtual: int = 2,
    efficiency: Efficiency | None = None,
) -> list[SimulatedStage]:
    """Every stage on the first `gpus` of the machine. Raises ConfigError."""
    efficiency = efficiency or Efficiency()
    found = []
    for stage in stages:
        one = replace(efficiency, multimodal=_DECOUPLED_ENCODER) if stage.images else efficiency
        run = stage_run(config, stage, gpus, virtual)
        step = simulate_step(run, machine, one)
        days = step.days(stage.tokens)
        low, high = (days * _scaled(run, machine, one, by) for by in (1 + UNSURE, 1 - UNSURE))
        found.append(SimulatedStage(stage, step, days, low, high, days * 24 * run.split.ranks))
    return found


def _scaled(run: TrainingRun, machine: Machine, efficiency: Efficiency, by: float) -> float:
    """How much longer a step takes, in closed form, where computation reaches `by` times the share."""
    other = replace(efficiency, compute=min(efficiency.compute * by, 1.0))
    return (
        step_seconds(run, machine, other).seconds / step_seconds(run, machine, efficiency).seconds
    )


def assumptions(run: TrainingRun, efficiency: Efficiency) -> tuple[str, ...]:
    """What the time and the memory of a run rest on, in sentences."""
    s = run.split
    said = [
        f"computation reaches {efficiency.compute:.0%} of the peak while it runs, as DeepSeek-V3's published step "
        f"implies; the interval is {UNSURE:.0%} of that either way; small networks and batches reach less"
    ]
    if s.pipeline > 1:
        said.append("layers are cut evenly, embedding and head counting as one each")
    if s.expert > 1:
        said.append(
            "experts are chosen evenly, a token goes once to each node that needs it, and "
            f"{efficiency.overlap:.0%} of that exchange can run beside the computation of other micro-batches"
        )
    if s.context > 1:
        said.append(
            f"{s.context} ranks share a sequence, and exchange its keys and values at no cost"
        )
    if run.offload:
        said.append(
            f"of the {in_flight(run, 0)} chunks of micro-batches that the first stage holds, three are on the "
            "GPU and the others in the host's memory"
        )
    if s.ranks > 1:
        said.append(
            f"the network carries {efficiency.network:.0%} of its nominal rate, and nothing fails, restarts or waits "
            "for data"
        )
    return tuple(said)


def unpublished(run: TrainingRun) -> str:
    """What of Kimi K2's own run is a guess, in a sentence."""
    return (
        f"Moonshot does not say how many GPUs there were (here {run.split.ranks}), how many chunks of layers each had "
        f"({run.split.virtual}), which layers those were, nor how many sequences a micro-batch had ({run.micro_batch})"
    )
