"""The catalogue against figures that vendors print as a whole, and names as people and drivers write them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.errors import ConfigError
from moonlet.plan.catalogue import (
    accelerators,
    find_accelerator,
    find_host,
    host_named_in,
    hosts,
    nvme_bytes_s,
    pcie_bytes_s,
)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("rtx4090", "RTX 4090"),
        ("RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("rtx-4090-48g", "RTX 4090 48G"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("h100", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("a100-40", "A100 40GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("m3-ultra-512", "M3 Ultra 512"),
        ("m3 ultra 256", "M3 Ultra 256"),
        ("AMD Instinct MI300X", "MI300X"),
        ("trn2", "Trainium2"),
    ],
)
def test_accelerators_go_by_many_names(written: str, name: str) -> None:
    assert find_accelerator(written).accelerator.name == name


@pytest.mark.parametrize(
    ("written", "name"),
    [("epyc 9965", "EPYC 9965"), ("9575F", "EPYC 9575F"), ("AMD Ryzen 9 7950X", "Ryzen 7950X"),
     ("xeon-6980p", "Xeon 6980P"), ("i9-14900k", "Core i9-14900K"), ("graviton4", "Graviton4")],
)  # fmt: skip
def test_processors_go_by_many_names(written: str, name: str) -> None:
    assert find_host(written).name == name


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("AMD EPYC 9654 96-Core Processor", "EPYC 9654"),
        ("Intel(R) Xeon(R) Platinum 8488C", "Xeon 8488C"),
        ("INTEL(R) XEON(R) 6980P", "Xeon 6980P"),
        ("Intel(R) Xeon(R) Gold 6454S", "Xeon 6454S"),
        ("AMD Ryzen Threadripper PRO 7995WX 96-Cores", "Threadripper PRO 7995WX"),
        ("Intel(R) Core(TM) i9-14900K", "Core i9-14900K"),
        ("Apple M3 Ultra", "Apple M3 Ultra"),
        ("Neoverse-V2", "Graviton4"),
        ("Intel(R) Xeon(R) Processor @ 2.10GHz", None),
        ("", None),
    ],
)
def test_what_a_system_calls_its_processor_is_found(system: str, name: str | None) -> None:
    found = host_named_in(system)
    assert (found and found.name) == name


def test_bandwidth_is_what_vendors_print() -> None:
    """AMD prints 460.8 and 614 GB/s per socket, Intel 844.8 for MRDIMM, and 2 x 5600 x 8 is 89.6."""
    printed = {"EPYC 9684X": 460.8, "EPYC 9965": 614.4, "Xeon 6980P": 844.8, "Ryzen 9950X": 89.6,
               "EPYC 7763": 204.8, "Threadripper PRO 7995WX": 332.8}  # fmt: skip
    for name, gb_s in printed.items():
        assert find_host(name).bandwidth_bytes_s == pytest.approx(gb_s * 1e9)
    assert pcie_bytes_s(5) == 63e9
    assert nvme_bytes_s(3) == 3.5e9


def test_peaks_are_dense() -> None:
    """Boxes of eight: DGX H100 is sold with 32 PFLOPS of sparse FP8, HGX B200 with 72 of dense FP4."""
    assert 8 * 2 * find_accelerator("h100").accelerator.flops["fp8"] == pytest.approx(
        32e15, rel=0.02
    )
    assert 8 * find_accelerator("b200").accelerator.flops["fp4"] == pytest.approx(72e15, rel=0.01)
    # AMX: 2048 int8 operations per cycle and core, 1024 of bf16.
    xeon = find_host("6980P")
    assert xeon.flops["int8"] == pytest.approx(128 * 2.0e9 * 2048)
    assert xeon.flops["bf16"] == pytest.approx(128 * 2.0e9 * 1024)


def test_two_sockets_are_twice_one() -> None:
    one, two = (find_host("epyc 9575f").host(2**40, sockets) for sockets in (1, 2))
    assert (two.cores, two.bandwidth_bytes_s, two.watts) == (128, 2 * one.bandwidth_bytes_s, 800)
    assert two.flops["int8"] == 2 * one.flops["int8"]
    with pytest.raises(ConfigError, match="boards for Ryzen 9950X have one socket"):
        find_host("9950x").host(2**36, 2)


def test_every_entry_has_a_source_and_sound_figures() -> None:
    for name, entry in accelerators().items():
        card = entry.accelerator
        assert len(entry.source) > 10, name
        assert 8e9 < card.memory_bytes < 1e12, name
        assert 1e11 < card.bandwidth_bytes_s < 1e13, name
        assert 1e12 < card.flops["bf16"] < 1e16, name
        assert card.flops.get("fp8", card.flops["bf16"]) >= card.flops["bf16"], name
        assert 0 < card.pcie_bytes_s <= card.bandwidth_bytes_s, name
        assert 0 < card.watts < 2000, name
        assert (card.usd is None) == (entry.usd_date is None), name
        assert card.unified == (entry.host_name is not None), name
        if entry.host_name:
            assert find_host(entry.host_name).bandwidth_bytes_s == card.bandwidth_bytes_s
    for name, host in hosts().items():
        assert len(host.source) > 10, name
        assert host.cores >= 1, name
        assert 5e10 < host.bandwidth_bytes_s < 1e12, name
        assert host.flops["fp32"] <= host.flops["bf16"] <= 32 * host.flops["fp32"], name


@pytest.mark.parametrize(
    ("name", "nearest"), [("rtx4099", "RTX 4090"), ("h1000", "H100"), ("mi300", "MI300X")]
)
def test_a_wrong_name_is_answered_with_near_ones(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"no accelerator '{name}'.*nearest are .*{nearest}"):
        find_accelerator(name)


@given(st.text(max_size=300))
def test_any_name_is_found_or_refused(name: str) -> None:
    for find in (find_accelerator, find_host):
        with suppress(ConfigError):
            find(name)
    host_named_in(name)
