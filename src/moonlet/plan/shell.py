"""Words into lines for a POSIX shell, and names of models into words that no program takes for an option."""

import shlex


def line(*words: str | int) -> str:
    """The words, quoted, as one command. A word that begins with "~/" still means the home folder."""
    return " ".join(_quote(str(word)) for word in words)


def when(condition: object, *words: str | int) -> list[str | int]:
    """The words if the condition holds."""
    return list(words) if condition else []


def as_argument(model: str) -> str:
    """`model`, or the same as a path when it begins with "-"."""
    return f"./{model}" if model.startswith("-") else model


def is_repository(model: str) -> bool:
    """org/name, and not a path."""
    return (
        model.count("/") == 1
        and not model.startswith(("/", ".", "~", "-"))
        and not model.endswith(("/", ".gguf"))
    )


def last_part(model: str) -> str:
    """Of a repository or path, to name things in this folder after."""
    name = model.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return as_argument(name if name.strip(".") else "model")


def _quote(word: str) -> str:
    if word.startswith("~/") and len(word) > 2:
        return f"~/{shlex.quote(word[2:])}"
    return shlex.quote(word)
