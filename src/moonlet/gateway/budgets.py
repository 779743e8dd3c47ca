"""How much each API key may spend, in all.

What a request will cost is known at its end. Until then an estimate is set aside, so that many requests at
the same time cannot go further over the budget than by what they themselves cost more than estimated.
"""

from collections import defaultdict
from collections.abc import Mapping

from moonlet.errors import QuotaError


class Budgets:
    """`limits` in dollars by digest of the key; who is not in it may spend what it likes.

    spent: what earlier requests have cost.
    """

    def __init__(
        self, limits: Mapping[str, float] | None = None, spent: Mapping[str, float] | None = None
    ) -> None:
        self._limits = dict(limits or {})
        self._spent = defaultdict(float, spent or {})
        self._set_aside: defaultdict[str, float] = defaultdict(float)

    def set_aside(self, asked_by: str | None, estimate: float) -> None:
        """For one request, which must be settled. Raises QuotaError when the budget is used up."""
        if asked_by is None or asked_by not in self._limits:
            return
        limit, committed = self._limits[asked_by], self._spent[asked_by]
        if committed + self._set_aside[asked_by] >= limit:
            raise QuotaError(
                f"the budget of this API key is {limit:g} dollars, of which {committed:.4f} are spent and "
                f"{self._set_aside[asked_by]:.4f} set aside for requests that are being answered"
            )
        self._set_aside[asked_by] += estimate

    def settle(self, asked_by: str | None, estimate: float, cost: float) -> None:
        """The request has ended, and this is what it cost."""
        if asked_by is None or asked_by not in self._limits:
            return
        self._set_aside[asked_by] -= estimate
        self._spent[asked_by] += cost
