"""Whether a JSON value satisfies a schema, as an independent judge sees it.

The judge is the `jsonschema` package, as in the vendors' own verifiers: what the engine's grammar library
lets through must not be judged by that library again. It comes with the extra `moonlet[verify]`.
"""

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from moonlet.gateway.fidelity.client import parse_json, shown

MAX_CHARACTERS = 2**20  # of a text that is judged
_NOTHING_REMOTE: Registry[Any] = Registry()  # a schema may refer to itself only


class NoSchema(ValueError):
    """What was to be judged by is no JSON schema."""


def problem(value: Any, schema: Any) -> str | None:
    """What is wrong with `value`, in a few words, or None. Raises NoSchema."""
    try:
        Draft202012Validator.check_schema(schema)
        judge = Draft202012Validator(schema, registry=_NOTHING_REMOTE)
        error = best_match(judge.iter_errors(value))
    except (SchemaError, Unresolvable) as error:
        raise NoSchema(f"{error.args[0] if error.args else error!r:.160}") from error
    except RecursionError:
        return "it is nested too deep"
    if error is None:
        return None
    place = "".join(f"[{part!r:.40}]" for part in list(error.absolute_path)[:8])
    return f"{error.message:.160}{f' at {place}' if place else ''}"


def text_problem(text: str, schema: Any) -> str | None:
    """The same of a JSON text."""
    if len(text) > MAX_CHARACTERS:
        return f"{shown(text)} has more than {MAX_CHARACTERS} characters"
    try:
        value = parse_json(text)
    except ValueError:
        return f"{shown(text)} is no JSON"
    found = problem(value, schema)
    return None if found is None else f"{shown(text)} does not satisfy the schema: {found}"
