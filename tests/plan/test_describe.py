"""Machines as their owners describe them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.errors import ConfigError
from moonlet.plan.describe import describe_machine

GIB = 2**30


def test_a_desktop_with_one_card() -> None:
    machine, assumed = describe_machine(["1xrtx4090"], ram_gb=256, cpu_bandwidth=80, nvme=7)
    assert [card.name for card in machine.accelerators] == ["RTX 4090"]
    assert machine.host.ram_bytes == 256 * GIB
    assert machine.host.bandwidth_bytes_s == 80e9
    assert machine.disk is not None
    assert machine.disk.bandwidth_bytes_s == 7e9
    assert machine.nodes == 1
    # 256 GB do not fit a desktop board, so the processor is one for servers; that is said, what was given is not.
    assert assumed == (
        "assumed: the processor is one EPYC 9354",
        "assumed: 2000 GB are free on the drive",
    )


def test_a_server_gets_what_servers_have() -> None:
    machine, assumed = describe_machine(["8xh200"])
    assert machine.num_accelerators == 8
    assert machine.vram_bytes == 8 * 143771 * 2**20
    assert machine.host.ram_bytes == 2048 * GIB  # 8 x 140.4 do not fit 1024
    assert machine.host.name == "2x EPYC 9654"
    assert machine.host.bandwidth_bytes_s == pytest.approx(2 * 460.8e9)
    assert machine.network_bytes_s == 0
    assert len(assumed) == 5
    assert all(sentence.startswith("assumed: ") for sentence in assumed)


def test_everything_said_leaves_nothing_assumed() -> None:
    machine, assumed = describe_machine(
        ["2xh100"], ram_gb=1000, cpu="xeon 6980p", cpu_bandwidth=500, cores=64, sockets=1, nvme=14,
        disk_gb=4000, nodes=2, network_gbit=400,
    )  # fmt: skip
    assert assumed == ()
    assert machine.host.cores == 64
    assert machine.host.flops["int8"] == pytest.approx(64 * 2.0e9 * 2048)
    assert machine.network_bytes_s == 50e9
    assert machine.num_accelerators == 4


def test_servers_meet_over_a_link_for_each_card() -> None:
    machine, assumed = describe_machine(["8xh100"], nodes=2)
    assert machine.network_bytes_s == 8 * 50e9
    assert "assumed: 3200 Gbit/s between the nodes" in assumed
    assert describe_machine(["rtx4090"], nodes=2)[0].network_bytes_s == 10e9 / 8


def test_different_cards_may_share_a_node() -> None:
    machine, _ = describe_machine(["2x3090", "rtx 5090"])
    assert [card.name for card in machine.accelerators] == ["RTX 3090", "RTX 3090", "RTX 5090"]


@pytest.mark.parametrize(
    ("text", "gib", "gb_s", "tflops"),
    [("2xmine:24GB@936", 24, 936, 93.6), ("my card:48@864:119.5", 48, 864, 119.5),
     ("2 x old:11.5GiB@480GB/s:22TFLOPS", 11.5, 480, 22)],
)  # fmt: skip
def test_a_card_that_no_catalogue_has(text: str, gib: float, gb_s: float, tflops: float) -> None:
    machine, assumed = describe_machine([text])
    card = machine.accelerators[0]
    assert card.memory_bytes == gib * GIB
    assert card.bandwidth_bytes_s == gb_s * 1e9
    assert card.flops["bf16"] == pytest.approx(tflops * 1e12)
    assert any("PCIe 4" in sentence for sentence in assumed)
    assert any("TFLOPS" in sentence for sentence in assumed) == (":" not in text.partition("@")[2])


def test_an_apple_chip_is_a_whole_machine() -> None:
    machine, assumed = describe_machine(["4xm3-ultra-512"])
    assert (machine.nodes, len(machine.accelerators)) == (4, 1)
    assert machine.accelerators[0].unified
    assert machine.host.ram_bytes == machine.accelerators[0].memory_bytes == 512 * GIB
    assert machine.network_bytes_s == 10e9  # Thunderbolt 5
    assert "assumed: 80 Gbit/s between the nodes" in assumed
    less, _ = describe_machine(["m3-ultra"], ram_gb=96)
    assert less.accelerators[0].memory_bytes == less.host.ram_bytes == 96 * GIB


def test_an_apple_chip_of_another_size_than_its_name_is_told() -> None:
    machine, assumed = describe_machine(["m3-ultra-512"], ram_gb=64, nvme=7, disk_gb=100)
    assert machine.name == machine.accelerators[0].name == "M3 Ultra 512 with 64 GB"
    said = "assumed: M3 Ultra 512 with 64 GB of memory, as --ram says, in place of its 512 GB"
    assert assumed == (said,)
    machine, assumed = describe_machine(["m3-ultra-512"], ram_gb=512, nvme=7, disk_gb=100)
    assert (machine.name, assumed) == ("M3 Ultra 512", ())


def test_a_name_is_one_line() -> None:
    machine, _ = describe_machine(["2x my\n\tcard:24GB@936"])
    assert machine.name.startswith("2x my card:24GB@936 + ")
    assert machine.accelerators[0].name == "my card"


def test_no_accelerator_at_all() -> None:
    machine, _ = describe_machine(ram_gb=768, cpu="epyc 9965")
    assert machine.accelerators == ()
    assert machine.host.cores == 192
    assert describe_machine(ram_gb=64, nvme=0)[0].disk is None


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({}, "nothing is said of the machine"),
        ({"gpu": ["0xh100"]}, "1 to 128 accelerators"),
        ({"gpu": ["999999xh100"]}, "1 to 128 accelerators"),
        ({"gpu": ["100xh100", "100xh100"]}, "1 to 128 accelerators"),
        ({"gpu": ["mine:24GB"]}, "NAME:MEMORY_GB@GB/s"),
        ({"gpu": ["mine:1.2.3@5"]}, "'1.2.3' must be a number above 0"),
        ({"gpu": ["mine:0@5"]}, "'0' must be a number above 0"),
        ({"gpu": ["m3-ultra", "h100"]}, "Apple chips stand alone"),
        ({"gpu": ["h100"], "ram_gb": -1}, "--ram -1: it must be a number above 0"),
        ({"gpu": ["h100"], "network_gbit": 0}, "--network 0: it must be a number above 0"),
        ({"gpu": ["h100"], "nodes": 0}, "--nodes 0: it must be 1 to 4096"),
        ({"gpu": ["h100"], "nodes": 4097}, "--nodes 4097: it must be 1 to 4096"),
        ({"gpu": ["2xm3-ultra"], "nodes": 4096}, "--nodes 8192: it must be 1 to 4096"),
        ({"gpu": ["m3-ultra"], "cpu": "epyc-9654"}, "its own processor"),
        ({"gpu": ["m3-ultra"], "sockets": 2}, "its own processor"),
        ({"gpu": ["a" * 50_000 + ":24GB@936"]}, "'aaaaaaaaaaaaaaaaaaaa...' has 50009 characters"),
        ({"ram_gb": float("nan")}, "--ram nan"),
        ({"ram_gb": 64, "nvme": -3}, "--nvme -3"),
        ({"ram_gb": 64, "cpu": "i8"}, "no processor 'i8'"),
        ({"ram_gb": 64, "cpu": "9950x", "sockets": 2}, "have one socket"),
    ],
)
def test_what_cannot_be_is_refused(said: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        describe_machine(**said)  # type: ignore[arg-type]


@given(st.lists(st.text(max_size=40), max_size=3), st.floats(), st.integers())
def test_any_description_is_a_machine_or_one_error(gpu: list[str], ram: float, nodes: int) -> None:
    try:
        machine, _ = describe_machine(gpu, ram_gb=ram, nodes=nodes)
    except ConfigError:
        return
    assert machine.nodes >= 1
