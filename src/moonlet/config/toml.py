"""Tables that users write, read with bounds: what is no such table costs no time and no memory.

Python's parser takes minutes for a key of thousands of dots, and opening a named pipe waits for its writer.
"""

import stat
import tomllib
from pathlib import Path
from typing import Any

from moonlet.errors import ConfigError

MOST_BYTES = 100_000
MOST_IN_LINE = 1000  # bytes: the parser's work grows with the square of a key's dots


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """The table in a regular file of at most 100 kB. kind: what it should be, as "a table of prices".

    Raises ConfigError that names the file, the kind and the reason.
    """
    try:
        return tomllib.loads(_content(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, no path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be read as {kind}: {reason}") from error


def _content(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES // 1000} kB")
    longest = max(map(len, content.splitlines()), default=0)
    if longest > MOST_IN_LINE:
        raise ValueError(f"it has a line of {longest} bytes, and may have {MOST_IN_LINE}")
    return content
