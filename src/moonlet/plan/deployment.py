"""Claims that a model runs on some hardware: its size, whether it fits, and how fast it would be.

Only what a claim names is counted: the host's memory where it says how much, a drive where it says one. It is
read in its own favour otherwise: a short context, and of all engines that use the hardware and run such weights the one
that does best.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from moonlet.plan.answer import Answer, Estimate, Question, answer
from moonlet.plan.claims_file import DeploymentClaim, Guidance, Range
from moonlet.plan.engines import Engine, Tier, engines
from moonlet.plan.judged import Part, Verdict, compared, gb, listed, percent, verdict_of, within
from moonlet.plan.machine import Machine
from moonlet.plan.placement import Placement, Refusal, capacities, place
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import Weights

# The slowest host that takes hundreds of gigabytes: a desktop with four modules of two ranks, for which AMD
# gives DDR5-3600 on two channels (specifications of the Ryzen 9000 series).
SLOW_BYTES_S, SLOW_CORES = 57.6e9, 16
_PARTS = {"experts": "routed experts", "shared_experts": "shared experts"}
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
    found = _places(claim, _weights(claim))
    fit = _fit(claim, found, bool(sizes) and sizes[0].verdict != "holds")
    if claim.tok_s is None:
        return [*sizes, fit]
    fitting = [one.engine for one in found if isinstance(one, Placement)]
    return [*sizes, fit, _speed(claim, fitting, claim.tok_s)]


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


def _places(claim: DeploymentClaim, weights: Weights) -> list[Placement | Refusal]:
    machine = _named(claim)
    load = Question(claim.config, "native", machine, claim.context).load()
    asked = (one for one in _asked(claim) if "ram" in claim.named or not one.hybrid)
    return [place(one, weights, machine, load) for one in asked]


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
    if not fits and (other := _with_memory(claim)) is not None:
        said.append(other)
    verdict: Verdict = verdict_of(fits)
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
        return f"{can}: {gb(found.missing_bytes)} are missing for weights, cache and buffers."
    load, copies = found.load, f" in {found.replicas} copies" if found.replicas > 1 else ""
    free = sum(size - found.used(tier) for tier, size in room.items() if tier != "disk")
    more = f", room for {found.tokens_left:,.0f} more tokens" if found.tokens_left >= 1 else ""
    return (
        f"{can}: {gb(found.rest_bytes + found.expert_bytes)} of weights, {load.context:,} tokens of cache "
        f"({gb(load.cache_bytes * found.replicas)}) and buffers ({gb(load.buffer_bytes * found.replicas)}){copies} "
        f"fit, and {gb(free)} stay free{more}."
    )


def _at_claimed_size(claim: DeploymentClaim, size: float) -> list[str]:
    found = _places(claim, _stretched(_weights(claim), size))
    if any(isinstance(one, Placement) for one in found):
        return [f"At the claimed {gb(size)} it would fit, too."]
    short = [one for one in found if isinstance(one, Refusal) and one.missing_bytes]
    if not short:
        return []
    least = min(short, key=lambda one: one.missing_bytes)
    return [
        f"At the claimed {gb(size)} it would not fit: {least.engine.name} would lack {gb(least.missing_bytes)}."
    ]


def _with_memory(claim: DeploymentClaim) -> str | None:
    """What memory beside the cards would do for a claim that names none."""
    machine = _named(claim)
    if "ram" in claim.named or claim.precision is None or _is_unified(machine):
        return None
    for ram_gb in (256, 512, 1024, 2048, 4096):
        host = replace(machine.host, ram_bytes=ram_gb * 2**30)
        found = _answers(claim, replace(machine, host=host), _asked(claim))
        if found:
            best, speed = max(found, key=lambda pair: pair[1].value)
            return (
                f"With {ram_gb:,} GB of memory beside them, which the claim does not name, {best.engine.name} would "
                f"run it at {_speeds(speed)} tokens/s{_where(best)}."
            )
    return None


def _answers(
    claim: DeploymentClaim, machine: Machine, asked: Sequence[Engine]
) -> list[tuple[Answer, Estimate]]:
    """Of those engines that it fits, with the speed of one stream."""
    assert claim.precision is not None
    question = Question(
        claim.config, claim.precision, machine, claim.context, weights=claim.weights
    )
    found = (answer(question, one) for one in asked)
    return [(one, one.each_tok_s) for one in found if one.each_tok_s is not None]


def _speed(claim: DeploymentClaim, fitting: Sequence[Engine], claimed: Range) -> Part:
    """Whether the claimed speed meets the predicted interval, on the fastest and the slowest host that it may mean."""
    said = _guidance(claim.published)
    figures = {"claimed_tok_s_low": claimed[0], "claimed_tok_s_high": claimed[1]}
    if not fitting:
        return Part("speed", "does not hold", ("What does not fit has no speed.", *said), figures)
    if claim.precision is None:
        why = "The claim names no precision, and what a step reads depends on it."
        return Part("speed", "cannot be judged", (why, *said), figures)
    lows, highs, met, told = [], [], [], []
    for machine in _hosts(claim, fitting):
        found = _answers(claim, machine, fitting)
        lows += [speed.low for _, speed in found]
        highs += [speed.high for _, speed in found]
        met.append(any(one.low <= claimed[1] and claimed[0] <= one.high for _, one in found))
        told += [_predicted(one, speed) for one, speed in found]
    low, high = min(lows), max(highs)
    figures |= {"predicted_tok_s_low": low, "predicted_tok_s_high": high}
    verdict, why = _meets(claimed, (low, high), met)
    return Part("speed", verdict, (*told, why, *said), figures)


def _hosts(claim: DeploymentClaim, fitting: Sequence[Engine]) -> list[Machine]:
    """The machine as described; and a slow one where the claim leaves open what a step hangs on."""
    machine = _named(claim)
    in_ram = any(_uses_ram(found) for found, _ in _answers(claim, machine, fitting))
    if not in_ram or claim.named & {"cpu", "cpu_bandwidth"}:
        return [machine]
    slow = replace(
        machine.host,
        name="a desktop",
        bandwidth_bytes_s=SLOW_BYTES_S,
        cores=min(SLOW_CORES, machine.host.cores),
    )
    return [machine, replace(machine, host=slow)]


def _uses_ram(found: Answer) -> bool:
    return found.placement is not None and found.placement.used("ram") > 0


def _predicted(found: Answer, speed: Estimate) -> str:
    return (
        f"{found.engine.name} would give {_speeds(speed)} tokens/s{_where(found)} (the interval holds nine of ten "
        f"measurements and rests on {len(found.rows)} rows of the table)."
    )


def _where(found: Answer) -> str:
    """The host, where a step reads its memory."""
    host = found.question.machine.host
    if not _uses_ram(found):
        return ""
    return f" with {host.name}, whose memory reads {host.bandwidth_bytes_s / 1e9:,.0f} GB/s"


def _meets(claimed: Range, predicted: Range, met: Sequence[bool]) -> tuple[Verdict, str]:
    (low, high), text = predicted, f"The claimed {_numbers(claimed)} tokens/s"
    if all(met):
        return "holds", f"{text} meets the interval."
    if claimed[1] < low:
        return "does not hold", f"{text} is below all that is predicted, {low:.2g} to {high:.2g}."
    if claimed[0] > high:
        return "does not hold", f"{text} is above all that is predicted, {low:.2g} to {high:.2g}."
    if len(met) == 1:
        return "does not hold", f"{text} is between what the engines would give."
    return (
        "cannot be judged",
        f"{text} is reached with some memory and not with other: its bandwidth is missing.",
    )


def _guidance(published: Sequence[Guidance]) -> list[str]:
    if not published:
        return []
    each = listed(f"{_numbers(one.tok_s)} ({one.source})" for one in published)
    return [f"Published guidance says {each} tokens/s; it is no measurement, and decides nothing."]


def _speeds(speed: Estimate) -> str:
    return f"{speed.value:.3g} ({speed.low:.2g} to {speed.high:.2g})"


def _numbers(ends: Range) -> str:
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g} to {ends[1]:g}"
