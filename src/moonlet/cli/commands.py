"""`moonlet COMMAND ...`: parses the command line, runs the command, turns failures into exit statuses.

| status | when                                                                                |
| ------ | ----------------------------------------------------------------------------------- |
| 0      | done                                                                                |
| 1      | something failed that the user did not ask for: the engine, the network, the disk   |
| 2      | the user's mistake: an unknown flag, a model that is not there, a file that is broken |
| 130    | Ctrl-C, in `main.py`                                                                |
| 143    | SIGTERM to a server, which stops as with Ctrl-C                                     |
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from moonlet import __version__
from moonlet.cli import bench, chat, convert, doctor, imatrix, inspect, plan, serve, train, verify
from moonlet.cli.console import mend_streams, printable
from moonlet.errors import MoonletError

COMMANDS = (serve, chat, inspect, plan, convert, imatrix, bench, doctor, verify, train)


def build_parser() -> ArgumentParser:
    """The whole command line. Each command's file adds its own part and names its `run`."""
    parser = ArgumentParser("moonlet", description="Kimi-K2.5-class models at any size.")
    parser.add_argument("--version", action="version", version=f"moonlet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status. Raises KeyboardInterrupt on Ctrl-C."""
    mend_streams()
    args = build_parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()  # here, so that a reader that has left is noticed here
        return status
    except BrokenPipeError:
        # Whoever read our output has left (`moonlet inspect ... | head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MoonletError, OSError) as error:
        print(f"moonlet: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, MoonletError) and isinstance(error, ValueError) else 1
