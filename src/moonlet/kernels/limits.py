"""What this machine can do at most: read memory, multiply and add. The floors that speeds are held against.

On a shared or virtual machine the bandwidth changes from minute to minute, so it is read right before and
right after whatever is compared with it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from moonlet.kernels import _kernels

BUFFER_BYTES = 1 << 30  # well beyond any cache, and read in a few hundredths of a second


class Bandwidth:
    """Read bandwidth of the memory, from a buffer in huge pages that is kept until this is dropped.

    By default 1 GiB, or an eighth of what is available where that is less. MemoryError when not even
    the address space is there.
    """

    def __init__(self, num_bytes: int | None = None) -> None:
        if num_bytes is None:
            num_bytes = min(BUFFER_BYTES, available_bytes() // 8)
        self._buffer = _kernels.ReadBuffer(num_bytes)

    def read(self, all_threads: bool = True, passes: int = 5) -> float:
        """Bytes per second: the median of `passes` over the buffer, on all threads of the pool or one."""
        return median(self._buffer.read(all_threads) for _ in range(passes))


@dataclass(frozen=True)
class Arithmetic:
    """Operations per second from registers; a multiplication and an addition are two of them.

    None where the instruction set has no instruction for it.
    """

    int8_dot: float | None
    bf16_dot: float | None
    float_multiply_add: float | None


def arithmetic(isa: str, all_threads: bool = True) -> Arithmetic:
    """The peaks of one instruction set, of those that `supported_isas` lists."""
    measured = (
        _kernels.peak(isa, name, all_threads)
        for name in ("int8_dot", "bf16_dot", "float_multiply_add")
    )
    return Arithmetic(*measured)


def available_bytes() -> int:
    """Memory that could be taken now without swapping: of the machine, or of the control group if less."""
    return min(_or_unlimited(_machine_bytes), _or_unlimited(_group_bytes))


def _or_unlimited(source: Callable[[], int]) -> int:
    try:
        return source()
    except (OSError, ValueError, KeyError):
        return 1 << 62


def _machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:  # no Linux: half of what is built in is a cautious guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _group_bytes() -> int:
    """Files that the group has read count as used there, and yet they give way."""
    group = Path("/sys/fs/cgroup")
    limit = (group / "memory.max").read_text().strip()
    used = int((group / "memory.current").read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(limit) - used + int(stat["file"])
