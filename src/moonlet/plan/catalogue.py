"""Accelerators and processors by name: `catalogue.toml`, read once and only when asked for."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from moonlet.errors import ConfigError
from moonlet.plan.machine import Accelerator, Host

GB = 1e9
GIB = 2**30  # memory is sold in these and called GB
_TYPES = ("fp32", "bf16", "fp8", "fp4", "int8")
# Words that vendors, drivers and people put around the part of a name that matters.
_WORDS = re.compile(r"nvidia|geforce|tesla|amd|instinct|apple|intel|processor|\((r|tm)\)")


@dataclass(frozen=True)
class AcceleratorEntry:
    """One accelerator of the catalogue and what stands behind its figures.

    sure: read from a vendor's sheet, not recalled. server: it lives in a rack. host_name: the processor on the
    same chip, if any. network_gbit: of the machine that such a chip is. usd_date: when it was asked for.
    """

    accelerator: Accelerator
    source: str
    sure: bool = True
    server: bool = False
    host_name: str | None = None
    network_gbit: float | None = None
    usd_date: str | None = None


@dataclass(frozen=True)
class HostEntry:
    """One processor of the catalogue; all figures are those of one socket with its fastest memory."""

    name: str
    cores: int
    bandwidth_bytes_s: float
    flops: Mapping[str, float] = field(hash=False)
    sockets: int
    pcie_bytes_s: float
    watts: float
    usd: float | None
    source: str
    sure: bool = True

    def host(self, ram_bytes: float, sockets: int = 1) -> Host:
        """A node with so many of them. Raises ConfigError for more sockets than a board has."""
        if not 1 <= sockets <= self.sockets:
            boards = "one socket" if self.sockets == 1 else f"1 to {self.sockets} sockets"
            raise ConfigError(
                f"{sockets} sockets: boards for {self.name} have {boards}; use more nodes"
            )
        return Host(
            name=self.name if sockets == 1 else f"{sockets}x {self.name}",
            cores=sockets * self.cores,
            ram_bytes=ram_bytes,
            bandwidth_bytes_s=sockets * self.bandwidth_bytes_s,
            flops={kind: sockets * rate for kind, rate in self.flops.items()},
            sockets=sockets,
            watts=sockets * self.watts,
            usd=None if self.usd is None else sockets * self.usd,
        )


@cache
def accelerators() -> dict[str, AcceleratorEntry]:
    """All of them by name, as the catalogue spells it."""
    return {name: _accelerator(name, row) for name, row in _document()["accelerator"].items()}


@cache
def hosts() -> dict[str, HostEntry]:
    """All processors by name, as the catalogue spells it."""
    return {name: _host(name, row) for name, row in _document()["host"].items()}


def find_accelerator(name: str) -> AcceleratorEntry:
    """The entry that `name` means: "rtx4090", "RTX 4090", "H100", "m3-ultra-512", or as a driver calls it.

    Raises ConfigError with the nearest names.
    """
    keys = _keys("accelerator")
    found = keys.get(_key(name))
    if found is None:
        raise ConfigError(
            f"no accelerator {name[:60]!r} in the catalogue; {_nearest(name, keys)}. "
            "Any other is described as NAME:MEMORY_GB@GB/s, such as mine:24GB@936"
        )
    return accelerators()[found]


def find_host(name: str) -> HostEntry:
    """The entry of a processor: "EPYC 9965", "epyc9965", "9965". Raises ConfigError with the nearest names."""
    keys = _keys("host")
    found = keys.get(_key(name))
    if found is None:
        raise ConfigError(
            f"no processor {name[:60]!r} in the catalogue; {_nearest(name, keys)}. "
            "Without a name, say its --cpu-bandwidth and --cores"
        )
    return hosts()[found]


def host_named_in(text: str) -> HostEntry | None:
    """The processor whose model number stands in what a system calls its CPU, if the catalogue has it."""
    inside = _key(text)
    fitting = [(len(key), name) for key, name in _keys("host").items() if key in inside]
    return hosts()[max(fitting)[1]] if fitting else None


def pcie_bytes_s(generation: int) -> float:
    """Of 16 lanes in one direction."""
    return _generation("pcie", generation)


def nvme_bytes_s(generation: int) -> float:
    """What a good drive of four lanes reads, one request after the other."""
    return _generation("nvme", generation)


def unit_flops(unit: str, cores: int, clock_hz: float) -> dict[str, float]:
    """Peak of `cores` of that kind ("zen4", "amx") at that clock, by type."""
    per_cycle = _document()["unit"][unit]
    return {kind: per_cycle[kind] * cores * clock_hz for kind in ("fp32", "bf16", "int8")}


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads((files("moonlet.plan") / "catalogue.toml").read_text("utf-8"))


def _accelerator(name: str, row: dict[str, Any]) -> AcceleratorEntry:
    unified = "host" in row
    bandwidth = row["bandwidth_gb_s"] * GB
    # A chip that shares its host's memory has no bus between the two.
    bus = bandwidth if unified else row.get("pcie_gb_s", 0.0) * GB or pcie_bytes_s(row["pcie"])
    accelerator = Accelerator(
        name=name,
        memory_bytes=row["memory_mib"] * 2**20,
        bandwidth_bytes_s=bandwidth,
        flops={kind: row[kind] * 1e12 for kind in _TYPES if kind in row},
        link_bytes_s=row["link_gb_s"] * GB if "link_gb_s" in row else bus,
        pcie_bytes_s=bus,
        unified=unified,
        watts=row["watts"],
        usd=row.get("usd"),
    )
    return AcceleratorEntry(
        accelerator,
        row["source"],
        row.get("sure", True),
        row.get("server", False),
        row.get("host"),
        row.get("network_gbit"),
        row.get("usd_date"),
    )


def _host(name: str, row: dict[str, Any]) -> HostEntry:
    bandwidth = row.get("bandwidth_gb_s", 0.0) * GB or row["channels"] * row["mt_s"] * 1e6 * 8
    return HostEntry(
        name=name,
        cores=row["cores"],
        bandwidth_bytes_s=bandwidth,
        flops=unit_flops(row["unit"], row.get("counted", row["cores"]), row["clock_ghz"] * 1e9),
        sockets=row.get("sockets", 1),
        pcie_bytes_s=pcie_bytes_s(row["pcie"]) if "pcie" in row else bandwidth,
        watts=row.get("watts", 0.0),
        usd=row.get("usd"),
        source=row["source"],
        sure=row.get("sure", True),
    )


@cache
def _keys(table: str) -> dict[str, str]:
    """Every way to write a name -> the name. Without its family too ("9965", "4090"), where that is no riddle."""
    rows, keys = _document()[table], {}
    for name, row in rows.items():
        for spelled in (name, *row.get("aliases", ())):
            keys[_key(spelled)] = name
    bare: dict[str, set[str]] = {}
    for name in rows:
        _, _, rest = name.partition(" ")
        if any(c.isdigit() for c in rest) and len(_key(rest)) >= 4:
            bare.setdefault(_key(rest), set()).add(name)
    return {key: names.pop() for key, names in bare.items() if len(names) == 1} | keys


def _key(name: str) -> str:
    """Lower case, letters and digits only, without vendors: "NVIDIA GeForce RTX 4090" -> "rtx4090"."""
    return re.sub(r"[^a-z0-9+]", "", _WORDS.sub("", name[:200].lower()))


def _nearest(name: str, keys: Mapping[str, str]) -> str:
    key = _key(name)
    names = [keys[near] for near in get_close_matches(key, keys, n=6, cutoff=0.5)]
    names += [found for near, found in keys.items() if len(key) >= 2 and key in near]
    unique = tuple(dict.fromkeys(names))[:3]
    return f"nearest are {', '.join(unique)}" if unique else f"it knows {_some(keys.values())}"


def _some(names: Iterable[str]) -> str:
    unique = tuple(dict.fromkeys(names))
    return f"{', '.join(unique[:5])} and {len(unique) - 5} more"


def _generation(table: str, generation: int) -> float:
    rates = _document()[table]
    if str(generation) not in rates:
        raise ConfigError(f"no {table} generation {generation}; there are {', '.join(rates)}")
    return rates[str(generation)] * GB
