"""What Linux says of its machine in /proc and /sys. Nothing here raises: what is not there is None, 1 or "".

Elsewhere these files are missing, and what the standard library knows is all that is said.
"""

import os
import platform
from contextlib import suppress
from pathlib import Path

from moonlet.plan.catalogue import GB, nvme_bytes_s

_PCIE_OF_SPEED = {"8.0": 3, "16.0": 4, "32.0": 5}  # GT/s of a lane


class LinuxSystem:
    """`root` is another folder only in tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        lines = (line.partition(":") for line in self.text("proc/cpuinfo").splitlines())
        self.cpuinfo: dict[str, str] = {}
        for name, _, value in lines:
            self.cpuinfo.setdefault(name.strip(), value.strip())

    def text(self, path: str | Path) -> str:
        """What a file below `root` holds; "" where it cannot be read."""
        with suppress(OSError, ValueError):
            return (self.root / path).read_text(errors="replace").strip()
        return ""

    def cpu_name(self) -> str:
        return self.cpuinfo.get("model name", "")

    def cores(self) -> int:
        """Whole cores that this process may use: hyperthreads are not counted, quotas and affinity are."""
        siblings = {self.text(cpu / "topology/thread_siblings_list") for cpu in self._cpus()} - {""}
        cores = len(siblings) or os.cpu_count() or 1
        quota = self._quota()
        return cores if quota is None else max(1, min(cores, round(quota)))

    def _cpus(self) -> list[Path]:
        """The folders of those that this process may run on."""
        found = list((self.root / "sys/devices/system/cpu").glob("cpu[0-9]*"))
        if self.root != Path("/") or not hasattr(os, "sched_getaffinity"):
            return found
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        return [cpu for cpu in found if cpu.name in allowed]

    def _quota(self) -> float | None:
        """Processors' worth of time that the control group grants."""
        found = []
        for folder in self._groups("cpu"):
            quota, _, period = self.text(f"{folder}/cpu.max").partition(" ")
            if not quota:
                quota = self.text(f"{folder}/cpu.cfs_quota_us")
                period = self.text(f"{folder}/cpu.cfs_period_us")
            if (granted := whole_number(quota)) and (each := whole_number(period)):
                found.append(granted / each)
        return min(found, default=None)

    def sockets(self) -> int:
        names = {self.text(cpu / "topology/physical_package_id") for cpu in self._cpus()}
        return max(1, len(names - {"", "-1"}))

    def numa_nodes(self) -> int:
        return max(1, len(list((self.root / "sys/devices/system/node").glob("node[0-9]*"))))

    def memory(self) -> tuple[float | None, float | None]:
        """Bytes in all and free now: of the machine, or of the control group where that is less."""
        fields = dict(
            pair for line in self.text("proc/meminfo").splitlines() if (pair := _pair(line, ":"))
        )
        totals: list[float] = [kib * 1024 for kib in _numbers(fields.get("MemTotal", ""))]
        frees: list[float] = [kib * 1024 for kib in _numbers(fields.get("MemAvailable", ""))]
        for folder in self._groups("memory"):
            limit = whole_number(self.text(f"{folder}/memory.max")) or whole_number(
                self.text(f"{folder}/memory.limit_in_bytes")
            )
            if limit is None or (totals and limit >= totals[0]):
                continue
            totals.append(limit)
            used = whole_number(self.text(f"{folder}/memory.current")) or whole_number(
                self.text(f"{folder}/memory.usage_in_bytes")
            )
            if used is not None:
                frees.append(max(0.0, limit - used + self._file_pages(folder)))
        return min(totals, default=None), min(frees, default=None)

    def _file_pages(self, folder: str) -> float:
        """Files that a control group has read count as used there, and yet they give way."""
        lines = self.text(f"{folder}/memory.stat").splitlines()
        stat = dict(pair for line in lines if (pair := _pair(line, " ")))
        whole = "total_" if "total_inactive_file" in stat else ""
        return sum(
            whole_number(stat.get(f"{whole}{age}_file", "")) or 0 for age in ("inactive", "active")
        )

    def _groups(self, controller: str) -> list[str]:
        """Folders of the control groups around this process, versions 1 and 2, the innermost first."""
        folders = []
        for line in self.text("proc/self/cgroup").splitlines():
            number, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if number != "0" and controller not in names.split(","):
                continue
            base = "sys/fs/cgroup" + ("" if number == "0" else f"/{controller}")
            inner = Path(path.lstrip("/"))
            folders += [
                f"{base}/{part}" for part in (inner, *inner.parents) if ".." not in part.parts
            ]
        return folders

    def clock_hz(self) -> float | None:
        for text, unit in ((self.text("sys/devices/system/cpu/cpu0/cpufreq/base_frequency"), 1e3),
                           (self.cpuinfo.get("cpu MHz", ""), 1e6)):  # fmt: skip
            with suppress(ValueError):
                return float(text) * unit
        return None

    def unit(self) -> str | None:
        """Which kind of core this is, of those that the catalogue knows, by its instruction sets."""
        flags = set(self.cpuinfo.get("flags", self.cpuinfo.get("Features", "")).split())
        if "amx_int8" in flags:
            return "amx"
        if "avx512_vnni" in flags:
            if self.cpuinfo.get("vendor_id") != "AuthenticAMD":
                return "avx512_vnni"
            return "zen5" if whole_number(self.cpuinfo.get("cpu family", "")) == 26 else "zen4"
        for flag, unit in (("avx_vnni", "avx_vnni"), ("avx2", "avx2"), ("i8mm", "neoverse_v2"),
                           ("asimddp", "neoverse_n1")):  # fmt: skip
            if flag in flags:
                return unit
        return "apple" if platform.system() == "Darwin" and platform.machine() == "arm64" else None

    def drive(self, major: int, minor: int) -> tuple[str, float]:
        """What kind of drive a device is and what it may read per second."""
        device = (self.root / f"sys/dev/block/{major}:{minor}").resolve()
        queues = [parent / "queue/rotational" for parent in (device, device.parent)]
        if "nvme" in str(device):
            speeds = [
                self.text(parent / "device/device/current_link_speed")
                for parent in (device, device.parent)
            ]
            generation = _PCIE_OF_SPEED.get("".join(speeds).partition(" ")[0], 3)
            return f"NVMe, PCIe {generation}", nvme_bytes_s(generation)
        if "virtio" in str(device) or "/virtual/" in str(device) or not device.exists():
            return "virtual", 0.5 * GB
        if "1" in "".join(map(self.text, queues)):
            return "spinning", 0.15 * GB
        return "SATA or other", 0.5 * GB


def whole_number(text: str) -> int | None:
    """None where it is not one."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _pair(line: str, between: str) -> tuple[str, str] | None:
    name, found, value = line.partition(between)
    return (name, value) if found else None


def _numbers(text: str) -> list[int]:
    """ "24682416 kB" -> [24682416]."""
    return [number for word in text.split() if (number := whole_number(word)) is not None]
