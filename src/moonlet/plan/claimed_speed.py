"""How fast a claim says that a deployment is, against what is predicted."""

from collections.abc import Sequence
from dataclasses import replace

from moonlet.plan.answer import Answer, Estimate, Question, answer
from moonlet.plan.claims_file import DeploymentClaim, Guidance, Range
from moonlet.plan.engines import Engine
from moonlet.plan.judged import Part, Verdict, listed
from moonlet.plan.machine import Machine

# The slowest host that takes hundreds of gigabytes: a desktop with four modules of two ranks, for which AMD
# gives DDR5-3600 on two channels (specifications of the Ryzen 9000 series).
SLOW_BYTES_S, SLOW_CORES = 57.6e9, 16


def answers(
    claim: DeploymentClaim, machine: Machine, asked: Sequence[Engine]
) -> list[tuple[Answer, Estimate]]:
    """Of those engines that it fits, with the speed of one stream."""
    assert claim.precision is not None
    question = Question(
        claim.config, claim.precision, machine, claim.context, weights=claim.weights
    )
    found = (answer(question, one) for one in asked)
    return [(one, one.each_tok_s) for one in found if one.each_tok_s is not None]


def speed_part(
    claim: DeploymentClaim, machine: Machine, fitting: Sequence[Engine], claimed: Range
) -> Part:
    """Whether the claimed speed meets the predicted interval, on the fastest and the slowest host that it may mean."""
    said = _guidance(claim.published)
    figures = {"claimed_tok_s_low": claimed[0], "claimed_tok_s_high": claimed[1]}
    if not fitting:
        return Part("speed", "does not hold", ("What does not fit has no speed.", *said), figures)
    if claim.precision is None:
        why = "The claim names no precision, and what a step reads depends on it."
        return Part("speed", "cannot be judged", (why, *said), figures)
    lows, highs, met, told = [], [], [], []
    for one_machine in _hosts(claim, machine, fitting):
        found = answers(claim, one_machine, fitting)
        lows += [speed.low for _, speed in found]
        highs += [speed.high for _, speed in found]
        met.append(any(one.low <= claimed[1] and claimed[0] <= one.high for _, one in found))
        told += [_predicted(one, speed) for one, speed in found]
    low, high = min(lows), max(highs)
    figures |= {"predicted_tok_s_low": low, "predicted_tok_s_high": high}
    verdict, why = _meets(claimed, (low, high), met)
    return Part("speed", verdict, (*told, why, *said), figures)


def _hosts(claim: DeploymentClaim, machine: Machine, fitting: Sequence[Engine]) -> list[Machine]:
    """The machine as described; and a slow one where the claim leaves open what a step hangs on."""
    in_ram = any(_uses_ram(found) for found, _ in answers(claim, machine, fitting))
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
        f"{found.engine.name} would give {told_speed(found, speed)} (the interval holds nine of ten "
        f"measurements and rests on {len(found.rows)} rows of the table)."
    )


def told_speed(found: Answer, speed: Estimate) -> str:
    """With the host, where a step reads its memory."""
    said = f"{speed.value:.3g} ({speed.low:.2g} to {speed.high:.3g}) tokens/s"
    host = found.question.machine.host
    if not _uses_ram(found):
        return said
    return f"{said} with {host.name}, whose memory reads {host.bandwidth_bytes_s / 1e9:,.0f} GB/s"


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


def _numbers(ends: Range) -> str:
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g} to {ends[1]:g}"
