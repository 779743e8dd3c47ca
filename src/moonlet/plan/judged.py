"""What is said of a claim: of each of its parts a verdict, the arithmetic in sentences, and its figures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from moonlet.plan.claims_file import Claim

Verdict = Literal["holds", "does not hold", "cannot be judged"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "cannot be judged")
TOLERANCE = 0.05  # of the true figure: what "about" may hide


@dataclass(frozen=True)
class Part:
    """One thing that a claim says ("size", "fit", "speed", "cache", "active share", "price").

    figures: bytes, tokens per second, shares, dollars, by name.
    """

    what: str
    verdict: Verdict
    arithmetic: tuple[str, ...]
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Judged:
    """A claim holds if all its parts do, and does not if one of them does not."""

    claim: Claim
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> Verdict:
        found = {part.verdict for part in self.parts}
        if "does not hold" in found:
            return "does not hold"
        return "cannot be judged" if "cannot be judged" in found else "holds"

    @property
    def arithmetic(self) -> tuple[str, ...]:
        return tuple(sentence for part in self.parts for sentence in part.arithmetic)

    @property
    def figures(self) -> dict[str, float]:
        return {name: value for part in self.parts for name, value in part.figures.items()}


def within(claimed: float, true: float) -> bool:
    """Whether "about `claimed`" may be said of `true`."""
    return abs(claimed - true) <= TOLERANCE * true


def compared(claimed: float, true: float) -> str:
    """`claimed` against `true` in words: "5.9 % more, and 5 % are allowed"."""
    off = claimed / true - 1
    if abs(off) < 5e-4:
        return "the same"
    more = f"{percent(abs(off), 1)} {'more' if off > 0 else 'less'}"
    return f"{more}, and {percent(TOLERANCE)} are allowed"


def verdict_of(holds: bool) -> Verdict:
    return "holds" if holds else "does not hold"


def percent(share: float, digits: int = 0) -> str:
    return f"{share * 100:.{digits}f} %"


def gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


def listed(words: Iterable[str]) -> str:
    """ "a, b and c"."""
    *first, last = [*words] or [""]
    return f"{', '.join(first)} and {last}" if first else last
