"""`moonlet convert SRC DST`: a model from one form into another, quantized on the way if asked.

| from \\ to               | a folder (hf)          | a .gguf file           | a packed folder      |
| ----------------------- | ---------------------- | ---------------------- | -------------------- |
| folder, GGUF, org/name  | floats, experts INT4   | any mix of block types | panels of any mix    |

Memory holds a few pieces of matrices. Interrupted, the same command goes on where it stopped.
"""

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet import nano
from moonlet.cli.console import UsageError, add_json_flag, busy, print_json, printable
from moonlet.cli.models import EMBEDDED

if TYPE_CHECKING:
    from moonlet.checkpoint.convert import Summary

MIXES = ("native-int4", "q2_k_xl", "q4_k_m", "q8_0", "tq1_0")
FORMS = ("hf", "gguf", "packed")
DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "convert",
        help="between Hugging Face folders, GGUF files and packed folders",
        description="Convert a model into another form. What is stored is kept where the target can hold "
        "it, unless --mix says otherwise; a folder's experts become INT4 only with --mix native-int4. "
        "Interrupted, the same command goes on where it stopped.",
        epilog=f"Mixes: {', '.join(MIXES)}, or a TOML file with a table of your own.",
    )
    parser.add_argument("source", metavar="SRC", help="folder, .gguf file, org/name, or nano")
    parser.add_argument("target", metavar="DST", type=Path, help="folder or .gguf file to write")
    parser.add_argument("--to", choices=FORMS, help="form of DST (default: by its ending)")
    parser.add_argument("--mix", metavar="NAME_OR_TOML", help="which tensor takes which type")
    parser.add_argument("--dtype", choices=DTYPES, help="type of what stays float")
    parser.add_argument(
        "--imatrix", type=Path, metavar="FILE", help="importance matrix (see moonlet imatrix)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DST")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    form = args.to or ("gguf" if args.target.suffix.lower() == ".gguf" else "hf")
    if form == "gguf" and args.target.suffix.lower() != ".gguf":
        raise UsageError(f"{args.target} must end in .gguf, by which programs know such files")
    if form == "hf" and args.imatrix:
        raise UsageError("--imatrix has no use in a folder, whose INT4 has a rule of its own")
    with busy(f"reading {args.source}"):
        from moonlet.checkpoint.convert import Conversion, to_gguf, to_hf
        from moonlet.checkpoint.parts import Wish
        from moonlet.quant.mixes import load_mix

        mix = load_mix(args.mix) if args.mix else None
        wish = Wish(mix, DTYPES[args.dtype] if args.dtype else None)
        conversion = Conversion(
            source_path(args.source),
            args.target,
            wish,
            args.imatrix,
            Path(args.source).name,
            args.overwrite,
        )
    if form == "packed":
        from moonlet.model.packed_file import to_packed as write
    else:
        write = to_gguf if form == "gguf" else to_hf
    try:
        with progress_bar(args.target.name) as progress:
            summary = write(conversion, available_cpus(), progress)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        raise
    if args.json:
        print_json({"source": args.source, "to": form, **as_json(summary)})
    else:
        print_summary(summary)
    return 0


def source_path(model: str) -> Path:
    """Where the weights of SRC lie, fetched if need be. Raises CheckpointError."""
    from moonlet.checkpoint import resolve

    is_embedded = model == EMBEDDED and not Path(model).exists()
    return nano.folder() if is_embedded else resolve(model)


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def as_json(summary: "Summary") -> dict[str, Any]:
    return {
        "files": [str(path) for path in summary.files],
        "bytes": summary.size_bytes,
        "bytes_by_type": summary.types,
        "groups_rounded": summary.rounded,
        "notes": list(summary.notes),
    }


def print_summary(summary: "Summary") -> None:
    for path in summary.files:
        print(printable(f"wrote {path}"))
    types = sorted(summary.types.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{kind} {size / 1e6:,.1f} MB" for kind, size in types)
    print(f"{summary.size_bytes / 1e6:,.1f} MB: {shares}")
    if summary.rounded:
        print(f"{summary.rounded} groups of 32 have a scale that had to be rounded")
    for note in summary.notes:
        print(f"note: {note}")


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; where stderr is no terminal, a line every ten seconds."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    said = time.monotonic()
    with bar:
        task = bar.add_task(printable(name), total=None)

        def show(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - said > 10:
                said = time.monotonic()
                print(f"{done / total:.0%} of {printable(name)}", file=sys.stderr, flush=True)

        yield show
