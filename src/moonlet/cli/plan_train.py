"""`moonlet plan MODEL --train HOW`: memory and time of a training run, and pretraining at the size of the papers."""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import gcd
from typing import TYPE_CHECKING, Any

from moonlet.cli.console import UsageError, busy, print_json, printable
from moonlet.config import ModelConfig
from moonlet.errors import ConfigError

if TYPE_CHECKING:
    from moonlet.plan.machine import Machine
    from moonlet.plan.paper import Sheet
    from moonlet.plan.split import Split
    from moonlet.plan.training import TrainingRun

AUTO = "auto"
_AXES = {
    "pp": "pipeline", "vpp": "virtual", "ep": "expert", "tp": "tensor", "dp": "data", "cp": "context", "zero": "zero",
}  # fmt: skip
_AXIS = re.compile(r"([a-z]+)=?(\d{1,7})")
_SEQUENCE = 4096
_MOONLET = (16, 128)  # sequences and tokens: nano's micro-batches of 2048 tokens
_MOST = 1e18  # tokens, or anything else
_PER_RANK = 4  # micro-batches of a step for each pipeline rank, where nobody says --batch


def add_training_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("training", "In place of serving.")
    group.add_argument(
        "--train",
        nargs="?",
        const=AUTO,
        metavar="HOW",
        help="a split such as pp16,vpp2,ep16,dp128,zero1; k2: as Kimi K2 was trained; moonlet: as moonlet train does; "
        "paper: all tables of docs/cluster.md (default: data-parallel on all GPUs)",
    )
    group.add_argument(
        "--tokens", type=float, metavar="N", help="of the whole run, as 15.5e12: days and GPU hours"
    )
    group.add_argument(
        "--sequence", type=int, metavar="N", help=f"tokens of a sequence ({_SEQUENCE})"
    )
    group.add_argument("--batch", type=int, metavar="N", help="sequences of an optimizer step")
    group.add_argument(
        "--micro-batch", type=int, metavar="N", help="sequences that a rank works on at once (1)"
    )
    group.add_argument(
        "--recompute", choices=("none", "selective", "full"), help="selective is Kimi K2's list"
    )
    group.add_argument(
        "--fp8-activations", action="store_true", help="keep the experts' inputs in FP8, as Kimi K2"
    )
    group.add_argument(
        "--offload", action="store_true", help="activations wait in the host's memory"
    )


def run_training(
    args: Namespace, config: ModelConfig, machine: "Machine", notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Prints the answer, as a table or as JSON, and returns it. Raises UsageError and ConfigError.

    notes: what was assumed of the machine. The document of `--train paper` has one list of rows for each table;
    any other has `fits`, `memory` of every pipeline rank in bytes, `step` in seconds, and `total` with --tokens.
    """
    if args.train == "paper":
        return _paper(args)
    found = _document(args, config, machine, notes)
    if args.json:
        print_json(found)
    else:
        _print_run(found)
    return found


def _document(
    args: Namespace, config: ModelConfig, machine: "Machine", notes: Sequence[str]
) -> dict[str, Any]:
    from moonlet.plan.cluster import UNSURE, assumptions, simulate_step, unpublished
    from moonlet.plan.training import training_memory
    from moonlet.plan.training_fit import training_fit
    from moonlet.plan.training_time import Efficiency, step_seconds

    run, efficiency = training_run(args, config, machine), Efficiency()
    fit = training_fit(run, machine)
    found: dict[str, Any] = {
        "machine": machine.name,
        "ranks": run.split.ranks,
        "split": asdict(run.split),
        "run": {
            name: value for name, value in vars(run).items() if name not in ("config", "split")
        },
        "micro_batches": run.micro_batches,
        "tokens_per_step": run.tokens_per_step,
        "fits": fit.fits,
        "missing_bytes": fit.missing_bytes,
        "change": fit.change,
        "memory": {
            "usable_bytes": fit.usable_bytes,
            "worst_stage": fit.memory.stage,
            "ranks": [
                {
                    "stage": rank.stage,
                    **rank.bytes,
                    "total": rank.total_bytes,
                    "host": rank.host_bytes,
                }
                for rank in training_memory(run).ranks
            ],
        },
        "step": None,
        "total": None,
        "assumed": [
            *([unpublished(run)] if args.train == "k2" else []),
            *assumptions(run, efficiency),
            *notes,
        ],
    }
    try:
        step = step_seconds(run, machine, efficiency)
    except ConfigError as error:
        found["assumed"].append(f"no time: {error}")
        return found
    found["step"] = {
        "seconds": step.seconds, "parts": dict(step.parts), "tokens_per_s": step.tokens_per_s, "mfu": step.mfu,
        "played_seconds": simulate_step(run, machine, efficiency).seconds if _is_playable(run) else None,
    }  # fmt: skip
    if args.tokens:
        slow, fast = (
            step_seconds(run, machine, replace(efficiency, compute=efficiency.compute * by)).days(
                args.tokens
            )
            for by in (1 - UNSURE, 1 + UNSURE)
        )
        found["total"] = {
            "tokens": args.tokens, "days": step.days(args.tokens), "days_low": fast, "days_high": slow,
            "gpu_hours": step.gpu_hours(args.tokens),
        }  # fmt: skip
    return found


def _is_playable(run: "TrainingRun") -> bool:
    return run.split.pipeline > 1 and run.split.chunks * run.micro_batches < 20_000


def training_run(args: Namespace, config: ModelConfig, machine: "Machine") -> "TrainingRun":
    """The run that the command line describes. Raises UsageError and ConfigError."""
    from moonlet.plan.training import TrainingRun, k2_run, moonlet_run

    _check(args)
    if args.train == "moonlet":
        micro, sequence = args.micro_batch or _MOONLET[0], args.sequence or _MOONLET[1]
        return moonlet_run(config, micro, sequence, args.batch)
    sequence = args.sequence or min(_SEQUENCE, config.max_position_embeddings)
    if args.train == "k2":
        if machine.num_accelerators == 0:
            raise UsageError(
                "--train k2 needs GPUs, 256 or a multiple: name them, as --gpu 8xh800 --nodes 32"
            )
        run = k2_run(
            config,
            machine.num_accelerators,
            global_batch=args.batch or 2**26 // sequence,
            sequence=sequence,
        )
    else:
        split = _auto(config, machine) if args.train == AUTO else _split(args.train)
        micro = args.micro_batch or 1
        batch = args.batch or split.data // split.context * micro * split.pipeline * _PER_RANK
        run = TrainingRun(config, split, batch, micro, sequence, recompute="selective")
    changes: dict[str, Any] = {"micro_batch": args.micro_batch, "recompute": args.recompute}
    changes |= {"fp8": args.fp8_activations or None, "offload": args.offload or None}
    return replace(run, **{name: value for name, value in changes.items() if value is not None})


def _check(args: Namespace) -> None:
    for name in ("sequence", "batch", "micro_batch", "tokens"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= _MOST:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is {value:g}, but it must be a number from 1 to {_MOST:g}")


def _auto(config: ModelConfig, machine: "Machine") -> "Split":
    from moonlet.plan.split import Split

    ranks = max(machine.num_accelerators, 1)
    return Split(expert=gcd(config.n_routed_experts, ranks), data=ranks, zero=1 if ranks > 1 else 0)


def _split(text: str) -> "Split":
    """ "pp16,vpp2,ep16,dp128,zero1" -> Split; axes that are not named are 1, and ZeRO 0."""
    from moonlet.plan.split import Split

    named: dict[str, int] = {}
    for word in re.split(r"[,\s]+", text.strip().lower()):
        found = _AXIS.fullmatch(word)
        if not found or found[1] not in _AXES or _AXES[found[1]] in named:
            raise UsageError(
                f"--train {text[:60]!r}: {word[:20]!r} is no part of a split; write k2, moonlet, paper, or once each "
                f"{', '.join(_AXES)} with a number, as pp16,vpp2,ep16,dp128,zero1"
            )
        named[_AXES[found[1]]] = int(found[2])
    return Split(**named)  # type: ignore[arg-type]


def _print_run(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from moonlet.cli.inspect import size

    console = Console(highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(printable(text), markup=False)

    say(
        f"{found['ranks']:,} ranks on {found['machine']}, {found['tokens_per_step']:,} tokens a step"
    )
    memory, worst = found["memory"], found["memory"]["worst_stage"]
    fullest = memory["ranks"][worst]
    table = Table("of a rank", title=f"the fullest rank (pipeline stage {worst})")
    table.add_column("bytes", justify="right")
    for kind in ("parameters", "gradients", "optimizer", "activations", "buffers", "total", "host"):
        table.add_row({"host": "in the host's memory"}.get(kind, kind), size(int(fullest[kind])))
    console.print(table)
    if not found["fits"]:
        way = (
            f"; it fits if you {found['change']}"
            if found["change"]
            else "; take more GPUs or a finer split"
        )
        say(f"It does not fit: {size(int(found['missing_bytes']))} too much for a rank{way}.")
    if step := found["step"]:
        parts = sorted(step["parts"].items(), key=lambda part: -part[1])
        shares = ", ".join(
            f"{name} {s / step['seconds']:.0%}" for name, s in parts if s >= 0.005 * step["seconds"]
        )
        say(
            f"A step takes {step['seconds']:.3g} s ({step['tokens_per_s']:,.0f} tokens/s, MFU {step['mfu']:.0%}): {shares}."
        )
        if step["played_seconds"]:
            say(f"Played task by task it takes {step['played_seconds']:.3g} s.")
    if total := found["total"]:
        say(
            f"{total['tokens']:.3g} tokens take {total['days']:,.1f} days ({total['days_low']:,.1f} to "
            f"{total['days_high']:,.1f}), {total['gpu_hours']:,.0f} GPU hours."
        )
    for sentence in found["assumed"]:
        say(sentence if sentence.startswith("assumed") else f"assumed: {sentence}")


def _paper(args: Namespace) -> dict[str, Any]:
    with busy("playing pretraining and serving"):
        from moonlet.plan.paper import sheets

        found = list(sheets())
    document = {
        sheet.name: {
            "rows": [dict(zip(sheet.head, row, strict=True)) for row in sheet.rows],
            "assumed": list(sheet.assumed),
        }
        for sheet in found
    }
    if args.json:
        print_json(document)
    else:
        for sheet in found:
            _print_sheet(sheet)
    return document


def _print_sheet(sheet: "Sheet") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    table = Table(sheet.head[0], title=sheet.name)
    for column in sheet.head[1:]:
        table.add_column(column, justify="right")
    for row in sheet.texts():
        table.add_row(*row)
    console.print(table)
    for sentence in sheet.assumed:
        console.print(f"assumed: {sentence}", markup=False)
