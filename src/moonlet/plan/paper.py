"""The tables of docs/cluster.md: Kimi K2 and K2.5 trained and served at the size of their papers.

`moonlet plan kimi-k2.5 --train paper` prints them, `python tools/cluster_page.py` writes them into the page.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from moonlet.config import preset
from moonlet.plan.cluster import (
    STAGES,
    SimulatedStage,
    simulate_pretraining,
    simulate_step,
    unpublished,
)
from moonlet.plan.cluster import assumptions as training_assumptions
from moonlet.plan.cluster_serving import ServingCluster, saturated, simulate_serving
from moonlet.plan.cluster_serving import assumptions as serving_assumptions
from moonlet.plan.describe import describe_machine
from moonlet.plan.machine import Machine
from moonlet.plan.split import Split
from moonlet.plan.training import KINDS, TrainingRun, k2_run, training_memory
from moonlet.plan.training_time import Efficiency, model_flops, step_seconds

GPUS = 2048  # as many as DeepSeek-V3 had; Moonshot does not say
_NETWORK_GBIT = 3200  # of a node: eight adapters of 400 Gb/s
_RAM_GB = 2048  # of a node (arXiv 2507.20534, section 2.4.1)

Cell = str | float | int


@dataclass(frozen=True)
class Sheet:
    """One table. Units are in the heads; `rows` hold numbers as they were computed."""

    name: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    assumed: tuple[str, ...] = ()

    def texts(self) -> list[list[str]]:
        """The rows as a person reads them."""
        return [[_text(cell) for cell in row] for row in self.rows]

    def markdown(self) -> str:
        lines = [self.head, ("---", *["---:"] * (len(self.head) - 1)), *self.texts()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sheets() -> Iterator[Sheet]:
    """All tables of the page, in its order."""
    makers: Sequence[Callable[[], Sheet]] = (
        checks,
        memory,
        stages,
        step,
        schedules,
        serving,
        played,
    )
    return (make() for make in makers)


def nodes(gpu: str, count: int) -> Machine:
    """So many nodes of eight, as the published clusters have them."""
    return describe_machine([f"8x{gpu}"], ram_gb=_RAM_GB, nodes=count, network_gbit=_NETWORK_GBIT)[
        0
    ]


def checks() -> Sheet:
    """What is published beside what comes out here."""
    k2, v3 = preset("kimi-k2"), preset("deepseek-v3")
    whole = training_memory(TrainingRun(k2)).worst.bytes
    large = training_memory(k2_run(k2, 8192))
    # 16-way pipeline, 64-way experts, ZeRO-1, 15360 sequences (arXiv 2412.19437, sections 3.2 and 4.2)
    run = TrainingRun(v3, Split(16, expert=64, data=128, zero=1), 15360)
    found = step_seconds(run, nodes("H800", 256))
    tokens_s = found.tokens / 19.926 / run.split.ranks  # of a GPU
    return Sheet(
        "checks",
        ("figure", "published", "here", "source"),
        (
            ("K2: weights and gradients, TB", "about 6", (whole["parameters"] + whole["gradients"]) / 1e12, "arXiv 2507.20534, 2.4.2"),
            ("K2: all states of a GPU in a large cluster, GB", "about 30", large.mean_state_bytes / 1e9, "the same"),
            ("DeepSeek-V3: TFLOPS of a GPU at its published speed", 385, model_flops(v3, 4096) * tokens_s / 1e12, "arXiv 2505.09343, table 4"),
            ("DeepSeek-V3: a step, s (fitted)", 19.926, found.seconds, "the same"),
            ("DeepSeek-V3: of that bubble, s", 2.06, found.parts["bubble"], "the same"),
            ("DeepSeek-V3: million GPU hours for 14.8 T tokens", 2.664, found.gpu_hours(14.8e12) / 1e6, "arXiv 2412.19437, table 1"),
            *_serving_checks(),
        ),
    )  # fmt: skip


def _serving_checks() -> Iterator[tuple[Cell, ...]]:
    one, two = "LMSYS, 2025-05-05", "LMSYS, 2025-07-20"
    r1 = ServingCluster(
        preset("deepseek-r1"), nodes("H100", 4), nodes("H100", 9), batch=256, redundant=32
    )
    own = replace(r1, prompt=4096, batch=128, decode=nodes("H800", 16))
    k2 = k2_serving()
    yield (
        "R1: prefill of a node of H100, 1000 tokens/s (fitted)",
        54.543,
        saturated(r1).prefill_tok_s / 4e3,
        one,
    )
    yield (
        "R1: decode of a node of H100, 1000 tokens/s (fitted)",
        22.282,
        saturated(r1).decode_tok_s / 9e3,
        one,
    )
    yield (
        "R1: the same for prompts of 4000",
        50.302,
        saturated(replace(r1, prompt=4000)).prefill_tok_s / 4e3,
        one,
    )
    yield "R1: decode in DeepSeek's profile", 18.598, saturated(own).decode_tok_s / 16e3, one
    yield "K2: prefill of 32 H200, 1000 tokens/s", 224, saturated(k2).prefill_tok_s / 1e3, two
    yield "K2: decode of 96 H200, 1000 tokens/s", 288, saturated(k2).decode_tok_s / 1e3, two


def memory() -> Sheet:
    """The fullest GPU of K2's and K2.5's training by how many GPUs there are."""
    rows = []
    for model, gpus in (
        ("kimi-k2", 256),
        ("kimi-k2", 512),
        ("kimi-k2", 2048),
        ("kimi-k2", 8192),
        ("kimi-k2.5", 2048),
    ):
        worst = training_memory(k2_run(preset(model), gpus)).worst
        parts = [worst.bytes[kind] / 1e9 for kind in KINDS]
        rows.append((model, f"{gpus:,}", *parts, worst.total_bytes / 1e9, worst.host_bytes / 1e9))
    return Sheet(
        "memory", ("model", "GPUs", *KINDS, "of 80 GB", "in the host's memory"), tuple(rows)
    )


def stages(machine: Machine | None = None, gpus: int = GPUS) -> Sheet:
    """Every stage of both models' pretraining."""
    machine = machine or nodes("H800", gpus // 8)
    rows, assumed = [], ()
    for model in ("kimi-k2", "kimi-k2.5"):
        found = simulate_pretraining(preset(model), STAGES[model], machine, gpus)
        rows += [_stage_row(model, one) for one in found]
        run = found[-1].step.run
        assumed = (unpublished(run), *training_assumptions(run, Efficiency()))
    head = (
        "stage",
        "10^12 tokens",
        "sequence",
        "step, s",
        "idle",
        "MFU",
        "days",
        "days, from - to",
        "10^6 GPU hours",
    )
    return Sheet("stages", head, tuple(rows), assumed)


def _stage_row(model: str, found: SimulatedStage) -> tuple[Cell, ...]:
    played, stage = found.step, found.stage
    span = f"{found.days_low:.1f} - {found.days_high:.1f}"
    return (
        f"{model}: {stage.name}", stage.tokens / 1e12, f"{stage.sequence:,}", played.seconds, f"{played.idle_share:.1%}",
        f"{played.mfu:.1%}", found.days, span, found.gpu_hours / 1e6,
    )  # fmt: skip


def step() -> Sheet:
    """What a step of K2's pretraining goes to, in closed form, and how long it is when played."""
    played = simulate_step(k2_run(preset("kimi-k2"), GPUS), nodes("H800", GPUS // 8))
    whole = played.formula.seconds
    shown = {name: seconds for name, seconds in played.formula.parts.items() if seconds >= 0.005}
    rows = [(name, seconds, f"{seconds / whole:.1%}") for name, seconds in shown.items()]
    rows += [
        ("all", whole, f"{1:.1%}"),
        ("played task by task", played.seconds, f"{played.seconds / whole:.1%}"),
    ]
    return Sheet("step", ("part", "seconds", "share"), tuple(rows))


def schedules() -> Sheet:
    """The same step under other schedules."""
    run, machine = k2_run(preset("kimi-k2"), GPUS), nodes("H800", GPUS // 8)
    flat = replace(run, split=replace(run.split, virtual=1))
    tries: tuple[tuple[str, TrainingRun, Efficiency], ...] = (
        ("two chunks a rank, one more micro-batch of warm-up", run, Efficiency()),
        ("no further warm-up", replace(run, extra_warmup=0), Efficiency()),
        ("no virtual stages", flat, Efficiency()),
        ("exchange of experts not hidden", run, Efficiency(overlap=0.0)),
        ("everything recomputed", replace(run, recompute="full"), Efficiency()),
    )
    rows = []
    for name, changed, efficiency in tries:
        found = simulate_step(changed, machine, efficiency)
        held = found.played.in_flight(0)
        rows.append((name, found.seconds, f"{found.idle_share:.1%}", f"{found.mfu:.1%}", held))
    return Sheet(
        "schedules", ("schedule", "step, s", "idle", "MFU", "in flight on rank 0"), tuple(rows)
    )


def k2_serving() -> ServingCluster:
    """Kimi K2 as LMSYS served it on 2025-07-20: 4 nodes of H200 read, 12 write, 480 requests a GPU."""
    return ServingCluster(preset("kimi-k2"), nodes("H200", 4), nodes("H200", 12))


def serving() -> Sheet:
    """Each side of that cluster by itself, full."""
    cluster = k2_serving()
    found = saturated(cluster)
    rows = [
        (
            name,
            gpus,
            each.compute * 1e3,
            each.exchange * 1e3,
            each.seconds * 1e3,
            rate / 1e3,
            rate / gpus,
        )
        for name, gpus, each, rate in (
            ("prefill", cluster.prefill.num_accelerators, found.prefill_step, found.prefill_tok_s),
            ("decode", cluster.decode.num_accelerators, found.decode_step, found.decode_tok_s),
        )
    ]
    head = (
        "side",
        "GPUs",
        "computation, ms",
        "exchange, ms",
        "step, ms",
        "1000 tokens/s",
        "tokens/s a GPU",
    )
    return Sheet("serving", head, tuple(rows), serving_assumptions(cluster))


def played() -> Sheet:
    """Requests played through it, at nine tenths of what prefill can read."""
    rows = []
    for output in (100, 1000, 2500):
        cluster = replace(k2_serving(), output=output)
        per_s = 0.9 * saturated(cluster).prefill_tok_s / cluster.prompt
        run = simulate_serving(cluster, per_s)
        rows.append(
            (f"2,000 in, {output:,} out", per_s, run.prefill_tok_s / 1e3, run.decode_tok_s / 1e3, run.batch,
             run.ttft_s * 1e3, run.tpot_s * 1e3)
        )  # fmt: skip
    head = ("requests", "a second", "read, 1000 tokens/s", "written, 1000 tokens/s", "requests a GPU", "first token, ms",
            "each further, ms")  # fmt: skip
    return Sheet("played", head, tuple(rows))


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 1000:
        return f"{cell:,.0f}"
    return f"{cell:.3g}" if abs(cell) < 1 else f"{cell:.4g}" if abs(cell) < 10 else f"{cell:.1f}"
