"""What is asked of the engine, and the stream of token ids that comes back."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from moonlet.chat.media import MediaItem
from moonlet.engine.guide import Guide
from moonlet.engine.sampler import Drawn, SamplingParams
from moonlet.engine.scheduler import Task
from moonlet.errors import MoonletError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt with its media in order, how to draw, and at most how many tokens to make.

    choice: the number of the answer among those to the same prompt, which draw differently from one seed.
    guide: what may come, or None for anything. logprobs: how many alternatives are told beside each token,
    None for nothing at all. deadline_s: seconds from now after which the answer ends as at its limit.
    """

    token_ids: list[int]
    max_tokens: int
    media: list[MediaItem] = field(default_factory=list)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    choice: int = 0
    guide: Guide | None = None
    logprobs: int | None = None
    deadline_s: float | None = None


@dataclass(frozen=True)
class Finished:
    """Why a stream ended: at an end token (the last of the stream), at the limit, or cancelled.

    Of the prompt, `cached_tokens` were not computed; of these, `disk_tokens` came from disk. `evicted`: more
    had been known, but was given up for lack of room. `differs_at`: the first token
    that was another one in an earlier prompt or answer which began in the same way.
    """

    reason: Literal["stop", "length", "cancelled"]
    cached_tokens: int = 0
    disk_tokens: int = 0
    evicted: bool = False
    differs_at: int | None = None


Item = Drawn | Finished | MoonletError


class Stream:
    """The answer to one request.

    Iterating blocks until the next token and raises the error that ended the generation, if one did.
    `cancel` may be called from any thread and frees the engine within one step. With `sink`, items go
    there instead, on the engine's thread: each token, then one Finished or error.
    """

    def __init__(self, sink: Callable[[Item], None] | None = None) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._sink = sink or self._items.put
        self._cancelled = threading.Event()
        self.task: Task | None = None  # the engine's, while it runs
        self.finished: Finished | None = None

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def put(self, item: Item) -> None:
        """For the engine's thread."""
        try:
            self._sink(item)
        except Exception:  # a broken listener must not take the engine's thread with it
            logger.exception("a stream's sink failed; its request is cancelled")
            self.cancel()

    def cancel(self) -> None:
        self._cancelled.set()

    def __iter__(self) -> Iterator[int]:
        while self.finished is None:
            item = self._items.get()
            if isinstance(item, MoonletError):
                raise item
            if isinstance(item, Finished):
                self.finished = item
            else:
                yield item.token
