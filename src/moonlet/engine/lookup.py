"""Speculation without a second model: what followed the last few tokens before, probably follows again.

The engine computes the drafted tokens together with the last one and draws at each place as it would
have drawn anyway; the draft is used as far as it agrees. So the answer is the same token for token,
whatever the temperature, and only the time differs (prompt lookup decoding, Saxena 2023).
"""

NGRAM = 3  # tokens that must agree
LONGEST = 8  # tokens drafted at once
_TRIALS = 3  # drafts before the first judgement
_AGAIN = 64  # steps after which a draft is tried again where it did not pay


class Lookup:
    """Drafts for one answer, and whether they pay: seconds for each token with them and without."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # an n-gram -> where it ended last
        self._known = NGRAM
        self._drafted_s = 0.0  # for one token, lately
        self._trials = 0
        self._since = 0

    def draft(self, tokens: list[int], limit: int, plain_s: float) -> list[int]:
        """Up to `limit` tokens that may follow `tokens`, which only ever grow; [] when it would not pay.

        plain_s: seconds that a token takes without a draft.
        """
        while self._known < len(tokens):  # the last n-gram is looked for, not found
            self._ends[tuple(tokens[self._known - NGRAM : self._known])] = self._known
            self._known += 1
        begin = self._ends.get(tuple(tokens[-NGRAM:]))
        if begin is None or limit < 1:
            return []
        self._since += 1
        if self._trials >= _TRIALS and self._drafted_s > plain_s and self._since < _AGAIN:
            return []
        self._since = 0
        return tokens[begin : begin + min(limit, LONGEST)]

    def took(self, seconds: float, made: int) -> None:
        """A step with a draft made so many tokens."""
        each = seconds / made
        self._drafted_s = each if not self._trials else 0.7 * self._drafted_s + 0.3 * each
        self._trials += 1
