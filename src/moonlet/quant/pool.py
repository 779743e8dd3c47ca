"""Encoding on several processes: a search takes many small steps of numpy, between which threads wait for
Python's lock. The other types are encoded in a few large steps, during which threads do run side by side.
"""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from numpy.typing import NDArray

from moonlet.quant.codec import encode

SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
WORTHWHILE = 1 << 18  # values; fewer are encoded sooner than they are sent


class EncoderPool:
    """Called like `encode`, from any thread. Processes start with the first matrix that is worth it.

    They need not be told of Ctrl-C, and end when this process does, however it ends.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(
        self,
        type_name: str,
        values: NDArray[np.float32],
        importance: NDArray[np.float32] | None = None,
    ) -> NDArray[np.uint8]:
        """As `encode`. Raises RuntimeError as well, when the system has ended a process."""
        if self._workers == 1 or type_name not in SEARCHED or values.size < WORTHWHILE:
            return encode(type_name, values, importance)
        try:
            return self._started().submit(encode, type_name, values, importance).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that encoded has been ended from outside, perhaps for want of memory"
            ) from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                # Not forked: a copy of a process with running threads may hang.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self._workers, context, _prepare)
            return self._pool


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
