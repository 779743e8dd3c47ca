"""What holds a plan back, what would help most, and the nearest thing that works when it does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from moonlet.plan.answer import Answer, Question, answer
from moonlet.plan.choice import best, candidates, chosen
from moonlet.plan.engines import Engine, engines
from moonlet.plan.machine import Machine

RAM_USD_GB = 6.0  # registered DDR5, 2026; what a board and its processor cost is not in it
WORTH = 1.05  # times faster: less is not worth telling


@dataclass(frozen=True)
class Upgrade:
    """One change of the hardware, what it does to one stream's speed, and its price where that is known."""

    change: str
    times_faster: float
    usd: float | None = None

    @property
    def gain_per_1000_usd(self) -> float | None:
        """Percent."""
        return None if not self.usd else (self.times_faster - 1) * 100 / (self.usd / 1000)


def bottleneck(plan: Answer) -> tuple[str, float]:
    """What takes the largest share of a step, and that share."""
    whole = sum(plan.step_parts.values())
    name = max(plan.step_parts, key=lambda part: plan.step_parts[part])
    return name, plan.step_parts[name] / whole


def upgrades(plan: Answer) -> list[Upgrade]:
    """Changes that make a stream faster, the best value first: by price where all have one, else by speed."""
    if plan.each_tok_s is None:
        return []
    found = []
    for change, machine, usd in _changes(plan.question.machine):
        question = replace(plan.question, machine=machine)
        other = answer(question, plan.engine)
        if other.each_tok_s is not None:
            found.append(Upgrade(change, other.each_tok_s.value / plan.each_tok_s.value, usd))
    found = [one for one in found if one.times_faster >= WORTH]
    return sorted(found, key=lambda one: (-(one.gain_per_1000_usd or 0.0), -one.times_faster))


def _changes(machine: Machine) -> Iterator[tuple[str, Machine, float | None]]:
    host = machine.host
    if machine.disk is not None:
        disk = replace(machine.disk, bandwidth_bytes_s=machine.disk.bandwidth_bytes_s * 2)
        yield "twice as fast a drive", replace(machine, disk=disk), None
    if any(one.unified for one in machine.accelerators):
        return  # nothing can be added to an Apple chip
    if machine.accelerators:
        one = machine.accelerators[0]
        yield (
            f"one more {one.name}",
            replace(machine, accelerators=(*machine.accelerators, one)),
            one.usd,
        )
    faster = replace(host, bandwidth_bytes_s=host.bandwidth_bytes_s * 1.5)
    yield (
        "memory half as fast again (more channels, faster modules)",
        replace(machine, host=faster),
        None,
    )
    more = replace(host, ram_bytes=host.ram_bytes * 2)
    usd = host.ram_bytes / 2**30 * RAM_USD_GB
    yield "twice the memory", replace(machine, host=more), usd


@dataclass(frozen=True)
class Nearest:
    """A change of the question under which it works, in words, and the answer then."""

    change: str
    plan: Answer


def nearest(plan: Answer) -> Nearest | None:
    """For a question that was refused: the mildest of a shorter context, another engine, a smaller
    quantization, both of the last, and a larger drive; None if nothing does."""
    question, engine = plan.question, plan.engine
    for context in _shorter(question.context):
        found = answer(replace(question, context=context), engine)
        if found.fits:
            return Nearest(f"a context of {context:,} tokens", found)
    for other in engines().values():
        if other is not engine and (found := answer(question, other)).fits:
            return Nearest(f"{other.name} in place of {engine.name}", found)
    smaller = _smaller(question, engine)
    if smaller is not None:
        return Nearest(
            f"{smaller.question.quantization} in place of {question.quantization}", smaller
        )
    found = [best(replace(question, weights=None), other) for other in engines().values()]
    fitting = [one for one in found if one.fits]
    if not fitting:
        return _with_drive(question)
    large = max(fitting, key=lambda one: one.weights.total_bytes)  # which loses least
    return Nearest(f"{large.engine.name} with {large.question.quantization}", large)


def _smaller(question: Question, engine: Engine) -> Answer | None:
    size = question.stored().total_bytes
    names = candidates(question, engine)
    others = (replace(question, quantization=name, weights=None) for name in names)
    return chosen((one for one in others if one.stored().total_bytes < size), engine)


def _with_drive(question: Question) -> Nearest | None:
    """The smallest weights on a drive that holds them all, where there is one that is too small."""
    disk = question.machine.disk
    if disk is None:
        return None
    for engine in (one for one in engines().values() if "disk" in one.experts):
        name = candidates(question, engine)[-1]
        asked = replace(question, quantization=name, weights=None)
        size = asked.stored().total_bytes
        room = replace(disk, free_bytes=max(size, disk.free_bytes))
        found = answer(replace(asked, machine=replace(question.machine, disk=room)), engine)
        if found.fits:
            what = f"{engine.name} with {name} and {ceil(size / 1e9):,} GB free on the drive"
            return Nearest(what, found)
    return None


def _shorter(context: int) -> Iterator[int]:
    while context > 4096:
        context //= 2
        yield context
