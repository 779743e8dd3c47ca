"""What every reader of a downloaded file needs: strict JSON, and text that is safe to print."""

import json
from typing import Any, NoReturn

from moonlet.errors import CheckpointError


def shown(text: str) -> str:
    """`text` from a file as it may stand in a message: one line, ASCII, not long."""
    plain = ascii(text)[1:-1]
    return plain if len(plain) <= 160 else plain[:120] + f"... ({len(text)} characters)"


def parse_json_object(data: bytes, source: str) -> dict[str, Any]:
    """The JSON object in `data`; `source` names the file in messages.

    Raises CheckpointError for anything else: no UTF-8, no JSON, a key given twice (which of the two
    counts would depend on the reader), NaN, nesting without end.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise CheckpointError(f"{source} is nested too deeply to be real") from error
    except ValueError as error:
        raise CheckpointError(f"{source} is not valid JSON: {shown(str(error))}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} holds a {type(value).__name__}, not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} is given twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
