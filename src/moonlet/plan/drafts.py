"""Speculative decoding: a step checks several drafted tokens at once and keeps as many as are right.

Of `drafted` tokens, each right with probability `accepted` as long as all before it were, a step gains
1 + a + a^2 + ... = (1 - a^(drafted + 1)) / (1 - a) tokens (Leviathan et al., arXiv 2211.17192, equation 1). It
reads the experts of all of them and the cache once. What making the drafts takes is left out.
"""

from dataclasses import dataclass

from moonlet.errors import ConfigError
from moonlet.plan.predict import Speeds

MAX_DRAFTED = 64


def gained(drafted: int, accepted: float) -> float:
    """Tokens of a step, its own one included. Raises ConfigError."""
    if not 0 <= drafted <= MAX_DRAFTED:
        raise ConfigError(f"{drafted} drafted tokens are not from 0 to {MAX_DRAFTED}")
    if not 0 <= accepted <= 1:
        raise ConfigError(f"a share of {accepted:g} accepted drafts is not from 0 to 1")
    return sum(accepted**count for count in range(drafted + 1))


@dataclass(frozen=True)
class Drafted:
    """`speeds` with drafts: the seconds of a step are those of one token that it gains."""

    speeds: Speeds
    drafted: int
    accepted: float

    def step_parts(self, streams: float, context: float) -> dict[str, float]:
        width, tokens = 1 + self.drafted, gained(self.drafted, self.accepted)
        parts = self.speeds.step_parts(streams * width, context / width)
        return {name: seconds / tokens for name, seconds in parts.items()}

    def prefill_parts(self, tokens: float) -> dict[str, float]:
        return self.speeds.prefill_parts(tokens)
