"""The entry point. It imports next to nothing, so that Ctrl-C is caught from the first moment on."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit status; `commands.py` lists them."""
    try:
        from moonlet.cli.commands import run

        return run(argv)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
