"""Encoding on other processes: the same bytes, and nothing of it is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from moonlet.quant import encode
from moonlet.quant.pool import WORTHWHILE, EncoderPool

VALUES = np.random.default_rng(0).standard_normal((WORTHWHILE // 512, 512), np.float32)


def test_the_bytes_are_the_same() -> None:
    weights = np.linspace(0.1, 2, 512, dtype=np.float32)
    pool = EncoderPool(2)
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda kind: pool(kind, VALUES, weights), ("Q4_K", "Q2_K")))
        assert pool._pool is not None
        small = pool("Q4_K", VALUES[:4])
    finally:
        pool.close()
    assert np.array_equal(found[0], encode("Q4_K", VALUES, weights))
    assert np.array_equal(found[1], encode("Q2_K", VALUES, weights))
    assert np.array_equal(small, encode("Q4_K", VALUES[:4]))


@pytest.mark.parametrize("type_name", ["Q8_0", "BF16"])
def test_quick_types_start_no_process(type_name: str) -> None:
    pool = EncoderPool(2)
    assert np.array_equal(pool(type_name, VALUES), encode(type_name, VALUES))
    assert pool._pool is None


def test_refusals_come_back() -> None:
    pool = EncoderPool(2)
    try:
        with pytest.raises(ValueError, match="NaN"):
            pool("Q4_K", np.full_like(VALUES, np.nan))
    finally:
        pool.close()


@pytest.mark.skipif(shutil.which("ps") is None, reason="asks ps which processes run")
def test_processes_end_with_the_one_that_started_them() -> None:
    code = (
        "import numpy as np, time\n"
        "from moonlet.quant.pool import WORTHWHILE, EncoderPool\n"
        "pool = EncoderPool(2)\n"
        "pool('Q4_K', np.ones((WORTHWHILE // 512, 512), np.float32))\n"
        "print(*pool._pool._processes, flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    workers = [int(pid) for pid in child.stdout.readline().split()]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGINT)  # as a terminal does; not theirs to obey
    time.sleep(0.2)
    assert all(is_running(pid) for pid in workers)
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)


def is_running(pid: int) -> bool:
    """Whether the process is there and not a zombie that nobody has collected yet."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")
