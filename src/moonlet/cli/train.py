"""`moonlet train RECIPE`: so far the recipe of the embedded model, `nano`."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet.cli.console import add_json_flag, busy, print_json

if TYPE_CHECKING:
    from moonlet.train import StepReport

RECIPES = ("nano",)


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train a model by a recipe: nano takes about half an hour on two cores and needs "
        "scikit-learn. Interrupted by Ctrl-C, the same command goes on.",
    )
    parser.add_argument("recipe", metavar="RECIPE", choices=RECIPES, help=", ".join(RECIPES))
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; the model ends in its model/"
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    last = train_nano(args.out)
    folder = args.out / "model"
    if args.json:
        loss = last.loss if last else None
        print_json({"recipe": args.recipe, "folder": str(folder), "loss": loss})
    else:
        print(f"the model is in {folder}; try it: moonlet chat {folder}")
    return 0


def train_nano(out: Path) -> "StepReport | None":
    """Trains the embedded model in `out`, going on from a state found there; returns the last report.

    The last report is None when the run had already come to its end.
    """
    with busy("loading PyTorch and the recipe"):
        from moonlet import train
        from moonlet.nano import recipe as nano

    nano.training_cases()  # fails here, before anything is written, where scikit-learn is missing
    if not (out / nano.FILES[-1]).exists():
        with busy("learning the tokenizer"):
            nano.prepare(out)
    recipe = nano.Recipe(out)
    reports: list[StepReport] = []
    with _progress(recipe.steps) as show:

        def report(step: "StepReport") -> None:
            reports[:] = [step]
            show(step)

        try:
            model = train.run(recipe, out, report)
        except KeyboardInterrupt:
            done = reports[-1].step + 1 if reports else 0
            print(
                f"stopped after step {done}; the same command goes on from there", file=sys.stderr
            )
            raise
    nano.export(model, out, out / "model")
    return reports[-1] if reports else None


@contextmanager
def _progress(steps: int) -> "Iterator[Callable[[StepReport], None]]":
    """A bar on stderr; where stderr is no terminal, a line every ten steps."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("training", total=steps)

        first = True

        def show(step: "StepReport") -> None:
            nonlocal first
            if first and step.step:
                console.print(f"going on from step {step.step}")
            first = False
            what = f"loss {step.loss:.3f}"
            bar.update(task, completed=step.step + 1, description=what)
            if not console.is_terminal and (step.step + 1) % 10 == 0:
                console.print(f"step {step.step + 1} of {steps}: {what}")

        yield show
