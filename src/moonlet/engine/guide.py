"""What may come next in an answer: the seam between a grammar and the engine, and the rule for thinking.

A guide says before each token which ones are allowed, and is told the token that was drawn. `grammar.py`
and `calls.py` have the guides that follow a schema; here is the one that lets the model think first.
"""

import copy
from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Guide(Protocol):
    """What may come next in one answer; one object per answer, driven by the engine's thread."""

    def mask(self) -> NDArray[np.bool_] | None:
        """[vocab_size], True = allowed; None = everything. To be read, and only until `accept`.

        Raises PromptError when the grammar has become too complex to go on.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Moves on by a token that the mask allows. Raises EngineError for any other that matters, and
        PromptError as `mask` does."""
        ...

    def fork(self) -> "Guide":
        """Another guide in the same state, for n > 1 and for trying draft tokens."""
        ...


def only(vocab_size: int, allowed: Collection[int]) -> NDArray[np.bool_]:
    """A mask [vocab_size] of a few token ids. Nobody may write to it."""
    mask = np.zeros(vocab_size, np.bool_)
    mask[list(allowed)] = True
    mask.flags.writeable = False
    return mask


class AfterThinking:
    """Free thinking of at most `budget` tokens (None: without limit), then `inner` (None: anything).

    At the budget only `think_end_id` is allowed, so that the answer still comes. not_in_thought: ids that
    would end the answer or begin a call; where an `inner` waits they are masked while the model thinks.
    think_begin_id: for a model that opens its thinking itself; it may do so with its first token. An
    answer that neither starts in reasoning nor may open any is `inner`'s from the first token on.
    """

    def __init__(
        self,
        think_end_id: int,
        budget: int | None,
        inner: Guide | None,
        starts_in_reasoning: bool,
        *,
        vocab_size: int,
        not_in_thought: Collection[int] = (),
        think_begin_id: int | None = None,
    ) -> None:
        self._think_end_id = think_end_id
        self._think_begin_id = think_begin_id
        self._inner = inner
        self._thinks = starts_in_reasoning
        self._may_open = not starts_in_reasoning and think_begin_id is not None
        self._left = budget
        self._close = only(vocab_size, [think_end_id])
        self._free: NDArray[np.bool_] | None = None
        if inner is not None and not_in_thought:
            self._free = ~only(vocab_size, not_in_thought)

    def mask(self) -> NDArray[np.bool_] | None:
        if self._thinks:
            return self._close if self._left == 0 else self._free
        mask = None if self._inner is None else self._inner.mask()
        if mask is not None and self._may_open:
            mask = mask.copy()
            mask[self._think_begin_id] = True
        return mask

    def accept(self, token_id: int) -> None:
        if self._thinks:
            self._thinks = token_id != self._think_end_id
            if self._left and self._thinks:
                self._left -= 1
        elif self._may_open and token_id == self._think_begin_id:
            self._thinks = True
        elif self._inner is not None:
            self._inner.accept(token_id)
        self._may_open = False

    def fork(self) -> "AfterThinking":
        other = copy.copy(self)
        other._inner = None if self._inner is None else self._inner.fork()
        return other
