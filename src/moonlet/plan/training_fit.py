"""Whether a training run fits, and the smallest change that makes one fit that does not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from moonlet.plan.machine import Machine
from moonlet.plan.training import RankMemory, TrainingRun, training_memory

_Change = tuple[str, dict[str, Any], dict[str, Any]]
# Words, then what they change of the run and of its split.
_CHANGES: tuple[_Change, ...] = (
    ("share the optimizer's state out (zero1)", {}, {"zero": 1}),
    ("work on one sequence at once (--micro-batch 1)", {"micro_batch": 1}, {}),
    (
        "recompute norms, SwiGLU and projections (--recompute selective)",
        {"recompute": "selective"},
        {},
    ),
    ("keep the experts' inputs in FP8 (--fp8-activations)", {"fp8": True}, {}),
    ("share gradients out (zero2)", {}, {"zero": 2}),
    ("keep activations in the host's memory (--offload)", {"offload": True}, {}),
    ("recompute whole layers (--recompute full)", {"recompute": "full"}, {}),
    ("share parameters out (zero3)", {}, {"zero": 3}),
)
# Of a rank's memory: the rest is the driver's, the libraries' and what an allocator cannot use.
_USABLE = 0.92


@dataclass(frozen=True)
class Fit:
    """missing_bytes: of the fullest rank, or of a host that keeps activations; 0 where the run fits. change: what
    to do about it, in words, None where nothing is to be done or nothing helps."""

    memory: RankMemory
    usable_bytes: float
    missing_bytes: float
    change: str | None

    @property
    def fits(self) -> bool:
        return self.missing_bytes <= 0


def training_fit(run: TrainingRun, machine: Machine) -> Fit:
    """Does the fullest rank fit its accelerator, or the host where there is none?

    If not, changes are taken in the order of what they cost in speed until it does, and those that turn out
    not to be needed are dropped again, the costliest first.
    """
    usable, missing, memory = _missing(run, machine)
    if missing <= 0:
        return Fit(memory, usable, 0.0, None)

    def enough(changes: Sequence[_Change]) -> bool:
        return _missing(_changed(run, changes), machine)[1] <= 0

    needed = next((_CHANGES[:n] for n in range(1, len(_CHANGES) + 1) if enough(_CHANGES[:n])), ())
    for change in reversed(needed):
        fewer = tuple(one for one in needed if one != change)
        needed = fewer if enough(fewer) else needed
    return Fit(memory, usable, missing, ", ".join(words for words, _, _ in needed) or None)


def _missing(run: TrainingRun, machine: Machine) -> tuple[float, float, RankMemory]:
    memory = training_memory(run).worst
    host = machine.host.ram_bytes * _USABLE
    if not machine.accelerators:
        return host, memory.total_bytes + memory.host_bytes - host, memory
    usable = machine.accelerators[0].memory_bytes * _USABLE
    waiting = max(rank.host_bytes for rank in training_memory(run).ranks) * len(
        machine.accelerators
    )
    return usable, max(memory.total_bytes - usable, waiting - host), memory


def _changed(run: TrainingRun, changes: Sequence[_Change]) -> TrainingRun:
    """The run with whatever of the changes goes further than the run does already."""
    for _, of_run, of_split in changes:
        if run.recompute == "full" and "recompute" in of_run:
            continue
        if of_split.get("zero", 4) > run.split.zero:
            run = replace(run, **of_run, split=replace(run.split, **of_split))
    return run
