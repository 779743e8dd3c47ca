"""The JSON document of `moonlet plan`, which its tables are printed from. docs/plan.md describes it."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from moonlet.config import PRESETS, REPOSITORIES, ModelConfig, preset
from moonlet.errors import NotSupportedError
from moonlet.plan.advice import bottleneck, nearest, upgrades
from moonlet.plan.answer import Answer, Question, answer, tiers_of
from moonlet.plan.break_even import break_even
from moonlet.plan.command import start_commands
from moonlet.plan.cost import (
    DAY_S,
    Running,
    Speed,
    agent_mix,
    cost_per_million,
    kwh_usd,
    usd_of,
    watts_of,
)
from moonlet.plan.launch import Launch, made_for
from moonlet.plan.memory import cache_alternatives
from moonlet.plan.prices import Prices
from moonlet.plan.quality import quality_of

# Streams that a machine of one's own may serve at once, for its cost.
BATCHES = (64, 32, 16, 8, 4, 2)


def document(
    args: Namespace, question: Question, answers: Sequence[Answer], notes: Sequence[str]
) -> dict[str, Any]:
    """Bytes, seconds, tokens per second, US dollars; an interval holds nine of ten measurements."""
    name = args.model or "nano"
    names = names_of(args.model, question.config)
    weights = question.stored()
    first = answers[0]
    return {
        "model": name,
        "published_as": published_as(name, question.config),
        "machine": asdict(question.machine),
        "assumed": [*notes, *_no_room(first, args)],
        "request": {
            "context": question.context,
            "streams": question.streams,
            "prompt": question.prompt,
            "answer": question.answer,
            "cache": question.cache,
            "drafted": question.drafted,
            "accepted": question.accepted,
            "expert_hits": question.hits,
        },
        "sizes": {
            "stored_as": weights.label,
            "bytes": weights.total_bytes,
            "parts": {part: dict(kinds) for part, kinds in weights.stored.items()},
            "parameters_active": weights.parameters_active,
            "bytes_read_per_token": sum(weights.bytes_read(1).values()),
            "cache_bytes_per_token": question.load().cache_token_bytes,
            "cache_alternatives": [asdict(one) for one in cache_alternatives(question.config)],
        },
        "plans": [_plan(one, names) for one in answers],
        "best": first.engine.name if first.fits else None,
        "upgrades": [
            asdict(one) | {"gain_per_1000_usd": one.gain_per_1000_usd} for one in upgrades(first)
        ],
        "nearest": None if first.fits else _nearest(answers, names),
        "cost": _cost(args, first, names.known) if first.fits else None,
    }


@dataclass(frozen=True)
class Names:
    """Of the model. start: as engines are told it. known: as tables of quality and prices may know it."""

    start: str
    known: str


def names_of(model: str | None, config: ModelConfig) -> Names:
    """Of MODEL, None for the embedded one."""
    name = model or "nano"
    published = published_as(name, config)
    return Names(_to_start(name, published), published or Path(name).name)


def published_as(model: str, config: ModelConfig) -> str | None:
    """The repository where a model of this very shape was published; of several the one that MODEL resembles."""
    if model.lower() in REPOSITORIES:
        return REPOSITORIES[model.lower()]
    alike = [
        REPOSITORIES[name] for name in PRESETS if name in REPOSITORIES and preset(name) == config
    ]
    own = [name for name in alike if name.rsplit("/", 1)[-1].lower() in model.lower()]
    return next(iter(own or alike), None)


def _to_start(model: str, published: str | None) -> str:
    """A preset or a config.json is nothing that an engine loads."""
    if model.lower() in REPOSITORIES:
        return REPOSITORIES[model.lower()]
    if model.endswith(".json"):
        return published or str(Path(model).parent)
    return model


def _plan(plan: Answer, names: Names) -> dict[str, Any]:
    quality = quality_of(plan.weights.label.removesuffix(" (about)"), names.known)
    common = {
        "engine": plan.engine.name,
        "about": plan.engine.about,
        "quantization": plan.weights.label,
        "bytes": plan.weights.total_bytes,
        "fits": plan.fits,
        "quality": {
            "is_known": quality.is_known,
            "sentence": quality.sentence,
            "sources": list(quality.sources),
        },
    }
    if plan.placement is None:
        refusal = plan.refusal
        assert refusal is not None
        return common | {
            "reason": refusal.reason,
            "missing_bytes": refusal.missing_bytes,
            "tier": refusal.tier,
        }
    place = plan.placement
    part, share = bottleneck(plan)
    return common | {
        "memory": {
            tier: {
                "capacity": place.capacity.get(tier, 0.0),
                "used": place.used(tier),
                "parts": place.parts(tier),
            }
            for tier in tiers_of(place)
        },
        "experts": dict(place.experts),
        "tokens_left": place.tokens_left,
        "load_s": plan.load_s,
        "first_token_s": asdict(plan.first_token_s) if plan.first_token_s else None,
        "prefill_tok_s": asdict(plan.prefill_tok_s) if plan.prefill_tok_s else None,
        "each_tok_s": asdict(plan.each_tok_s) if plan.each_tok_s else None,
        "all_tok_s": asdict(plan.all_tok_s) if plan.all_tok_s else None,
        "step_s": plan.step_parts,
        "bottleneck": {"part": part, "share": share},
        "rests_on_rows": list(plan.rows),
        "start": _start(plan, names.start),
    }


def starts(plan: Answer, names: Names) -> bool:
    """Whether a command is known for a plan that fits."""
    return plan.fits and bool(_start(plan, names.start)["commands"])


def _no_room(plan: Answer, args: Namespace) -> list[str]:
    """A sentence where the drive cannot hold the files of a plan; none of files that are there already."""
    disk, size = plan.question.machine.disk, plan.weights.total_bytes
    as_stored = (args.quantization or "native").lower() == "native"
    is_there = as_stored and plan.weights is plan.question.weights and _is_local(args.model)
    if not plan.fits or disk is None or is_there or size <= disk.free_bytes:
        return []
    free = f"{disk.free_bytes / 1e9:,.0f} GB"
    return [f"the files take {size / 1e9:,.0f} GB, and the drive has {free} free: make room first"]


def _is_local(model: str | None) -> bool:
    """Whether MODEL is a folder or a file with weights; without one it is what moonlet brings along."""
    return model is None or (not model.endswith(".json") and Path(model).expanduser().exists())


def _start(plan: Answer, model: str) -> dict[str, Any]:
    """The commands, or why none is known."""
    try:
        steps = start_commands(_launch(plan, model))
    except NotSupportedError as error:
        return {"commands": [], "problem": str(error)}
    return {"commands": [asdict(step) for step in steps], "made_for": made_for(plan.engine.name)}


def _launch(plan: Answer, model: str) -> Launch:
    question, place, config = plan.question, plan.placement, plan.question.config
    assert place is not None
    machine, in_vram = question.machine, place.experts.get("vram", 0.0)
    gpus = len(machine.accelerators) if place.rest_in == "vram" else 0
    moe = config.num_hidden_layers - config.first_k_dense_replace
    tensor = plan.engine.split == "tensor" and gpus > 1
    return Launch(
        engine=plan.engine.name,
        model=model,
        quantization="native"
        if question.quantization in ("gguf", "packed")
        else question.quantization,
        context=question.context,
        streams=question.streams,
        cache_dtype=question.cache,
        gpus=gpus,
        nodes=machine.nodes,
        tensor=gpus if tensor else 1,
        pipeline=machine.nodes if plan.engine.across == "pipeline" else 1,
        gpu_experts=int(in_vram * config.n_routed_experts),
        cpu_layers=0 if in_vram == 1 else config.first_k_dense_replace + ceil((1 - in_vram) * moe),
        numa=machine.host.sockets,
    )


def _nearest(answers: Sequence[Answer], names: Names) -> dict[str, Any] | None:
    """Of the refusal that lacks least."""
    for refused in sorted(
        answers, key=lambda one: one.refusal.missing_bytes or 1e18 if one.refusal else 0.0
    ):
        found = nearest(refused)
        if found is not None:
            return {
                "instead_of": refused.engine.name,
                "change": found.change,
                "plan": _plan(found.plan, names),
            }
    return None


def _cost(args: Namespace, plan: Answer, model: str) -> dict[str, Any]:
    """What a million tokens cost here and elsewhere, and from which use on the machine is cheaper."""
    machine = plan.question.machine
    usd = args.price if args.price is not None else usd_of(machine)
    watts = args.watts or watts_of(machine)
    if usd is None or not watts:
        return {
            "problem": "the price or the watts of a part of this machine are not known: say --price and --watts"
        }
    kwh = args.kwh if args.kwh is not None else kwh_usd(args.region or "us-home")
    running = Running(watts, usd, kwh)
    busy = _busy(plan)
    assert busy.prefill_tok_s is not None
    assert busy.decode_tok_s is not None
    speed = Speed(busy.prefill_tok_s.value, busy.decode_tok_s.value)
    mix = agent_mix(cached=args.cached)
    each = cost_per_million(running, speed)
    apis = []
    for name, price in Prices(args.prices).of_weights(model).items():
        found = break_even(running, speed, price, mix)
        apis.append(
            {
                "api": name,
                "as_of": str(price.as_of) if price.as_of else None,
                "source": price.source,
                "input": price.input,
                "cached_input": price.cached_input,
                "output": price.output,
                "usd_per_million": found.api_usd,
                "tokens_per_day": found.tokens_per_day if isfinite(found.tokens_per_day) else None,
                "pays": found.pays,
                "sentences": list(found.sentences),
            }
        )
    return {
        "streams": busy.question.streams,
        "usd": usd,
        "watts": watts,
        "kwh_usd": kwh,
        "years": running.years,
        "utilisation": running.utilisation,
        "hardware_usd_per_day": running.hardware_usd_per_day,
        "idle_usd_per_day": running.idle_usd_per_day,
        "prefill_tok_s": speed.prefill_tok_s,
        "decode_tok_s": speed.decode_tok_s,
        "usd_per_million_more": mix.seconds_per_million(speed) * running.extra_usd_per_s,
        "most_per_day": DAY_S * running.utilisation / mix.seconds_per_million(speed) * 1e6,
        "per_million": {
            kind: asdict(cost) | {"total": cost.total} for kind, cost in vars(each).items()
        },
        "mix": asdict(mix),
        "apis": apis,
    }


def _busy(plan: Answer) -> Answer:
    """With as many streams, of BATCHES, as make the most tokens: who counts costs keeps a machine busy.

    More are not always better: their caches may push experts out of a faster memory.
    """
    more = [streams for streams in BATCHES if streams > plan.question.streams]
    others = [answer(replace(plan.question, streams=streams), plan.engine) for streams in more]
    return max((plan, *others), key=_made)


def _made(plan: Answer) -> float:
    return plan.decode_tok_s.value if plan.decode_tok_s else 0.0
