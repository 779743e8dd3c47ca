"""Detection on machines made of a few files, and on this one."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.plan.detect import detect_machine
from moonlet.plan.detect_gpu import apple_chip, ask, cards

KIB, GIB = 2**10, 2**30
CPUINFO = "processor : 0\nvendor_id : AuthenticAMD\ncpu family : 26\nmodel name : {}\ncpu MHz : 3000.0\nflags : fpu avx2 avx512_vnni avx512_bf16\n"


def nothing(command: list[str]) -> str:
    return ""


def machine_files(
    root: Path, cpu: str = "AMD EPYC 9965 192-Core Processor", cores: int = 4
) -> Path:
    """One socket, two hyperthreads a core, two NUMA nodes, 64 GiB of which 48 are free."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(CPUINFO.format(cpu))
    (root / "proc/meminfo").write_text(
        f"MemTotal: {64 * GIB // KIB} kB\nMemFree: 1 kB\nMemAvailable: {48 * GIB // KIB} kB\n"
    )
    for number in range(2 * cores):
        topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        core = number % cores
        (topology / "thread_siblings_list").write_text(f"{core},{core + cores}\n")
        (topology / "physical_package_id").write_text("0\n")
    for node in range(2):
        (root / f"sys/devices/system/node/node{node}").mkdir(parents=True)
    return root


def write(root: Path, path: str, text: str | int) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


def test_cores_memory_and_nodes(tmp_path: Path) -> None:
    found = detect_machine(tmp_path, machine_files(tmp_path / "root"), nothing)
    host = found.machine.host
    assert (host.cores, host.sockets, found.numa_nodes) == (4, 1, 2)
    assert (host.ram_bytes, found.free_ram_bytes) == (64 * GIB, 48 * GIB)
    assert found.cpu == "AMD EPYC 9965 192-Core Processor"
    # Four of its 192 cores: their share of the peaks, and what four cores can read.
    assert host.flops["int8"] == pytest.approx(4 * 2.25e9 * 256)
    assert host.bandwidth_bytes_s == 80e9
    assert found.machine.accelerators == ()
    assert any("--measure" in note for note in found.notes)


def test_an_unknown_processor_is_judged_by_its_instructions(tmp_path: Path) -> None:
    found = detect_machine(tmp_path, machine_files(tmp_path / "root", "AMD EPYC"), nothing)
    assert found.machine.host.flops["int8"] == pytest.approx(4 * 3.0e9 * 256)  # family 26: Zen 5


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_the_control_group_count(tmp_path: Path, version: int) -> None:
    root = machine_files(tmp_path / "root")
    if version == 2:
        write(root, "proc/self/cgroup", "0::/box/inner")
        write(root, "sys/fs/cgroup/box/memory.max", 8 * GIB)
        write(root, "sys/fs/cgroup/box/memory.current", 6 * GIB)
        write(
            root, "sys/fs/cgroup/box/memory.stat", f"anon 1\ninactive_file {GIB}\nactive_file {GIB}"
        )
        write(root, "sys/fs/cgroup/box/inner/memory.max", "max")
        write(root, "sys/fs/cgroup/box/inner/cpu.max", "200000 100000")
    else:
        write(root, "proc/self/cgroup", "4:memory:/box/inner\n2:cpu,cpuacct:/\n0::/")
        memory = "sys/fs/cgroup/memory/box"
        write(root, f"{memory}/memory.limit_in_bytes", 8 * GIB)
        write(root, f"{memory}/memory.usage_in_bytes", 6 * GIB)
        write(root, f"{memory}/memory.stat", f"total_inactive_file {GIB}\ntotal_active_file {GIB}")
        write(root, f"{memory}/inner/memory.limit_in_bytes", 2**63 - 4096)  # unlimited
        write(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", 200000)
        write(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    found = detect_machine(tmp_path, root, nothing)
    assert found.machine.host.ram_bytes == 8 * GIB
    assert found.free_ram_bytes == 4 * GIB  # 8 - 6, and 2 of files that give way
    assert found.machine.host.cores == 2


def test_the_drive_is_known_by_its_device(tmp_path: Path) -> None:
    root = machine_files(tmp_path / "root")
    device = os.stat(tmp_path).st_dev
    block = root / "sys/devices/pci0000:00/nvme/nvme0/nvme0n1/nvme0n1p1"
    block.mkdir(parents=True)
    write(
        root,
        "sys/devices/pci0000:00/nvme/nvme0/nvme0n1/device/device/current_link_speed",
        "32.0 GT/s PCIe",
    )
    link = root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(block)
    found = detect_machine(tmp_path, root, nothing)
    assert found.machine.disk is not None
    assert found.machine.disk.bandwidth_bytes_s == 14e9
    assert found.machine.disk.free_bytes > 0
    assert any("NVMe, PCIe 5" in note for note in found.notes)


def test_nothing_found_is_said(tmp_path: Path) -> None:
    found = detect_machine(tmp_path / "absent", tmp_path, nothing)
    assert found.machine.host.cores >= 1
    assert found.machine.disk is None
    assert found.free_ram_bytes is None
    said = " ".join(found.notes)
    for word in ("size of the memory", "free now", "instruction sets", "drive"):
        assert word in said


def test_this_machine() -> None:
    found = detect_machine()
    host = found.machine.host
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert host.ram_bytes > 2**28
    assert found.free_ram_bytes is None or 0 <= found.free_ram_bytes <= host.ram_bytes
    assert host.flops["fp32"] > 1e9


NVIDIA = """NVIDIA GeForce RTX 4090, 49140, 4, 16
NVIDIA A100-SXM4-40GB, 40960, 4, 16
NVIDIA H100 80GB HBM3, 81559, 5, 8
NVIDIA H200, 143771, [N/A], [N/A]
NVIDIA GeForce GTX 1080, 8192, 3, 16
garbage
NVIDIA H200, 0, 5, 16
NVIDIA H200, {huge}, {huge}, {huge}
""".format(huge="9" * 400)


def test_nvidia_cards() -> None:
    notes: list[str] = []
    found = cards(lambda command: NVIDIA if command[0] == "nvidia-smi" else "", notes)
    assert [card.name for card in found] == ["RTX 4090", "A100 40GB", "H100 SXM", "H200"]
    assert (
        found[0].memory_bytes == 49140 * 2**20
    )  # what the driver says, not what the catalogue does
    assert found[0].link_bytes_s == found[0].pcie_bytes_s == 31.5e9
    assert (found[2].pcie_bytes_s, found[2].link_bytes_s) == (31.5e9, 450e9)  # 8 lanes of PCIe 5
    assert found[3].pcie_bytes_s == 63e9
    assert notes == [
        "NVIDIA GeForce GTX 1080 (8 GB) is not in the catalogue and left out: "
        "describe it with --gpu NAME:8GB@GB/s"
    ]


def test_amd_cards() -> None:
    listed = {"card0": {"Card Series": "AMD Instinct MI300X", "VRAM Total Memory (B)": "206141652992"},
              "card1": {"Card Series": None}, "system": "x"}  # fmt: skip
    found = cards(lambda command: json.dumps(listed) if command[0] == "rocm-smi" else "", [])
    assert [(card.name, card.memory_bytes) for card in found] == [("MI300X", 206141652992)]


@given(st.text(max_size=200))
def test_a_driver_may_print_anything(text: str) -> None:
    cards(lambda command: text, [])


def test_an_apple_chip_has_all_the_memory() -> None:
    notes: list[str] = []
    assert apple_chip("Apple M3 Ultra", 96 * GIB, notes)[0].memory_bytes == 96 * GIB
    assert apple_chip("AMD EPYC", GIB, notes) == []
    assert notes == []
    assert apple_chip("Apple M9", GIB, notes) == []
    assert "Apple M9 is not in the catalogue" in notes[0]


def test_a_program_that_is_not_there_prints_nothing() -> None:
    assert ask(["moonlet-has-no-such-program"]) == ""
    assert ask(["false"]) == ""
    assert ask(["echo", "a"]) == "a\n"
