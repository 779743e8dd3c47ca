"""A machine from a few words of its owner: `--gpu 1xrtx4090 --ram 256 --cpu-bandwidth 80 --nvme 7`.

What is not said is assumed, and each assumption is a sentence that the answer repeats:

| not said       | assumed                                                                                    |
| -------------- | ------------------------------------------------------------------------------------------ |
| processor      | two EPYC 9654 around server cards, one EPYC 9354 where more than 192 GB of memory are asked |
|                | for, else a Ryzen 9950X; on an Apple chip its own                                           |
| memory         | as much as all the cards of a node have, rounded up to a power of two, at least 64 GB       |
| its bandwidth  | all channels filled with the fastest modules that the processor takes                       |
| drive          | one NVMe drive of PCIe 4 with 2 TB free; `--nvme 0` is a machine without                    |
| network        | between several nodes: 400 Gbit/s per server card, otherwise 10; what an Apple chip has     |
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from moonlet.errors import ConfigError
from moonlet.plan.catalogue import (
    GB,
    GIB,
    AcceleratorEntry,
    HostEntry,
    find_accelerator,
    find_host,
    nvme_bytes_s,
    pcie_bytes_s,
)
from moonlet.plan.machine import Accelerator, Disk, Host, Machine

MAX_CARDS = 128  # of one node
MAX_NODES = 4096
_MOST_TEXT = 80  # characters of a --gpu: it is in headlines
DESKTOP_GB = 192  # of memory that a desktop board takes
_OPERATIONS_PER_BYTE = 100  # bf16, between a 3090 (76) and a 4090 (164)
_COUNT = re.compile(r"(\d{1,6})\s*[x*]\s*(.+)", re.IGNORECASE)
_FREE = re.compile(
    r"([^:@]+):([\d.]+)\s*(?:gi?b?)?@([\d.]+)(?:\s*gb/s)?(?::([\d.]+)(?:\s*tflops)?)?",
    re.IGNORECASE,
)

Described = tuple[Machine, tuple[str, ...]]


def describe_machine(
    gpu: Sequence[str] = (),
    ram_gb: float | None = None,
    cpu: str | None = None,
    cpu_bandwidth: float | None = None,
    cores: int | None = None,
    sockets: int | None = None,
    nvme: float | None = None,
    disk_gb: float | None = None,
    nodes: int = 1,
    network_gbit: float | None = None,
) -> Described:
    """The machine, and a sentence "assumed: ..." for each thing that nobody said.

    gpu: the cards of one node, each "[COUNTx]NAME" of the catalogue or "[COUNTx]NAME:GB@GB/s[:TFLOPS]" of any
    other; several Apple chips are several nodes. ram_gb: of one node, in binary gigabytes as memory is sold, and
    on an Apple chip the size of its one memory. cpu: a name of the catalogue. cpu_bandwidth (GB/s) and cores: of all sockets of a node
    together. nvme: GB/s that the drive reads. disk_gb: free on it. Raises ConfigError.
    """
    _check(ram_gb=ram_gb, cpu_bandwidth=cpu_bandwidth, cores=cores, sockets=sockets)
    _check(disk_gb=disk_gb, network_gbit=network_gbit)
    if not (gpu or ram_gb or cpu or cpu_bandwidth):
        raise ConfigError(
            "nothing is said of the machine: name at least --gpu, --ram or --cpu, or leave all of it out "
            "to plan for this one"
        )
    gpu = [" ".join(text.split()) for text in gpu]
    entries, assumed = _cards(gpu)
    if any(entry.accelerator.unified for entry in entries):
        if cpu or sockets:
            raise ConfigError("an Apple chip is its own processor: leave out --cpu and --sockets")
        entries, nodes = _apple(entries, ram_gb, nodes, assumed)
    if not 1 <= nodes <= MAX_NODES:
        raise ConfigError(f"--nodes {nodes}: it must be 1 to {MAX_NODES}, Apple chips included")
    host = _host(entries, ram_gb, cpu, cpu_bandwidth, cores, sockets, assumed)
    name = " + ".join((*gpu, host.name)) if not _is_apple(entries) else entries[0].accelerator.name
    machine = Machine(
        name=name if nodes == 1 else f"{nodes} nodes of {name}",
        host=host,
        accelerators=tuple(entry.accelerator for entry in entries),
        disk=_disk(nvme, disk_gb, assumed),
        nodes=nodes,
        network_bytes_s=_network(entries, nodes, network_gbit, assumed) / 8 * GB,
    )
    return machine, tuple(f"assumed: {sentence}" for sentence in assumed)


def _cards(texts: Sequence[str]) -> tuple[list[AcceleratorEntry], list[str]]:
    entries: list[AcceleratorEntry] = []
    assumed: list[str] = []
    for text in texts:
        if len(text) > _MOST_TEXT:
            raise ConfigError(
                f"--gpu {text[:20] + '...'!r} has {len(text)} characters; at most {_MOST_TEXT} name an accelerator"
            )
        counted = _COUNT.fullmatch(text)
        count, name = (int(counted[1]), counted[2]) if counted else (1, text)
        if not 1 <= count <= MAX_CARDS - len(entries):
            raise ConfigError(
                f"--gpu {text[:60]!r}: a node holds 1 to {MAX_CARDS} accelerators; use --nodes for more"
            )
        entries += [_card(name, assumed)] * count
    return entries, assumed


def _card(name: str, assumed: list[str]) -> AcceleratorEntry:
    if not any(mark in name for mark in ":@"):
        return find_accelerator(name)
    free = _FREE.fullmatch(name)
    if free is None:
        raise ConfigError(
            f"{name[:60]!r} is no accelerator: write NAME:MEMORY_GB@GB/s[:TFLOPS], such as mine:24GB@936:71"
        )
    memory, bandwidth = (_number(text, name) for text in free.group(2, 3))
    if free[4]:
        tflops = _number(free[4], name)
    else:
        tflops = bandwidth * _OPERATIONS_PER_BYTE / 1000
        assumed.append(
            f"{free[1]} computes {tflops:.0f} TFLOPS in bf16, {_OPERATIONS_PER_BYTE} operations for each byte it reads"
        )
    bus = pcie_bytes_s(4)
    assumed.append(f"{free[1]} has 16 lanes of PCIe 4 ({bus / GB:.0f} GB/s) to host and peers")
    accelerator = Accelerator(
        free[1], memory * GIB, bandwidth * GB, {"bf16": tflops * 1e12}, bus, bus
    )
    return AcceleratorEntry(accelerator, "described by the user")


def _apple(
    entries: list[AcceleratorEntry], ram_gb: float | None, nodes: int, assumed: list[str]
) -> tuple[list[AcceleratorEntry], int]:
    """One chip a node, with the memory that was asked for."""
    first = entries[0]
    if any(entry != first for entry in entries):
        raise ConfigError(
            "Apple chips stand alone, one kind in all nodes: write 2xm3-ultra-512, or plan for each by itself"
        )
    chip = first.accelerator
    if ram_gb and ram_gb * GIB != chip.memory_bytes:
        assumed.append(
            f"{chip.name} with {ram_gb:g} GB of memory, as --ram says, in place of its {chip.memory_bytes / GIB:g} GB"
        )
        chip = replace(chip, name=f"{chip.name} with {ram_gb:g} GB", memory_bytes=ram_gb * GIB)
        first = replace(first, accelerator=chip)
    return [first], nodes * len(entries)


def _is_apple(entries: Sequence[AcceleratorEntry]) -> bool:
    return bool(entries) and entries[0].accelerator.unified


def _host(
    entries: Sequence[AcceleratorEntry],
    ram_gb: float | None,
    cpu: str | None,
    bandwidth: float | None,
    cores: int | None,
    sockets: int | None,
    assumed: list[str],
) -> Host:
    if _is_apple(entries):
        ram_bytes = entries[0].accelerator.memory_bytes
    else:
        ram_bytes = (ram_gb or _usual_ram(entries, assumed)) * GIB
    entry, count = _processor(entries, ram_bytes, cpu, sockets, assumed)
    host = entry.host(ram_bytes, count)
    if bandwidth is not None:
        host = replace(host, bandwidth_bytes_s=bandwidth * GB)
    elif not _is_apple(entries):
        assumed.append(f"memory reads {host.bandwidth_bytes_s / GB:.0f} GB/s, all channels filled")
    if cores is not None:
        flops = {kind: rate * cores / host.cores for kind, rate in host.flops.items()}
        host = replace(host, cores=cores, flops=flops)
    return host


def _usual_ram(entries: Sequence[AcceleratorEntry], assumed: list[str]) -> float:
    cards = sum(entry.accelerator.memory_bytes for entry in entries) / GIB
    ram_gb = 64
    while ram_gb < cards:
        ram_gb *= 2
    why = "as much as the cards have, rounded up" if ram_gb > 64 else "which is usual"
    assumed.append(f"{ram_gb} GB of memory, {why}")
    return ram_gb


def _processor(
    entries: Sequence[AcceleratorEntry],
    ram_bytes: float,
    cpu: str | None,
    sockets: int | None,
    assumed: list[str],
) -> tuple[HostEntry, int]:
    """The processor and how many of it."""
    if cpu is not None:
        return find_host(cpu), sockets or 1
    if _is_apple(entries):
        return find_host(str(entries[0].host_name)), 1
    if any(entry.server for entry in entries):
        found, usual = find_host("EPYC 9654"), 2
    elif ram_bytes > DESKTOP_GB * GIB or (sockets or 1) > 1:
        found, usual = find_host("EPYC 9354"), 1
    else:
        found, usual = find_host("Ryzen 9950X"), 1
    count = sockets or usual
    assumed.append(f"the processor is {'two' if count == 2 else 'one'} {found.name}")
    return found, count


def _disk(nvme: float | None, disk_gb: float | None, assumed: list[str]) -> Disk | None:
    """Disks, unlike memory, are sold in decimal gigabytes."""
    if nvme is not None and not (isfinite(nvme) and 0 <= nvme < 1e6):
        raise ConfigError(
            f"--nvme {nvme:g}: it must be GB/s that the drive reads, below 1e6, 0 for none"
        )
    if nvme == 0:
        return None
    rate = nvme_bytes_s(4) if nvme is None else nvme * GB
    if nvme is None:
        assumed.append(f"one NVMe drive that reads {rate / GB:.0f} GB/s")
    if disk_gb is None:
        disk_gb = 2000
        assumed.append(f"{disk_gb} GB are free on the drive")
    return Disk(rate, disk_gb * GB)


def _network(
    entries: Sequence[AcceleratorEntry], nodes: int, gbit: float | None, assumed: list[str]
) -> float:
    """Gbit/s of one node in one direction; 0 for a single node of which nothing is said."""
    if gbit is not None or nodes == 1:
        return gbit or 0.0
    server = sum(entry.server for entry in entries)
    found = (entries[0].network_gbit if _is_apple(entries) else 400.0 * server) or 10.0
    assumed.append(f"{found:.0f} Gbit/s between the nodes")
    return found


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (isfinite(value) and 0 < value < 1e9):
        raise ConfigError(f"{name[:60]!r}: {text[:20]!r} must be a number above 0 and below 1e9")
    return value


def _check(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (isfinite(value) and 0 < value < 1e9):
            flag = "--" + name.removesuffix("_gb").removesuffix("_gbit").replace("_", "-")
            raise ConfigError(f"{flag} {value:g}: it must be a number above 0 and below 1e9")
