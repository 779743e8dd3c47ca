"""Claims that a model runs on some hardware: its size, and whether it fits; see claimed_speed.py for how fast.

Only what a claim names is counted: the host's memory where it says how much, a drive where it says one. It is
read in its own favour otherwise: a short context, and of all engines that use the hardware and run such weights the one
that does best.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from moonlet.plan.answer import Question, answer
from moonlet.plan.claimed_speed import answers, speed_part, told_speed
from moonlet.plan.claims_file import DeploymentClaim
from moonlet.plan.engines import Engine, Tier, engines
from moonlet.plan.judged import Part, Verdict, compared, gb, listed, percent, verdict_of, within
from moonlet.plan.machine import Machine
from moonlet.plan.placement import RAM_SHARE, Placement, Refusal, capacities, place
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import Weights

_PARTS = {"experts": "routed experts", "shared_experts": "shared experts"}
# Of each card: as far as published start scripts go (InferenceX, Kimi-K2.5 on eight H100: 0.95).
TIGHT_SHARE = 0.95
_TIERS: dict[Tier, str] = {"vram": "the cards", "ram": "the memory", "disk": "the drive"}


def size_part(model: str, weights: Weights, claimed: float) -> Part:
    """Whether `model` takes `claimed` bytes, and what takes them."""
    true = weights.total_bytes
    parts = sorted(((weights.bytes_of(part), part) for part in weights.stored), reverse=True)
    said = [
        f"{model} as {weights.label} takes {gb(true)}: "
        + listed(f"{_PARTS.get(name, name)} {gb(size)}" for size, name in parts if size > 5e7)
        + "."
    ]
    if weights.note:
        said.append(weights.note[0].upper() + weights.note[1:] + ".")
    said.append(f"The claimed {gb(claimed)} is {compared(claimed, true)}.")
    figures = {"claimed_bytes": claimed, "bytes": true}
    return Part("size", verdict_of(within(claimed, true)), tuple(said), figures)


def deployment_parts(claim: DeploymentClaim) -> list[Part]:
    """Size, where the claim has one to compare; fit; speed, where it says one."""
    sizes = []
    if claim.weights is not None and claim.size_bytes is not None:
        sizes = [size_part(claim.model, claim.weights, claim.size_bytes)]
    weights = _weights(claim)
    found = _places(claim, weights)
    fit = _fit(claim, found, bool(sizes) and sizes[0].verdict != "holds")
    if claim.tok_s is None:
        return [*sizes, fit]
    fitting = [one.engine for one in found if isinstance(one, Placement)]
    fitting = fitting or [one.engine for one in _tight(claim, weights)]
    return [*sizes, fit, speed_part(claim, _named(claim), fitting, claim.tok_s)]


def _weights(claim: DeploymentClaim) -> Weights:
    """As the precision says; without one the native weights, stretched to the claimed size."""
    if claim.weights is not None:
        return claim.weights
    assert claim.size_bytes is not None
    return _stretched(weights_as(claim.config), claim.size_bytes)


def _stretched(weights: Weights, size: float) -> Weights:
    times = size / weights.total_bytes
    stored = {
        part: {kind: value * times for kind, value in kinds.items()}
        for part, kinds in weights.stored.items()
    }
    return replace(weights, stored=stored)


def _named(claim: DeploymentClaim) -> Machine:
    """The machine without what was only assumed of it."""
    machine = claim.machine
    if "ram" not in claim.named and not _is_unified(machine):
        machine = replace(machine, host=replace(machine.host, ram_bytes=0.0))
    return machine if claim.named & {"nvme", "disk"} else replace(machine, disk=None)


def _is_unified(machine: Machine) -> bool:
    return any(one.unified for one in machine.accelerators)


def _asked(claim: DeploymentClaim) -> list[Engine]:
    """The engines that run such weights, and do not leave named accelerators idle."""
    return [
        one
        for one in engines().values()
        if (claim.precision is None or one.runs(claim.precision))
        and _is_unified(claim.machine) >= one.unified
        and (not claim.machine.accelerators or "vram" in (*one.experts, *one.rest))
    ]


def _places(
    claim: DeploymentClaim, weights: Weights, asked: Sequence[Engine] | None = None
) -> list[Placement | Refusal]:
    """Of each engine. An engine that shares the work with the host is not asked where the host has nothing."""
    machine, found = _named(claim), list[Placement | Refusal]()
    question = Question(
        claim.config, claim.precision or "native", machine, claim.context, weights=weights
    )
    for one in _asked(claim) if asked is None else asked:
        if one.hybrid and "ram" not in claim.named:
            continue
        if claim.precision is None:
            found.append(place(one, weights, machine, question.load()))
        else:
            said = answer(question, one)
            found += [where for where in (said.placement, said.refusal) if where is not None]
    return found


def _tight(claim: DeploymentClaim, weights: Weights) -> list[Placement]:
    """Where engines that keep all in the cards are told to take more of them than they usually do."""
    raised = [
        replace(one, vram_share=TIGHT_SHARE)
        for one in _asked(claim)
        if one.rest == one.experts == ("vram",) and not one.unified and one.vram_share < TIGHT_SHARE
    ]
    return [one for one in _places(claim, weights, raised) if isinstance(one, Placement)]


def _fit(claim: DeploymentClaim, found: Sequence[Placement | Refusal], is_off: bool) -> Part:
    """is_off: the claimed size is not the true one, so it is told what that would change."""
    machine, weights = _named(claim), _weights(claim)
    have = machine.vram_bytes + machine.nodes * machine.host.ram_bytes * (not _is_unified(machine))
    said = [*_nominal(claim, machine, weights, have), *(_told(one, machine) for one in found)]
    fits = any(isinstance(one, Placement) for one in found)
    missing = [one.missing_bytes for one in found if isinstance(one, Refusal) and one.missing_bytes]
    figures = {"memory_bytes": have, "weight_bytes": weights.total_bytes}
    if missing and not fits:
        figures["missing_bytes"] = min(missing)
    if not found:
        said.append(f"No engine that moonlet knows runs {claim.precision} there.")
    if fits and is_off and claim.size_bytes is not None:
        said += _at_claimed_size(claim, claim.size_bytes)
    verdict: Verdict = verdict_of(fits)
    if not fits and (tight := _tight(claim, weights)):
        verdict = "cannot be judged"
        said += ["It would fit only if an engine took more of the cards than it usually does, which the claim does not "
 "say.", *(_told(one, machine) for one in tight)]  # fmt: skip
        said += _at_claimed_size(claim, claim.size_bytes) if is_off and claim.size_bytes else []
    elif not fits and (other := _with_memory(claim)) is not None:
        said.append(other)
    if fits and claim.precision is None:
        verdict = "cannot be judged"
        said.append("The claim names no precision, so it is open whether those engines run it.")
    return Part("fit", verdict, tuple(said), figures)


def _nominal(claim: DeploymentClaim, machine: Machine, weights: Weights, have: float) -> list[str]:
    """Before any engine has taken its share."""
    cards = Counter(one.name for one in machine.accelerators)
    names = [f"{count * machine.nodes} x {name}" for name, count in cards.items()]
    owners = [f"{gb(machine.vram_bytes)} in {listed(names)}"] if cards else []
    if machine.host.ram_bytes and not _is_unified(machine):
        owners.append(f"{gb(machine.nodes * machine.host.ram_bytes)} of the host's memory")
    left = have - weights.total_bytes
    first = (
        f"The hardware has {listed(owners)} (memory is sold in binary gigabytes), the weights are "
        f"{gb(weights.total_bytes)}: {gb(abs(left))} {'remain' if left >= 0 else 'are missing'} before an engine "
        "takes its share."
    )
    said = [first]
    if "ram" not in claim.named and not _is_unified(machine):
        said.append("The claim names no memory of the host, so that does not count.")
    if machine.disk is not None:
        said.append(f"Experts may stay on the drive, where {gb(machine.disk.free_bytes)} are free.")
    return said


def _told(found: Placement | Refusal, machine: Machine) -> str:
    engine = found.engine
    room: dict[Tier, float] = {
        tier: size for tier, size in capacities(engine, machine).items() if size > 0
    }
    rooms = listed(f"{gb(size)} of {_TIERS[tier]}" for tier, size in room.items()) or "nothing"
    can = f"{engine.name} can fill {rooms}"
    if "vram" in room:
        can += f" ({percent(engine.vram_share)} of each card, less {gb(engine.base_bytes)} for its runtime)"
    if isinstance(found, Refusal):
        if not found.missing_bytes:
            return f"{found.reason}."
        share = engine.vram_share if found.tier == "vram" else RAM_SHARE
        every = capacities(engine, machine)
        needed = sum(every[tier] for tier in every if tier != "disk") + found.missing_bytes * share
        return f"{can}, but weights, cache and buffers are {gb(needed)}; as it fills only that share, {found.reason}."
    load = found.load
    copied = (
        f", {gb(found.copied_bytes)} for what each card holds whole" if found.copied_bytes else ""
    )
    free = sum(size - found.used(tier) for tier, size in room.items() if tier != "disk")
    more = f", room for {found.tokens_left:,.0f} more tokens" if found.tokens_left >= 1 else ""
    return (
        f"{can}: {gb(found.rest_bytes + found.expert_bytes)} of weights{copied}, {load.context:,} tokens of cache "
        f"({gb(load.cache_bytes * found.replicas)}) and buffers ({gb(load.buffer_bytes * found.ranks)}) fit, and "
        f"{gb(free)} stay free{more}."
    )


def _at_claimed_size(claim: DeploymentClaim, size: float) -> list[str]:
    stretched = _stretched(_weights(claim), size)
    found = _places(claim, stretched)
    if any(isinstance(one, Placement) for one in found) or _tight(claim, stretched):
        return [f"At the claimed {gb(size)} it would fit, too."]
    short = [one for one in found if isinstance(one, Refusal) and one.missing_bytes]
    if not short:
        return []
    least = min(short, key=lambda one: one.missing_bytes)
    return [f"At the claimed {gb(size)} it would not fit: {least.reason}."]


def _with_memory(claim: DeploymentClaim) -> str | None:
    """What memory beside the cards would do for a claim that names none."""
    machine = _named(claim)
    if "ram" in claim.named or claim.precision is None or _is_unified(machine):
        return None
    for ram_gb in (256, 512, 1024, 2048, 4096):
        host = replace(machine.host, ram_bytes=ram_gb * 2**30)
        found = answers(claim, replace(machine, host=host), _asked(claim))
        if found:
            best, speed = max(found, key=lambda pair: pair[1].value)
            return (
                f"With {ram_gb:,} GB of memory beside them, which the claim does not name, {best.engine.name} would "
                f"run it at {told_speed(best, speed)}."
            )
    return None
