"""Counts against the published tables: parameters, stored bytes, cache bytes."""

from dataclasses import replace

import pytest

from moonlet.config import ModelConfig, load_config, preset
from moonlet.config.sizes import PROJECTOR, VISION_TOWER, ModelSizes, model_sizes
from moonlet.config.tensors import Part
from tests.shared import SHARED, needs_shared

B, M = 10**9, 10**6


def language_model(sizes: ModelSizes) -> int:
    return sizes.parameters(*sizes.language_model)


@pytest.mark.parametrize(
    ("name", "total_b", "active_b", "active_with_embedding_b"),
    [
        ("kimi-k2.5", 1026.408, 31.687, 32.862),
        ("kimi-k2", 1026.408, 31.687, 32.862),
        ("deepseek-v3", 671.026, 36.626, 37.552),
        ("moonlight-16b-a3b", 15.960, 2.579, 2.915),
        ("deepseek-v2-lite", 15.706, 2.451, 2.661),
        ("glm-4.7-flash", 29.943, 3.580, 3.897),
    ],
)
def test_parameters(
    name: str, total_b: float, active_b: float, active_with_embedding_b: float
) -> None:
    sizes = model_sizes(preset(name))
    assert round(language_model(sizes) / B, 3) == total_b
    assert round(sizes.parameters_active / B, 3) == active_b
    assert round(sizes.parameters_active_with_embedding / B, 3) == active_with_embedding_b


@pytest.mark.parametrize(
    ("name", "parts_b"),
    [
        ("kimi-k2.5", {"attention": 6.168, "experts": 1014.686, "shared_experts": 2.642, "dense": 0.396,
                       "router": 0.165, "embedding": 1.174, "head": 1.174}),
        ("deepseek-v3", {"attention": 11.413, "experts": 653.909, "shared_experts": 2.554, "dense": 1.189,
                         "router": 0.106, "embedding": 0.927, "head": 0.927}),
    ],
)  # fmt: skip
def test_parts(name: str, parts_b: dict[Part, float]) -> None:
    sizes = model_sizes(preset(name))
    assert {part: sizes.parameters(part) / B for part in parts_b} == pytest.approx(
        parts_b, abs=6e-4
    )


@pytest.mark.parametrize(("name", "projector_m"), [("kimi-k2.5", 54.28), ("kimi-vl-a3b", 30.7)])
def test_vision(name: str, projector_m: float) -> None:
    sizes = model_sizes(preset(name))
    assert round(sizes.parameters(*VISION_TOWER) / M, 2) == 416.87
    assert sizes.parameters(*PROJECTOR) / M == pytest.approx(projector_m, abs=0.05)


def test_bytes_of_k25_as_published() -> None:
    sizes = model_sizes(preset("kimi-k2.5"))
    assert round(sizes.parts["experts"].bytes_by_type["int4"] / B, 2) == 570.76
    text = sizes.bytes_stored(*sizes.language_model)
    assert round(text / B, 1) == 594.2
    assert round((text - sizes.bytes_stored("experts")) / B, 2) == 23.44
    assert round(sizes.bytes_stored(*sizes.parts) / B, 1) == 595.1
    # The sum in the published index, in GiB; it also counts the 16-byte shape of each expert matrix.
    assert round(sizes.bytes_stored(*sizes.parts) / 2**30, 1) == 554.3


def test_bytes_of_fp8_models_as_published() -> None:
    k2 = model_sizes(preset("kimi-k2"))
    assert k2.bytes_stored(*k2.parts) / B == pytest.approx(1029.2, abs=0.1)
    assert set(k2.parts["experts"].bytes_by_type) == {"fp8"}
    assert set(k2.parts["router"].bytes_by_type) == {"bfloat16", "float32"}
    assert set(k2.parts["head"].bytes_by_type) == {"bfloat16"}


def test_hypothetical_bytes() -> None:
    k25 = preset("kimi-k2.5")
    native, floats = model_sizes(k25), model_sizes(k25, "bfloat16")
    assert model_sizes(k25, "int4") == native
    assert model_sizes(replace(k25, quantization=None)) == floats
    assert floats.parts["experts"].bytes_by_type == {"bfloat16": 2 * floats.parameters("experts")}
    tiny = preset("tiny")  # float32
    assert model_sizes(tiny, "bfloat16").bytes_stored("attention") * 2 == model_sizes(
        tiny
    ).bytes_stored("attention")
    moonlight = model_sizes(preset("moonlight-16b-a3b"), "int4")
    assert moonlight.bytes_stored("experts") * 8 / moonlight.parameters("experts") == 4.5


def test_ragged_groups_and_blocks_are_rounded_up() -> None:
    """Widths that no group divides: the last group of a row and the last block need scales too."""
    odd = replace(preset("tiny"), hidden_size=72, moe_intermediate_size=40, quantization=None)
    experts, width, hidden = odd.n_routed_experts, 40, 72
    layers = odd.num_hidden_layers - odd.first_k_dense_replace
    per_expert = 2 * width * (4 * 9 + 2 * 3) + hidden * (4 * 5 + 2 * 2)
    assert model_sizes(odd, "int4").bytes_stored("experts") == layers * experts * per_expert


@pytest.mark.parametrize(
    ("name", "cache_bytes"),
    [("kimi-k2.5", 70272), ("moonlight-16b-a3b", 27 * 576 * 2), ("glm-4.7-flash", 47 * 576 * 2)],
)
def test_cache(name: str, cache_bytes: int) -> None:
    assert model_sizes(preset(name)).cache_bytes_per_token == cache_bytes


def test_a_model_without_expert_layers() -> None:
    dense = replace(preset("tiny"), first_k_dense_replace=3, vision=None)
    sizes = model_sizes(dense)
    assert "experts" not in sizes.parts
    assert sizes.parameters_active_with_embedding == language_model(sizes)


def published() -> list[str]:
    folder = SHARED / "reference" / "configs"
    return sorted(path.name for path in folder.glob("*.json") if "Kimi-K3" not in path.name)


@needs_shared
@pytest.mark.parametrize("name", published())
def test_every_published_config_can_be_counted(name: str) -> None:
    config: ModelConfig = load_config(SHARED / "reference" / "configs" / name)
    sizes = model_sizes(config)
    assert language_model(sizes) > sizes.parameters_active_with_embedding > 10**9
    assert sizes.bytes_stored(*sizes.parts) > 0
