"""This machine, from what the system says of itself. Nothing here raises: what is not found is said in a note.

Peaks come from the catalogue where the processor's model is in it, else from its instruction sets and its clock.
What only a measurement can tell (the bandwidth of a virtual machine's memory and drive) is a cautious guess
and a note that `moonlet plan --measure` knows better.
"""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moonlet.plan.catalogue import GB, host_named_in, unit_flops
from moonlet.plan.detect_gpu import apple_chip, ask, cards
from moonlet.plan.detect_linux import LinuxSystem, whole_number
from moonlet.plan.machine import Disk, Host, Machine

CORE_BYTES_S = (
    20e9  # what one core of a server can read alone; a share of a large machine gets no more
)
_GUESSED_CLOCK = 2.5e9


@dataclass(frozen=True)
class Detected:
    """This machine, and what is true of it only now.

    cpu: as the system calls it. free_ram_bytes: that could be taken now without swapping, within the limit of
    the control group; None where the system does not say. notes: sentences on what was estimated or not found.
    """

    machine: Machine
    cpu: str
    numa_nodes: int
    free_ram_bytes: float | None
    notes: tuple[str, ...] = ()


def detect_machine(
    folder: Path | None = None,
    root: Path = Path("/"),
    run: Callable[[list[str]], str] = ask,
) -> Detected:
    """This machine, with the drive that `folder` (by default the current one) lies on.

    `root` and `run` (what a program prints, "" without it) are for tests.
    """
    notes: list[str] = []
    system = LinuxSystem(root)
    cpu = system.cpu_name() or run(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    cpu = cpu or platform.processor() or platform.machine() or "unknown processor"
    host, free = _host(system, cpu, run, notes)
    accelerators = (*apple_chip(cpu, host.ram_bytes, notes), *cards(run, notes))
    machine = Machine("this machine", host, accelerators, _disk(folder, system, notes))
    return Detected(machine, cpu, system.numa_nodes(), free, tuple(notes))


def _host(
    system: LinuxSystem, cpu: str, run: Callable[[list[str]], str], notes: list[str]
) -> tuple[Host, float | None]:
    cores, sockets = system.cores(), system.sockets()
    ram, free = system.memory()
    if ram is None:
        ram = whole_number(run(["sysctl", "-n", "hw.memsize"]))
    if ram is None:
        notes.append("the size of the memory was not found, so 16 GB are assumed")
        ram = 16 * 2**30
    if free is None:
        notes.append("how much memory is free now was not found")
    entry = host_named_in(cpu)
    if entry is not None:
        whole = min(sockets, entry.sockets)
        share = min(1.0, cores / (whole * entry.cores))
        rate = min(whole * entry.bandwidth_bytes_s, cores * CORE_BYTES_S)
        flops = {kind: whole * peak * share for kind, peak in entry.flops.items()}
        what = "that the catalogue gives this processor"
        watts, usd = whole * entry.watts, entry.usd and whole * entry.usd
    else:
        unit, clock = system.unit(), system.clock_hz()
        if unit is None:
            notes.append(
                f"the instruction sets of {cpu} were not found; its peaks are those of AVX2"
            )
        flops = unit_flops(unit or "avx2", cores, clock or _GUESSED_CLOCK)
        rate, what, watts, usd = cores * CORE_BYTES_S, "for so many cores", 0.0, None
    notes.append(
        f"memory is taken to read {rate / GB:.0f} GB/s, a guess {what}: moonlet plan --measure knows better"
    )
    return Host(cpu, cores, ram, rate, flops, sockets, watts, usd), free


def _disk(folder: Path | None, system: LinuxSystem, notes: list[str]) -> Disk | None:
    where = folder or Path.cwd()
    try:
        free = shutil.disk_usage(where).free
        device = where.stat().st_dev
    except OSError as error:
        notes.append(f"the drive of {where} was not found: {error.strerror}")
        return None
    kind, rate = system.drive(os.major(device), os.minor(device))
    notes.append(
        f"the drive ({kind}) is taken to read {rate / GB:g} GB/s: moonlet plan --measure knows better"
    )
    return Disk(rate, free)
