"""The words of the generated conversations, read from phrases.toml (its head says how they are written)."""

import random
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "pt")


@cache
def section(name: str) -> dict[str, Any]:
    """One table of phrases.toml, every block of phrases as a tuple."""
    with Path(__file__).with_name("phrases.toml").open("rb") as file:
        return _split(tomllib.load(file)[name])


_CHOICE = re.compile(r"\(([^()]*)\)")


def fill(text: str, language: str, test: bool, rng: random.Random) -> str:
    """`text` with one of every (choice/of/these) and every {slot} filled, at random.

    The words that slots take in a test are never used in training.
    """
    text = _CHOICE.sub(lambda found: rng.choice(found[1].split("/")), text)
    while "{" in text:
        slot = text[text.index("{") + 1 : text.index("}")]
        text = text.replace("{" + slot + "}", _word(slot, language, test, rng), 1)
    return text


def _word(slot: str, language: str, test: bool, rng: random.Random) -> str:
    if slot == "n":  # any number
        return str(rng.randrange(10 ** rng.randint(1, 3)))
    if slot == "big":  # a number too long for nano
        digits = rng.randint(4, 6)
        return str(rng.randrange(10 ** (digits - 1), 10**digits))
    words = section("fill")
    # Made-up words now and then, so that no reply hangs on a known vocabulary.
    if slot == "junk" or rng.random() < 0.1:
        return "".join(rng.choices(words["syllables"], k=rng.randint(2, 4)))
    known = words[slot]
    return rng.choice(known["held_out" if test and "held_out" in known else "train"][language])


def _split(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _split(item) for key, item in value.items()}
    if isinstance(value, str) and value.endswith("\n"):
        pieces = (phrase.strip() for line in value.split("\n") for phrase in line.split(" | "))
        return tuple(phrase for phrase in pieces if phrase)
    return value
