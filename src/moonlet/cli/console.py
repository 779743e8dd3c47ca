"""What the commands share when they talk to a person or to a program.

Results go to stdout; progress, warnings and errors to stderr. With `--json` stdout holds exactly one
JSON document.
"""

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

from moonlet.errors import MoonletError

# C0 and C1 control characters but for newline and tab: what a model or a file says must not be able
# to steer the terminal.
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "�")
del _CONTROL[ord("\n")], _CONTROL[ord("\t")]


class UsageError(MoonletError, ValueError):
    """The command line asks for something that cannot be done."""


def mend_streams() -> None:
    """A standard stream that is closed becomes the null device; what stdout cannot encode becomes `?`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def add_json_flag(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))


def printable(text: str) -> str:
    """`text` without anything that a terminal would obey."""
    return text.translate(_CONTROL).encode("utf-8", "replace").decode()


@contextmanager
def busy(message: str) -> Iterator[None]:
    """Says on stderr what is going on until it is done: a spinner on a terminal, else one line."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        print(f"{message} ...", file=sys.stderr, flush=True)
        yield
