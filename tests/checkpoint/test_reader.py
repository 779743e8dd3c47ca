"""Reading folders of every kind: types, quantized forms, layouts of files, memory, the report."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moonlet.checkpoint import open_checkpoint, save_checkpoint
from moonlet.checkpoint.convert_layout import rows_from_transformers, rows_to_transformers
from moonlet.config import ModelConfig, to_hf
from moonlet.errors import CheckpointError
from moonlet.quant import fp8, int4
from tests.checkpoint.tiny import (
    TEXT,
    VISION,
    edit_header,
    edit_tensors,
    random_tensors,
    read_plainly,
    write_plainly,
)

EXPERTS = "language_model.model.layers.1.mlp.experts."
BIAS = "language_model.model.layers.1.mlp.gate.e_score_correction_bias"


def saved(folder: Path, config: ModelConfig = TEXT, **options: object) -> dict[str, torch.Tensor]:
    tensors = random_tensors(config)
    save_checkpoint(folder, config, tensors, **options)  # type: ignore[arg-type]
    return tensors


def assert_equal(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("config", [TEXT, VISION], ids=["text", "vision"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_in_every_type(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    tensors = random_tensors(config, dtype)
    save_checkpoint(tmp_path / "m", config, tensors)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config == replace(config, dtype=str(dtype).removeprefix("torch."))
    assert_equal(dict(checkpoint.tensors()), tensors)
    float32 = dict(checkpoint.tensors(torch.float32))
    assert_equal(float32, {name: tensor.float() for name, tensor in tensors.items()})


def test_the_router_bias_stays_float32(tmp_path: Path) -> None:
    tensors = saved(tmp_path / "m", dtype=torch.bfloat16)
    ours = dict(open_checkpoint(tmp_path / "m").tensors(torch.float16))
    assert torch.equal(ours[BIAS], tensors[BIAS])
    assert ours["language_model.lm_head.weight"].dtype == torch.float16


def test_tensors_of_the_stored_type_are_not_copied(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    first, second = dict(checkpoint.tensors()), dict(checkpoint.tensors())
    name = "language_model.lm_head.weight"
    assert first[name].data_ptr() == second[name].data_ptr()
    first[name].fill_(3)  # what a caller writes into a view survives a later reading
    assert dict(checkpoint.tensors(torch.bfloat16))[name].unique().tolist() == [3]
    assert first[name].unique().tolist() == [3]
    assert dict(open_checkpoint(tmp_path / "m").tensors())[name].unique().numel() > 1


def test_int4_experts_decode_as_the_format_says(tmp_path: Path) -> None:
    tensors = saved(tmp_path / "m", quantize="int4")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config.quantization is not None
    assert checkpoint.config.quantization.method == "int4"
    ours = dict(checkpoint.tensors())
    for name, tensor in tensors.items():
        if not name.startswith(EXPERTS):
            assert torch.equal(ours[name], tensor)
            continue
        rows = tensor.reshape(-1, tensor.shape[2])
        packed, scale = int4.encode(rows.numpy())
        expected = torch.from_numpy(int4.decode(packed, scale, rows.shape[1])).view(tensor.shape)
        assert ours[name].dtype == torch.bfloat16
        assert torch.equal(ours[name], expected.bfloat16())
        float32 = dict(checkpoint.tensors(torch.float32))[name]
        assert torch.equal(float32, expected)


def test_int4_survives_saving_again(tmp_path: Path) -> None:
    saved(tmp_path / "a", quantize="int4", naming="transformers")
    first = dict(open_checkpoint(tmp_path / "a").tensors(torch.float32))
    save_checkpoint(tmp_path / "b", TEXT, first, quantize="int4")
    a, b = (read_plainly(tmp_path / name / "model.safetensors") for name in "ab")
    assert a == b


def test_fp8_matrices_with_partial_blocks(tmp_path: Path) -> None:
    config = replace(TEXT, hidden_size=130, intermediate_size=140)
    tensors = random_tensors(config)
    save_checkpoint(tmp_path / "m", config, tensors)
    expected: dict[str, torch.Tensor] = {}

    def to_fp8(stored: dict[str, tuple[str, list[int], bytes]]) -> None:
        for name in [n for n in stored if n.endswith("_proj.weight")]:
            _, shape, data = stored[name]
            weight = np.frombuffer(data, np.float32).reshape(shape)
            codes, scale = fp8.encode(weight)
            stored[name] = ("F8_E4M3", shape, codes.tobytes())
            stored[name + "_scale_inv"] = ("F32", list(scale.shape), scale.tobytes())
            expected[name] = torch.from_numpy(fp8.decode(codes, scale))

    edit_tensors(tmp_path / "m" / "model.safetensors", to_fp8)
    ours = dict(open_checkpoint(tmp_path / "m").tensors(torch.float32))
    assert len(expected) > 10
    for name, tensor in ours.items():
        stored = name.removeprefix("language_model.")
        if stored in expected:
            assert torch.equal(tensor, expected[stored])
        elif not name.startswith(EXPERTS):
            assert torch.equal(tensor, tensors[name])
    for expert in range(2):
        stored = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
        assert torch.equal(ours[EXPERTS + "gate_up_proj"][expert, 32:], expected[stored])
    assert (
        dict(open_checkpoint(tmp_path / "m").tensors())[EXPERTS + "down_proj"].dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize("layout", ["single", "index", "no index", "index with the wrong shards"])
def test_layouts_of_files(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "m"
    tensors = saved(folder, max_shard_bytes=5_000_000 if layout == "single" else 20_000)
    index = folder / "model.safetensors.index.json"
    assert index.exists() == (layout != "single")
    if layout == "no index":
        index.unlink()
        (folder / "._model-00001.safetensors").write_bytes(b"left by a file manager")
    elif layout == "index with the wrong shards":
        content = json.loads(index.read_text())
        names = list(content["weight_map"])
        files = list(content["weight_map"].values())
        content["weight_map"] = dict(zip(names, files[1:] + files[:1], strict=True))
        index.write_text(json.dumps(content))
    assert_equal(dict(open_checkpoint(folder).tensors()), tensors)


def test_what_nobody_needs_is_left_out(tmp_path: Path) -> None:
    config = replace(TEXT, num_nextn_predict_layers=1)
    tensors = saved(tmp_path / "m", config)

    def add(stored: dict[str, tuple[str, list[int], bytes]]) -> None:
        stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", [1], bytes(4))
        stored["model.layers.2.eh_proj.weight"] = ("F32", [1, 2], bytes(8))

    edit_tensors(tmp_path / "m" / "model.safetensors", add)
    assert_equal(dict(open_checkpoint(tmp_path / "m").tensors()), tensors)


def test_a_folder_of_the_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    tensors = saved(tmp_path / "m")
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate((tmp_path / "m").iterdir()):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(i)))
    assert_equal(dict(open_checkpoint(snapshot).tensors()), tensors)


def test_the_report_names_everything_at_once(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"

    def spoil(stored: dict[str, tuple[str, list[int], bytes]]) -> None:
        del stored["model.norm.weight"]
        del stored["model.layers.1.mlp.experts.1.up_proj.weight"]
        dtype, shape, data = stored["model.layers.0.mlp.up_proj.weight"]
        stored["model.layers.0.mlp.up_proj.weight"] = (dtype, shape[::-1], data)
        stored["model.layers.0.input_layernorm.weight"] = ("I32", [64], bytes(256))
        stored["model.layers.1.mlp.experts.2.up_proj.weight"] = stored[
            "model.layers.1.mlp.experts.0.up_proj.weight"
        ]
        stored["lm_head.bias"] = ("F32", [1], bytes(4))
        stored["language_model.lm_head.weight"] = stored["lm_head.weight"]

    edit_tensors(path, spoil)
    last = list(read_plainly(path))[-1]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError) as caught:
        next(open_checkpoint(tmp_path / "m").tensors())
    message = str(caught.value)
    for part in (
        "2 missing (model.layers.1.mlp.experts.1.up_proj.weight, model.norm.weight)",
        "1 of the wrong shape (model.layers.0.mlp.up_proj.weight is [64, 96], wanted [96, 64])",
        "1 of the wrong type (model.layers.0.input_layernorm.weight is I32, wanted BF16 or F16 or F32)",
        "2 unknown (lm_head.bias, model.layers.1.mlp.experts.2.up_proj.weight)",
        "1 stored twice (language_model.lm_head.weight in model.safetensors and model.safetensors)",
        f"1 cut off by the end of a file ({last} in model.safetensors)",
    ):
        assert part in message
    assert "\n" not in message


def test_a_long_report_is_cut_and_counted(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    edit_tensors(tmp_path / "m" / "model.safetensors", dict.clear)
    with pytest.raises(CheckpointError, match=r"35 missing .*, and 15 more") as caught:
        open_checkpoint(tmp_path / "m").validate()
    assert str(caught.value).count(".weight") <= 20


def test_a_lost_shard_is_named_with_its_tensors(tmp_path: Path) -> None:
    saved(tmp_path / "m", max_shard_bytes=20_000)
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    lost = list(read_plainly(shards[1]))
    shards[1].unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m").validate()
    assert all(name in str(caught.value) for name in [shards[1].name, *lost])


def test_a_configuration_with_billions_of_experts_is_answered_at_once(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    config = to_hf(replace(TEXT, n_routed_experts=1_000_000))
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"2999994 missing .* more\)"):
        open_checkpoint(tmp_path / "m").validate()


def test_vision_rows_are_reordered_per_head() -> None:
    block = torch.arange(12)  # two heads of three pairs, stored as halves
    assert rows_from_transformers(block, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(rows_to_transformers(rows_from_transformers(block, 2), 2), block)


def test_quantized_vision_rows_are_reordered_too(tmp_path: Path) -> None:
    """The order of rows does not depend on how they are stored."""
    tensors = random_tensors(VISION)
    save_checkpoint(tmp_path / "m", VISION, tensors)
    name = "vision_tower.encoder.blocks.0.wqkv.weight"
    heads = VISION.vision.vt_num_attention_heads if VISION.vision else 0
    expected = []

    def cut(stored: dict[str, tuple[str, list[int], bytes]]) -> None:
        del stored[name]
        for block, rows in zip("qkv", tensors[name].chunk(3), strict=True):
            theirs = rows if block == "v" else rows_to_transformers(rows, heads)
            codes, scale = fp8.encode(theirs.contiguous().numpy())
            decoded = torch.from_numpy(fp8.decode(codes, scale))
            expected.append(decoded if block == "v" else rows_from_transformers(decoded, heads))
            prefix = f"model.vision_tower.layers.0.attn.{block}_proj.weight"
            stored[prefix] = ("F8_E4M3", list(codes.shape), codes.tobytes())
            stored[prefix + "_scale_inv"] = ("F32", list(scale.shape), scale.tobytes())

    edit_tensors(tmp_path / "m" / "model.safetensors", cut)
    ours = dict(open_checkpoint(tmp_path / "m").tensors(torch.float32))
    assert torch.equal(ours[name], torch.cat(expected))


PEAK = """
import sys, torch
from pathlib import Path
from moonlet.checkpoint import open_checkpoint

def peak():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]) * 1024

checkpoint = open_checkpoint(Path(sys.argv[1]))
torch.ones(2000, 2000).bfloat16().float()
before = peak()
model = dict(checkpoint.tensors())
print((peak() - before) / sum(t.numel() * t.element_size() for t in model.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("quantize", [None, "int4"])
def test_peak_memory_while_loading_is_near_the_models_own(
    tmp_path: Path, quantize: str | None
) -> None:
    config = replace(TEXT, hidden_size=512, moe_intermediate_size=512, n_routed_experts=64)
    tensors = random_tensors(config, torch.bfloat16)  # 100 MB of experts
    save_checkpoint(tmp_path / "m", config, tensors, quantize=quantize)  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 1.2


def test_a_header_may_be_padded_and_carry_metadata(tmp_path: Path) -> None:
    tensors = saved(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    edit_header(path, lambda header: header.update(__metadata__={"format": "pt", "note": "x"}))
    assert_equal(dict(open_checkpoint(tmp_path / "m").tensors()), tensors)
    write_plainly(path, read_plainly(path))
    assert_equal(dict(open_checkpoint(tmp_path / "m").tensors()), tensors)
