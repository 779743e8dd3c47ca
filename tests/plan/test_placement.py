"""Where things lie: nothing is lost, nothing overflows, and what is missing is exactly what helps."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.config import ModelConfig, preset
from moonlet.plan.describe import describe_machine
from moonlet.plan.engines import Engine, engine, engines
from moonlet.plan.machine import Accelerator, Disk, Host, Machine
from moonlet.plan.placement import (
    RAM_SHARE,
    SYSTEM_BYTES,
    Load,
    Placement,
    Refusal,
    capacities,
    place,
    whole_bytes,
)
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import Weights

GB = 1e9
K25, MOONLIGHT = preset("kimi-k2.5"), preset("moonlight-16b-a3b")
DENSE = replace(MOONLIGHT, num_hidden_layers=8, first_k_dense_replace=8)
STORED = (
    weights_as(K25, "native"), weights_as(K25, "q2_k_xl"), weights_as(MOONLIGHT, "bf16"), weights_as(DENSE, "bf16"),
    weights_as(preset("tiny"), "bf16"),
)  # fmt: skip
TIERS = ("vram", "ram", "disk")


def _card(memory_gb: float, unified: bool = False) -> Accelerator:
    return Accelerator("card", memory_gb * GB, 1e12, {"bf16": 1e14}, 1e11, 2e10, unified)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Cards of one kind or of several, none, or an Apple chip; with a drive or without; some nodes."""
    sizes = st.floats(4, 300)
    if draw(st.integers(0, 4)) == 0:
        cards = (_card(draw(st.floats(8, 1000)), unified=True),)
    elif draw(st.booleans()):
        cards = (_card(draw(sizes)),) * draw(st.integers(0, 16))
    else:
        cards = tuple(_card(size) for size in draw(st.lists(sizes, max_size=5)))
    ram = cards[0].memory_bytes if cards and cards[0].unified else draw(st.floats(1, 2000)) * GB
    disk = draw(st.none() | st.floats(0, 2000).map(lambda free: Disk(5e9, free * GB)))
    return Machine("machine", Host("host", 8, ram, 1e11, {}), cards, disk, draw(st.integers(1, 4)))


loads = st.builds(
    Load,
    context=st.integers(1, 300_000),
    streams=st.integers(1, 64),
    cache_token_bytes=st.sampled_from([0.0, 35_136.0, 70_272.0]),
    buffer_bytes=st.floats(0, 5e9),
)
names = st.sampled_from(sorted(engines()))
stored = st.sampled_from(STORED)


@settings(max_examples=200, deadline=None)
@given(names, stored, machines(), loads)
def test_all_bytes_lie_somewhere_once_and_no_tier_overflows(
    name: str, weights: Weights, machine: Machine, load: Load
) -> None:
    placed = place(engine(name), weights, machine, load)
    if isinstance(placed, Refusal):
        assert placed.reason.startswith(name)
        assert placed.missing_bytes >= 0
        return
    whole = (
        weights.total_bytes
        + placed.copied_bytes
        + load.cache_bytes * placed.replicas
        + load.buffer_bytes * placed.ranks
    )
    assert sum(placed.used(tier) for tier in TIERS) == pytest.approx(whole, rel=1e-5)
    for tier in TIERS:
        if placed.used(tier):
            assert placed.used(tier) <= placed.capacity[tier] * (1 + 1e-9)
        assert tier not in placed.experts or placed.experts[tier] > 0
    assert sum(placed.experts.values()) == pytest.approx(1 if weights.num_moe_layers else 0)
    assert placed.tokens_left >= 0


def _with_more(machine: Machine, tier: str, num_bytes: float) -> Machine:
    """As much more memory in all nodes together, each card the same."""
    if tier == "vram":
        each = num_bytes / machine.num_accelerators
        cards = tuple(
            replace(card, memory_bytes=card.memory_bytes + each) for card in machine.accelerators
        )
        return replace(machine, accelerators=cards)
    if tier == "ram":
        ram = machine.host.ram_bytes + num_bytes / machine.nodes
        return replace(machine, host=replace(machine.host, ram_bytes=ram))
    assert machine.disk is not None
    return replace(
        machine, disk=replace(machine.disk, free_bytes=machine.disk.free_bytes + num_bytes)
    )


def _runs(known: Engine, weights: Weights, machine: Machine, load: Load) -> bool:
    """Or would, if the GPUs were not enough without it."""
    found = place(replace(known, hybrid=False), weights, machine, load)
    return isinstance(found, Placement)


@settings(max_examples=200, deadline=None)
@given(names, stored, machines(), loads)
def test_what_is_missing_is_exactly_what_helps(
    name: str, weights: Weights, machine: Machine, load: Load
) -> None:
    known = engine(name)
    found = place(known, weights, machine, load)
    if isinstance(found, Placement) or not found.missing_bytes:
        return
    more = found.missing_bytes
    assert _runs(known, weights, _with_more(machine, found.tier, more * (1 + 1e-6) + 1), load)
    assert not _runs(known, weights, _with_more(machine, found.tier, more * 0.99), load)


@settings(max_examples=200, deadline=None)
@given(names, stored, machines(), loads, st.sampled_from(TIERS), st.floats(0, 500))
def test_more_memory_never_makes_it_fail(
    name: str, weights: Weights, machine: Machine, load: Load, tier: str, more_gb: float
) -> None:
    known = engine(name)
    there = {"vram": machine.accelerators, "ram": True, "disk": machine.disk}
    if there[tier] and _runs(known, weights, machine, load):
        assert _runs(known, weights, _with_more(machine, tier, more_gb * GB), load)


@settings(max_examples=200, deadline=None)
@given(stored, machines(), loads)
def test_what_ktransformers_leaves_to_others_sglang_takes(
    weights: Weights, machine: Machine, load: Load
) -> None:
    """Else a machine would be told by each that the other is for it."""
    found = place(engine("ktransformers"), weights, machine, load)
    if isinstance(found, Refusal) and "sglang" in found.reason:
        assert found.missing_bytes == 0
        assert isinstance(place(engine("sglang"), weights, machine, load), Placement)


@pytest.mark.parametrize("weights", STORED[2:4])
def test_ktransformers_is_not_for_what_the_gpus_hold(weights: Weights) -> None:
    """Whether it has experts or none."""
    machine, _ = describe_machine(["8xh200"])
    found = place(engine("ktransformers"), weights, machine, Load(4096, 1, 70_272, 1e9))
    assert isinstance(found, Refusal)
    assert "sglang" in found.reason


def test_the_one_memory_of_an_apple_chip_is_counted_once() -> None:
    machine, _ = describe_machine(["1xm3-ultra-512"])
    assert "ram" not in capacities(engine("llama.cpp"), machine)
    assert capacities(engine("moonlet"), machine).keys() == {"ram"}
    whole = 512 * 2**30
    for known in engines().values():
        tiers = capacities(known, machine)
        assert tiers.get("vram", 0.0) + tiers.get("ram", 0.0) < whole


def test_nodes_add_up() -> None:
    one, _ = describe_machine(["8xh200"])
    for known in engines().values():
        for tier, size in capacities(known, one).items():
            nodes = 1 if tier == "disk" else 4
            assert capacities(known, replace(one, nodes=4))[tier] == nodes * size


def test_the_smallest_card_decides_a_tensor_split() -> None:
    host = Host("host", 8, 64 * GB, 1e11, {})
    mixed = Machine("mixed", host, (_card(24), _card(48)))
    equal = Machine("equal", host, (_card(24), _card(24)))
    larger = Machine("larger", host, (_card(36), _card(36)))
    assert capacities(engine("vllm"), mixed) == capacities(engine("vllm"), equal)
    llama = engine("llama.cpp")
    assert capacities(llama, mixed)["vram"] == pytest.approx(capacities(llama, larger)["vram"])


def test_ranks_of_a_tensor_split_keep_what_it_does_not_cut() -> None:
    """K2.5 in bf16: 61 layers of 7168 x (1536 + 576), 60 routers of 384 x 7168 with a bias, norms, vision."""
    weights = weights_as(K25, "native")
    down = 61 * 7168 * (1536 + 576) * 2
    router, norm, vision = (
        weights.bytes_of(part)  # pyright: ignore[reportArgumentType]
        for part in ("router", "norm", "vision")
    )
    by_hand = down + router + norm + vision + weights.bytes_of("projector")
    assert whole_bytes(weights) == pytest.approx(by_hand, rel=1e-3)
    assert down == pytest.approx(1.847e9, rel=1e-3)
    machine, _ = describe_machine(["8xh200"])
    placed = place(engine("vllm"), weights, machine, Load(1000, 1, 70_272, 1e9))
    assert isinstance(placed, Placement)
    assert placed.parts("vram")["copies of weights"] == pytest.approx(7 * by_hand, rel=1e-3)
    assert placed.parts("vram")["cache"] == 8 * 1000 * 70_272
    assert placed.parts("vram")["buffers"] == 8e9


def test_of_nodes_one_after_the_other_each_keeps_the_cache_of_its_layers_alone() -> None:
    weights, load = weights_as(K25, "native"), Load(1000, 1, 70_272, 1e9)
    machine, _ = describe_machine(["8xh200"], nodes=2)
    macs, _ = describe_machine(["2xm3-ultra-512"])
    placed = place(engine("vllm"), weights, machine, load)
    assert isinstance(placed, Placement)
    assert (placed.replicas, placed.ranks) == (8, 16)
    together = place(engine("mlx"), weights, macs, load)
    assert isinstance(together, Placement)
    assert (together.replicas, together.ranks) == (2, 2)


def test_experts_fill_the_fastest_memory_first() -> None:
    """llama.cpp, a 24 GB card and 256 GB: what is left of the card, then the memory, then the file."""
    weights, load = weights_as(K25, "q2_k_xl"), Load(32768, 1, 70_272, 1e9)
    machine, _ = describe_machine(["1xrtx4090"], ram_gb=256)
    placed = place(engine("llama.cpp"), weights, machine, load)
    assert isinstance(placed, Placement)
    assert placed.rest_in == "vram"
    assert placed.used("vram") == pytest.approx(placed.capacity["vram"])
    assert placed.used("ram") == pytest.approx(placed.capacity["ram"])
    assert placed.capacity["ram"] == pytest.approx((256 * 2**30 - SYSTEM_BYTES) * RAM_SHARE - 0.6e9)
    assert 0 < placed.experts["disk"] < 0.5
    without = place(engine("llama.cpp"), weights, replace(machine, disk=None), load)
    assert isinstance(without, Refusal)
    assert without.tier == "ram"
    disk_bytes = placed.experts["disk"] * placed.expert_bytes
    assert without.missing_bytes == pytest.approx(disk_bytes / RAM_SHARE)


def test_a_card_too_small_for_attention_leaves_it_in_memory() -> None:
    weights, load = weights_as(K25, "q4_k_m"), Load(4096, 1, 70_272, 1e9)
    machine, _ = describe_machine(["small:8GB@300:30"], ram_gb=1024)
    placed = place(engine("llama.cpp"), weights, machine, load)
    assert isinstance(placed, Placement)
    assert placed.rest_in == "ram"
    assert placed.experts["vram"] > 0
    refused = place(engine("ktransformers"), weights, machine, load)
    assert isinstance(refused, Refusal)
    assert refused.tier == "vram"


def test_a_machine_without_what_an_engine_needs_is_told_so() -> None:
    weights, load = weights_as(K25, "native"), Load(4096)
    bare, _ = describe_machine(ram_gb=1024)
    for name in ("vllm", "mlx"):
        found = place(engine(name), weights, bare, load)
        assert isinstance(found, Refusal)
        assert found.missing_bytes == 0


@pytest.mark.parametrize(
    ("cards", "config", "even"),
    [
        (
            "12xh200",
            K25,
            "64 attention heads, which 12 GPUs cannot share evenly: plan 1, 2, 4 or 8 in a node",
        ),
        ("6xb200", preset("deepseek-v3"), "128 attention heads, which 6 GPUs cannot"),
        (
            "2xh200",
            replace(MOONLIGHT, num_attention_heads=15),
            "2 GPUs cannot share evenly: plan 1 in a node",
        ),
        (
            "3xrtx4090",
            MOONLIGHT,
            "16 attention heads, which 3 GPUs cannot share evenly: plan 1 or 2 in a node",
        ),
    ],
)
def test_ranks_that_do_not_divide_the_heads_are_refused(
    cards: str, config: ModelConfig, even: str
) -> None:
    """By the engines that cut heads, before any memory is counted; the others run there."""
    machine, _ = describe_machine([cards], ram_gb=2048)
    for name in ("vllm", "sglang", "ktransformers"):
        found = place(engine(name), weights_as(config, "native"), machine, Load(4096))
        assert isinstance(found, Refusal)
        assert found.missing_bytes == 0
        assert even in found.reason
    for name in ("llama.cpp", "moonlet"):
        assert isinstance(
            place(engine(name), weights_as(config, "q4_k_m"), machine, Load(4096)), Placement
        )


def test_of_more_nodes_than_layers_some_would_have_none() -> None:
    load = Load(4096, 1, 70_272, 1e9)
    for nodes, fits in ((61, True), (62, False)):
        machine, _ = describe_machine(["8xh200"], nodes=nodes)
        found = place(engine("sglang"), weights_as(K25, "native"), machine, load)
        assert isinstance(found, Placement) == fits
        assert fits or "there are 61: plan 61 nodes at most" in getattr(found, "reason", "")


@given(names, stored, machines(), loads)
def test_what_is_placed_on_ranks_is_shared_evenly(
    name: str, weights: Weights, machine: Machine, load: Load
) -> None:
    placed = place(engine(name), weights, machine, load)
    if isinstance(placed, Placement) and name in ("vllm", "sglang", "ktransformers"):
        assert weights.config.num_attention_heads % placed.replicas == 0
        assert machine.nodes <= weights.config.num_hidden_layers
