"""`moonlet plan MODEL`: does it fit, where does it go, how fast, with which command, and what would an API cost."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet.cli.console import UsageError, add_json_flag, print_json
from moonlet.cli.models import describe
from moonlet.cli.plan_flags import HARDWARE, check_flags
from moonlet.cli.plan_train import add_training_options, run_training

if TYPE_CHECKING:
    from moonlet.plan.answer import Answer, Question
    from moonlet.plan.calibration import Calibration
    from moonlet.plan.machine import Machine

CONTEXT, PROMPT, ANSWER = 32_768, 2048, 512  # tokens, where the model has as many
ACCEPTED = 0.6  # of drafts
_MOST, _MOST_WHOLE = 1e12, 10**9


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "plan",
        help="what fits on which hardware, how fast, what it costs",
        description="Say of a model and a machine what fits where, how fast each engine would be, how sure that is, "
        "and what an API would cost instead. Without any hardware it is this machine. Reads headers, never weights.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="folder, .gguf file, config.json, preset or org/name (default: the embedded model)",
    )
    parser.add_argument("-q", "--quantization", metavar="NAME", help="native, int4, fp8, nvfp4, q8_0, q4_k_m, q2_k_xl, "
                        "ud-q2_k_xl, 3.5bpw, a table of a mix, ... (default: for each engine the largest that fits)")  # fmt: skip
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="moonlet, llama.cpp, ktransformers, sglang, vllm or mlx (default: all)",
    )
    _add_hardware(parser)
    _add_load(parser)
    _add_money(parser)
    add_training_options(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw memory, speed over context and cost over use, as .svg, "
                        ".png or .pdf (needs moonlet[plot])")  # fmt: skip
    parser.add_argument(
        "--measure", action="store_true", help="measure this machine for two minutes, and keep that"
    )
    parser.add_argument(
        "--check-claims",
        type=Path,
        metavar="FILE",
        help="judge a table of claims (TOML) in place of planning; k25 is what circulates about Kimi-K2.5",
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def _add_hardware(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("hardware", "What is not said is assumed, and told.")
    group.add_argument("--gpu", action="append", metavar="[N]xNAME", help="8xh200, 1xrtx4090, 1xm3-ultra-512, or "
                       "2xNAME:24GB@936 for others (GB/s); may be repeated")  # fmt: skip
    group.add_argument("--ram", type=_positive, metavar="GB", help="memory of the host")
    group.add_argument("--cpu", metavar="NAME", help="as epyc-9575f, xeon-8488c")
    group.add_argument(
        "--cpu-bandwidth", type=_positive, metavar="GB/S", help="of the host's memory"
    )
    group.add_argument("--cores", type=_whole, metavar="N", help="of the host")
    group.add_argument("--sockets", type=_whole, metavar="N", help="processors of the host")
    group.add_argument(
        "--nvme", type=_number, metavar="GB/S", help="reading speed of the drive; 0 is none"
    )
    group.add_argument("--disk", type=_positive, metavar="GB", help="free on the drive")
    group.add_argument("--nodes", type=_whole, metavar="N", help="so many such machines together")
    group.add_argument("--network", type=_positive, metavar="GBIT/S", help="between nodes, of each")


def _add_load(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument(
        "--context",
        type=_whole,
        metavar="N",
        help=f"tokens to make room for, of each stream ({CONTEXT})",
    )
    group.add_argument("--streams", type=_whole, metavar="N", help="answered at once (1)")
    group.add_argument("--cache", choices=("bf16", "fp8"), help="type of the cache (bf16)")
    group.add_argument(
        "--prompt", type=_whole, metavar="N", help=f"tokens of a usual prompt ({PROMPT})"
    )
    group.add_argument("--answer", type=_whole, metavar="N", help=f"and of an answer ({ANSWER})")

    group.add_argument(
        "--draft",
        type=_from_0,
        metavar="N",
        help="tokens drafted for a step (speculative decoding)",
    )
    group.add_argument(
        "--accepted",
        type=_share,
        metavar="SHARE",
        help=f"of drafts, each ({ACCEPTED})",
    )
    group.add_argument("--expert-hits", type=_share, metavar="SHARE", help="of reads of experts on the drive that "
                       "memory answers because they are popular (0)")  # fmt: skip


def _add_money(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "cost", "US dollars. Defaults, with date and source, are in the answer."
    )
    group.add_argument("--kwh", type=_number, metavar="USD", help="a kilowatt hour")
    group.add_argument(
        "--region", metavar="NAME", help="whose price of electricity to take (us-home)"
    )
    group.add_argument("--price", type=_number, metavar="USD", help="of the hardware")
    group.add_argument("--watts", type=_positive, metavar="W", help="of the hardware under load")
    group.add_argument("--prices", type=Path, metavar="FILE", help="prices of APIs, in TOML")
    group.add_argument(
        "--cached", type=_share, metavar="SHARE", help="of prompts that a cache holds, 0 to 1"
    )


def run(args: Namespace) -> int:
    check_flags(args)
    _check_prices(args)
    if args.check_claims is not None:
        from moonlet.cli.plan_claims import check

        return check(args.check_claims, as_json=args.json)
    if args.measure:
        _measure()
    if args.train is not None:
        return _train(args)
    from moonlet.cli.plan_document import document

    question, notes = _question(args)
    answers = _answers(question, args)
    found = document(args, question, answers, notes)
    fits = any(answer.fits for answer in answers)
    if args.plot is not None:
        _plot(args.plot, question, answers, found, fits)
    if args.json:
        print_json(found)
    else:
        from moonlet.cli.plan_report import print_plan

        print_plan(found)
    return 0 if fits else 1


def _check_prices(args: Namespace) -> None:
    """What only the costs of a plan that fits will need is wrong in any plan. Raises ConfigError."""
    if args.region is not None:
        from moonlet.plan.cost import kwh_usd

        kwh_usd(args.region)
    if args.prices is not None:
        from moonlet.plan.prices import Prices

        Prices(args.prices)


def _plot(
    path: Path,
    question: "Question",
    answers: "Sequence[Answer]",
    found: dict[str, Any],
    fits: bool,
) -> None:
    if fits:
        from moonlet.cli.plan_plot import draw

        draw(path, question, answers, found)
    else:
        print("moonlet: nothing fits, so that --plot has nothing to draw", file=sys.stderr)


def _train(args: Namespace) -> int:
    machine, _, notes = hardware(args)
    found = run_training(args, describe(args.model).config, machine, notes)
    return 0 if found.get("fits", True) else 1


def _question(args: Namespace) -> "tuple[Question, tuple[str, ...]]":
    """What is asked, and sentences on what was assumed for it. Raises what `planned` and hardware raise."""
    from moonlet.cli.plan_model import planned
    from moonlet.plan.answer import Question
    from moonlet.plan.drafts import gained

    machine, measured, notes = hardware(args)
    weights = planned(args.model, args.quantization)
    config = weights.config
    context = args.context or min(CONTEXT, config.max_position_embeddings)
    question = Question(
        config,
        args.quantization or _kind(weights.label),
        machine,
        context,
        args.streams or 1,
        args.cache or "bf16",
        args.prompt or min(PROMPT, max(context // 2, 1)),
        args.answer or min(ANSWER, context // 4),
        drafted=args.draft or 0,
        accepted=ACCEPTED if args.accepted is None else args.accepted,
        hits=args.expert_hits or 0.0,
        measured=measured,
        weights=weights,
    )
    gained(question.drafted, question.accepted)  # raises where there are too many
    if question.prompt + question.answer > context:
        raise UsageError(
            f"a prompt of {question.prompt} and an answer of {question.answer} tokens do not fit into a context of {context}"
        )
    if weights.note:
        notes = (*notes, weights.note)
    return question, notes


def _measure() -> None:
    """Raises OSError and UsageError."""
    from moonlet.cli.measure import run_measure

    print(f"moonlet: measured; kept in {run_measure()}", file=sys.stderr)


def _said(args: Namespace) -> dict[str, Any]:
    """What the command line says of the hardware."""
    return {name: getattr(args, name) for name in HARDWARE if getattr(args, name) is not None}


def hardware(args: Namespace) -> "tuple[Machine, Calibration | None, tuple[str, ...]]":
    """The machine that the command line describes, or this one with what was measured of it, and what was assumed."""
    if said := _said(args):
        from moonlet.plan.describe import describe_machine

        names = {"ram": "ram_gb", "disk": "disk_gb", "network": "network_gbit"}
        machine, notes = describe_machine(**{names.get(k, k): value for k, value in said.items()})
        return machine, None, notes
    from moonlet.plan.calibration import calibrated, fingerprint, load_calibration
    from moonlet.plan.detect import detect_machine

    found = detect_machine()
    measured, problem = load_calibration(fingerprint(found))
    if measured is None:
        return found.machine, None, (*found.notes, *([problem] if problem else []))
    return calibrated(found.machine, measured), measured, (f"measured on {measured.date}",)


def _kind(label: str) -> str:
    """Of files that were found: how they are named where engines say what they run."""
    return label if label in ("native", "packed") else "gguf"


def _answers(question: "Question", args: Namespace) -> "Sequence[Answer]":
    """One for each engine that is asked for, the best first, those that do not fit last.

    GGUF files and packed weights are what they are: an engine that does not run them runs nothing of MODEL.
    """
    from moonlet.cli.plan_document import names_of, starts
    from moonlet.plan.answer import answer
    from moonlet.plan.choice import best, rank
    from moonlet.plan.engines import engine, engines

    chosen = [engine(args.engine)] if args.engine else list(engines().values())
    if args.quantization or question.quantization in ("gguf", "packed"):
        found = [answer(question, one) for one in chosen]
    else:
        any_of_them = replace(question, weights=None)
        found = [best(any_of_them, one, question.weights) for one in chosen]
    names = names_of(args.model, question.config)
    return sorted(found, key=lambda one: rank(one, starts(one, names)))


def _whole(text: str, least: int = 1) -> int:
    is_short = len(text) <= 12 and text.isascii() and text.isdigit()
    if is_short and least <= int(text) <= _MOST_WHOLE:
        return int(text)
    raise ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {_MOST_WHOLE}")


def _from_0(text: str) -> int:
    return _whole(text, 0)


def _number(text: str, most: float = _MOST) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value <= most:
        return value
    raise ArgumentTypeError(f"{text[:40]!r} is no number from 0 to {most:g}")


def _share(text: str) -> float:
    return _number(text, 1)


def _positive(text: str) -> float:
    if (value := _number(text)) > 0:
        return value
    raise ArgumentTypeError("0 is too little")
