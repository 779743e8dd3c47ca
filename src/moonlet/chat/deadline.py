"""How long the media of one conversation may take, and how work that hangs comes to an end."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moonlet.errors import MediaError

_TICK_S = 0.05


class Deadline:
    """`seconds` from now, or earlier when `stop` is set because nobody waits for the answer any more."""

    def __init__(self, seconds: float, stop: threading.Event | None = None) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._stop = stop or threading.Event()

    def within(self, seconds: float) -> "Deadline":
        """This deadline, or `seconds` from now if that is earlier. Raises MediaError as `left` does."""
        return Deadline(min(seconds, self.left()), self._stop)

    def left(self) -> float:
        """Seconds that remain. Raises MediaError when there are none, or when the request was cancelled."""
        if self._stop.is_set():
            raise MediaError("The request was cancelled while its images and videos were opened.")
        left = self._end - time.monotonic()
        if left <= 0:
            raise MediaError(
                f"Opening the images and videos took more than the {self._seconds:.3g} seconds allowed; "
                "send fewer or smaller ones."
            )
        return left

    @contextmanager
    def ending(self, action: Callable[[], object]) -> Iterator[None]:
        """Calls `action`, once and from another thread, when time runs out inside the block.

        What blocks inside it (a read of a pipe or a socket) must come back when `action` was called.
        """
        left_block = threading.Event()

        def watch() -> None:
            while not left_block.wait(_TICK_S):
                if self._stop.is_set() or time.monotonic() > self._end:
                    action()
                    return

        watcher = threading.Thread(target=watch, name="moonlet-deadline", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            left_block.set()
            watcher.join()
