"""The accelerators of this machine, as their drivers name them. Nothing here raises."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from moonlet.errors import ConfigError
from moonlet.plan.catalogue import find_accelerator, pcie_bytes_s
from moonlet.plan.detect_linux import whole_number
from moonlet.plan.machine import Accelerator

TIMEOUT_S = 10  # a driver that starts up takes seconds, a broken one for ever
_MAX_CARDS = 1024
_NVIDIA = "name,memory.total,pcie.link.gen.max,pcie.link.width.max"


def ask(command: list[str]) -> str:
    """What a program prints; "" where it is not there, fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def cards(run: Callable[[list[str]], str], notes: list[str]) -> list[Accelerator]:
    """NVIDIA's and AMD's, with the memory that the driver offers; one the catalogue lacks becomes a note."""
    found = []
    for name, memory, bus in (*_nvidia(run), *_amd(run)):
        try:
            card = find_accelerator(name).accelerator
        except ConfigError:
            notes.append(
                f"{name[:60]} ({memory / 2**30:.0f} GB) is not in the catalogue and left out: "
                f"describe it with --gpu NAME:{memory / 2**30:.0f}GB@GB/s"
            )
            continue
        bus = bus or card.pcie_bytes_s
        # Without a link of their own, cards meet over the bus.
        link = bus if card.link_bytes_s == card.pcie_bytes_s else card.link_bytes_s
        found.append(replace(card, memory_bytes=memory, pcie_bytes_s=bus, link_bytes_s=link))
    return found


def apple_chip(cpu: str, ram_bytes: float, notes: list[str]) -> list[Accelerator]:
    """The GPU of an Apple chip, which has all of the memory."""
    if not cpu.startswith("Apple"):
        return []
    try:
        chip = find_accelerator(cpu).accelerator
    except ConfigError:
        notes.append(f"{cpu} is not in the catalogue, so its GPU is left out")
        return []
    return [replace(chip, memory_bytes=ram_bytes)]


def _nvidia(run: Callable[[list[str]], str]) -> Iterator[tuple[str, float, float | None]]:
    """Name, bytes of memory, bytes per second of the bus."""
    text = run(["nvidia-smi", f"--query-gpu={_NVIDIA}", "--format=csv,noheader,nounits"])
    for line in text.splitlines()[:_MAX_CARDS]:
        fields = [field.strip() for field in line.rsplit(",", 3)]
        if len(fields) != 4:
            continue
        memory, generation, lanes = map(whole_number, fields[1:])  # "[N/A]" in a virtual machine
        try:
            bus = pcie_bytes_s(generation or 0) * min(lanes or 16, 16) / 16
        except ConfigError:
            bus = None
        if memory:
            yield fields[0], memory * 2.0**20, bus


def _amd(run: Callable[[list[str]], str]) -> Iterator[tuple[str, float, float | None]]:
    text = run(["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"])
    try:
        listed: Any = json.loads(text)
    except (ValueError, RecursionError):
        return
    for fields in list(listed.values())[:_MAX_CARDS] if isinstance(listed, dict) else ():
        if not isinstance(fields, dict):
            continue
        name = fields.get("Card Series")
        memory = whole_number(str(fields.get("VRAM Total Memory (B)")))
        if isinstance(name, str) and memory:
            yield name, float(memory), None
