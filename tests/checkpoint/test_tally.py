"""Bytes by part from headers: whole repositories invented, with the names and types that are published."""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, prod

import pytest

from moonlet.checkpoint.names import Slot, file_name
from moonlet.checkpoint.remote import _any_quantization
from moonlet.checkpoint.safetensors_header import Described
from moonlet.checkpoint.tally import ITEM_BYTES, Tally
from moonlet.config import ModelConfig, TensorSpec, preset, tensor_specs, to_hf
from moonlet.errors import CheckpointError, ConfigError
from moonlet.plan.stored import weights_as

Tensor = tuple[str, str, tuple[int, ...]]  # name, type, shape
K25 = preset("kimi-k2.5")
SMALL = replace(preset("kimi-k2"), num_hidden_layers=3, n_routed_experts=16)


def matrices(config: ModelConfig) -> Iterator[tuple[TensorSpec, str, tuple[int, ...]]]:
    """Every stored matrix or vector under its published name."""
    for spec in tensor_specs(config):
        if spec.part != "experts":
            yield spec, file_name(Slot(spec.name), config, "kimi"), spec.shape
            continue
        experts, rows, cols = spec.shape
        blocks = ("gate", "up") if spec.name.endswith("gate_up_proj") else ("down",)
        for expert in range(experts):
            for block in blocks:
                slot = Slot(spec.name, expert, block)
                yield spec, file_name(slot, config, "kimi"), (rows // len(blocks), cols)


def plain(spec: TensorSpec, name: str, shape: tuple[int, ...]) -> list[Tensor]:
    return [(name, "F32" if spec.float32 else "BF16", shape)]


def int4(spec: TensorSpec, name: str, shape: tuple[int, ...]) -> list[Tensor]:
    if spec.part != "experts":
        return plain(spec, name, shape)
    stem, (rows, cols) = name.removesuffix("weight"), shape
    return [(stem + "weight_packed", "I32", (rows, cols // 8)),
            (stem + "weight_scale", "BF16", (rows, cols // 32)), (stem + "weight_shape", "I32", (2,))]  # fmt: skip


def fp8(spec: TensorSpec, name: str, shape: tuple[int, ...]) -> list[Tensor]:
    if spec.part not in ("attention", "dense", "experts", "shared_experts"):
        return plain(spec, name, shape)
    blocks = (ceil(shape[0] / 128), ceil(shape[1] / 128))
    return [(name, "F8_E4M3", shape), (name + "_scale_inv", "F32", blocks)]


def nvfp4(spec: TensorSpec, name: str, shape: tuple[int, ...]) -> list[Tensor]:
    if spec.part != "experts":
        return plain(spec, name, shape)
    rows, cols = shape
    stem = name.removesuffix("weight")
    return [(name, "U8", (rows, cols // 2)), (name + "_scale", "F8_E4M3", (rows, cols // 16)),
            (name + "_scale_2", "F32", ()), (stem + "input_scale", "F32", ())]  # fmt: skip


def described(config: ModelConfig, form: object) -> list[Described]:
    return [
        Described(name, dtype, shape, 0, prod(shape) * ITEM_BYTES[dtype])
        for spec, stored, whole in matrices(config)
        for name, dtype, shape in form(spec, stored, whole)  # type: ignore[operator]
    ]


def tallied(config: ModelConfig, tensors: list[Described]) -> dict[str, dict[str, int]]:
    tally = Tally(config)
    tally.add(tensors[::2], "one.safetensors")
    tally.add(tensors[1::2], "two.safetensors")
    return {**tally.bytes_by_part("org/name")}


def test_the_published_list_of_k25_sums_to_its_index() -> None:
    found = tallied(K25, described(K25, int4))
    total = sum(sum(kinds.values()) for kinds in found.values())
    assert total == pytest.approx(554.27 * 2**30, rel=1e-5)
    assert total == weights_as(K25).total_bytes + 60 * 384 * 3 * 8  # the shapes
    assert {part: set(kinds) for part, kinds in found.items()} == {
        part: set(kinds) for part, kinds in weights_as(K25).stored.items()
    }


def test_fp8_with_a_layer_for_multi_token_prediction() -> None:
    config = replace(SMALL, num_nextn_predict_layers=1)
    extra = [Described(f"model.layers.3.{name}", "BF16", (9,), 0, 18) for name in
             ("eh_proj.weight", "mlp.experts.0.up_proj.weight", "shared_head.head.weight")]  # fmt: skip
    assert tallied(config, described(config, fp8) + extra) == weights_as(config, "fp8").stored


def test_bf16_and_others() -> None:
    assert tallied(SMALL, described(SMALL, plain)) == weights_as(SMALL, "bf16").stored
    found, wanted = tallied(SMALL, described(SMALL, nvfp4)), weights_as(SMALL, "nvfp4")
    num_matrices = (
        2 * 16 * 3
    )  # each with a scale of its own, and one for its input that we do not count
    scales = {"fp4": wanted.bytes_of("experts") - 4 * num_matrices, "float32": 8 * num_matrices}
    assert found["experts"] == scales
    assert found["attention"] == wanted.stored["attention"]


def test_missing_twice_and_unknown() -> None:
    tensors = described(SMALL, fp8)
    for spoiled in (
        tensors[:-2],
        [*tensors, tensors[-1]],
        [t for t in tensors if ".5.up_" not in t.name],
    ):
        with pytest.raises(CheckpointError, match=r"lacks 1 of|lacks 2 of"):
            tallied(SMALL, spoiled)
    with pytest.raises(CheckpointError, match=r"holds x\\ny\.weight, which is no tensor"):
        tallied(SMALL, [*tensors, Described("x\ny.weight", "BF16", (1,), 0, 2)])


def test_a_quantization_that_cannot_be_loaded_can_be_counted() -> None:
    modelopt = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    for foreign in (modelopt, {"quant_method": "fp8", "unknown": 1}):
        raw = to_hf(SMALL) | {"quantization_config": foreign}
        assert _any_quantization(raw, "config.json") == replace(SMALL, quantization=None)
    with pytest.raises(ConfigError):
        _any_quantization({"model_type": "kimi_k2"}, "config.json")
