"""GGUF models: configuration, names and layouts both ways, quantized tensors, vision files, the report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from moonlet.chat.media import MediaLimits
from moonlet.checkpoint import GgufCheckpoint, open_checkpoint, read_config
from moonlet.checkpoint.gguf import GgufFile
from moonlet.checkpoint.gguf_config import config_from_gguf, config_to_gguf
from moonlet.checkpoint.gguf_rows import to_gguf
from moonlet.checkpoint.gguf_vision import find_mmproj, vision_from_gguf, vision_to_gguf
from moonlet.checkpoint.gguf_write import GgufWriter, TensorInfo
from moonlet.config import PRESETS, ModelConfig, RopeConfig, preset, tensor_specs
from moonlet.config.gguf_tensors import forms_of
from moonlet.errors import CheckpointError, ConfigError, NotSupportedError
from moonlet.quant import decode
from tests.checkpoint.tiny import random_tensors
from tests.checkpoint.tiny_gguf import (
    Slots,
    slots_of,
    text_metadata,
    write_mmproj,
    write_slots,
    write_text,
)

VISION = replace(preset("tiny"), latent_norm_eps=1e-5)
TEXT = replace(VISION, model_type="kimi_k2", vision=None, media_placeholder_token_id=None)
MOONLIGHT = replace(
    TEXT, model_type="deepseek_v3", q_lora_rank=None, rope=RopeConfig(50_000.0), n_shared_experts=2
)
KIMI_VL = replace(
    MOONLIGHT, model_type="kimi_vl", media_placeholder_token_id=277,
    vision=replace(VISION.vision, init_pos_emb_time=None),  # type: ignore[type-var]
)  # fmt: skip
LAYER = "language_model.model.layers.1."
GATE_UP, DOWN = LAYER + "mlp.experts.gate_up_proj", LAYER + "mlp.experts.down_proj"
KV_B, O_PROJ = LAYER + "self_attn.kv_b_proj.weight", LAYER + "self_attn.o_proj.weight"


def assert_equal(ours: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert ours[name].shape == tensor.shape, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_metadata(name: str) -> None:
    config = preset(name)
    metadata = config_to_gguf(config)
    plain = {key: _as_read(value) for key, value in metadata.items()}
    plain["general.architecture"] = "deepseek2"
    plain["tokenizer.ggml.pre"] = "kimi-k2" if config.model_type[:4] == "kimi" else "deepseek-v3"
    if name == "moonlight-16b-a3b":
        plain["tokenizer.ggml.pre"] = "kimi-k2"
    vision = None
    if config.vision is not None:
        tokens = [""] * config.vocab_size
        tokens[config.media_placeholder_token_id or 0] = "<|media_pad|>"
        plain["tokenizer.ggml.tokens"] = tokens
        vision = vision_from_gguf({k: _as_read(v) for k, v in vision_to_gguf(config).items()})
    # Not in a GGUF: a layer for drafts that is not written, how folders store weights, the latent's epsilon.
    wanted = replace(
        config, num_nextn_predict_layers=0, quantization=None, latent_norm_eps=config.rms_norm_eps,
        dtype="bfloat16",
    )  # fmt: skip
    assert config_from_gguf(plain, vision) == wanted


def _as_read(value: Any) -> Any:
    return float(str(np.float32(value))) if isinstance(value, float) else value


@pytest.mark.parametrize("config", [TEXT, MOONLIGHT], ids=["k2", "moonlight"])
@pytest.mark.parametrize("form", [0, 1], ids=["split", "whole"])
def test_tensors_round_trip(tmp_path: Path, config: ModelConfig, form: int) -> None:
    tensors = random_tensors(config)
    write_text(tmp_path / "m.gguf", config, tensors, form=form)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert isinstance(checkpoint, GgufCheckpoint)
    assert checkpoint.config == config == read_config(tmp_path / "m.gguf")
    assert_equal(dict(checkpoint.tensors()), tensors)
    assert_equal(dict(checkpoint.tensors()), tensors)  # also after pages were given back
    half = dict(checkpoint.tensors(torch.bfloat16))
    for spec in tensor_specs(config):
        wanted = tensors[spec.name].to(torch.float32 if spec.float32 else torch.bfloat16)
        assert torch.equal(half[spec.name], wanted)


def test_tensors_of_the_stored_type_are_not_copied(tmp_path: Path) -> None:
    config = replace(TEXT, vocab_size=2048)  # so that the head has pages of its own
    write_text(tmp_path / "m.gguf", config, random_tensors(config))
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    name = "language_model.lm_head.weight"
    first = checkpoint.tensor(name)
    assert first.data_ptr() == dict(checkpoint.tensors())[name].data_ptr()
    first.fill_(3)  # what a caller writes into a view survives a later reading
    assert checkpoint.tensor(name, torch.bfloat16).unique().tolist() == [3]
    assert first.unique().tolist() == [3]
    assert open_checkpoint(tmp_path / "m.gguf").tensor(name).unique().numel() > 1


def test_layouts_are_what_the_format_says(tmp_path: Path) -> None:
    tensors = random_tensors(VISION)
    write_text(tmp_path / "m.gguf", VISION, tensors)
    write_mmproj(tmp_path / "mmproj.gguf", VISION, tensors)
    found = {}
    for name in ("m.gguf", "mmproj.gguf"):
        found |= {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / name).tensors}
    heads, nope, rank = VISION.num_attention_heads, VISION.qk_nope_head_dim, VISION.kv_lora_rank
    k_b, v_b = (found[f"blk.1.attn_{letter}_b.weight"] for letter in "kv")
    assert k_b.shape.tolist() == [nope, rank, heads]
    assert v_b.shape.tolist() == [rank, VISION.v_head_dim, heads]
    kv_b, per_head = tensors[KV_B], nope + VISION.v_head_dim
    assert k_b.data[3, 5, 7] == kv_b[3 * per_head + 7, 5]
    assert v_b.data[3, 5, 7] == kv_b[3 * per_head + nope + 5, 7]
    up = found["blk.1.ffn_up_exps.weight"]
    assert up.shape.tolist() == [VISION.hidden_size, VISION.moe_intermediate_size, 8]
    assert up.data[6, 2, 9] == tensors[GATE_UP][6, VISION.moe_intermediate_size + 2, 9]
    # A vision head of 12 rows: 0 1 turn with the column, 2 3 with the row, and so on.
    order = [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    qkv, name = found["v.blk.0.attn_qkv.weight"].data, "vision_tower.encoder.blocks.0.wqkv.weight"
    for first in (12, 48 + 24):
        wanted = tensors[name][[first + row for row in order]]
        assert np.array_equal(qkv[first : first + 12], wanted.numpy())
    assert np.array_equal(qkv[96:], tensors[name][96:].numpy())
    linear = ("attn_qkv", "attn_out", "ffn_up", "ffn_down", "ln1", "ln2")
    names = {f"v.blk.{layer}.{stem}" for layer in (0, 1) for stem in linear}
    names |= {"v.patch_embd", "v.post_ln", "mm.input_norm", "mm.1", "mm.2"}
    names = {f"{stem}.{kind}" for stem in names for kind in ("weight", "bias")}
    assert names | {"v.position_embd.weight"} == {n for n in found if n[:2] in ("v.", "mm")}
    norm0 = tensors["vision_tower.encoder.blocks.1.norm0.weight"]
    assert np.array_equal(found["v.blk.1.ln1.weight"].data, norm0.numpy())
    assert found["v.patch_embd.weight"].shape.tolist() == [14, 14, 3, 48]
    assert found["v.position_embd.weight"].shape.tolist() == [48, 8, 8]
    assert found["mm.2.weight"].shape.tolist() == [192, 64]


def test_real_sizes_have_the_published_number_of_tensors() -> None:
    config = preset("kimi-k2.5")
    slots = [slot for spec in tensor_specs(config) for slot in forms_of(spec, config)[0]]
    assert len(slots) == 1096 + 335
    assert len({slot.name for slot in slots}) == len(slots)


@pytest.mark.parametrize("config", [VISION, KIMI_VL], ids=["k2.5", "kimi-vl"])
def test_a_vision_file_belongs_to_the_model_beside_it(tmp_path: Path, config: ModelConfig) -> None:
    tensors = random_tensors(config)
    write_text(tmp_path / "m.gguf", config, tensors)
    write_mmproj(tmp_path / "mmproj-F32.gguf", config, tensors)
    assert find_mmproj(tmp_path / "m.gguf") == tmp_path / "mmproj-F32.gguf"
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    assert checkpoint.config == config
    assert_equal(dict(checkpoint.tensors()), tensors)
    assert MediaLimits.from_hf(checkpoint.preprocessor).image_patches == (
        16384 if config is VISION else 4096
    )
    (tmp_path / "mmproj-F32.gguf").rename(tmp_path / "vision.gguf")
    assert GgufCheckpoint(tmp_path / "m.gguf").config.vision is None
    given = GgufCheckpoint(tmp_path / "m.gguf", tmp_path / "vision.gguf")
    assert given.config == config
    with pytest.raises(NotSupportedError, match="is the vision file"):
        open_checkpoint(tmp_path / "vision.gguf")


def test_vision_files_that_are_not_ours(tmp_path: Path) -> None:
    tensors = random_tensors(VISION)
    write_text(tmp_path / "m.gguf", VISION, tensors)
    write_mmproj(tmp_path / "mmproj-a.gguf", VISION, tensors)
    write_mmproj(tmp_path / "mmproj-b.gguf", VISION, tensors)
    with pytest.raises(CheckpointError, match=r"mmproj-a\.gguf, mmproj-b\.gguf"):
        open_checkpoint(tmp_path / "m.gguf")
    (tmp_path / "mmproj-b.gguf").unlink()
    metadata = vision_to_gguf(VISION) | {"clip.projector_type": "pixtral"}
    write_slots(tmp_path / "mmproj-a.gguf", metadata, [], {}, VISION)
    with pytest.raises(NotSupportedError, match="pixtral"):
        open_checkpoint(tmp_path / "m.gguf")
    wide = replace(VISION, hidden_size=128)
    write_mmproj(tmp_path / "mmproj-a.gguf", wide, random_tensors(wide))
    with pytest.raises(CheckpointError, match=r"mm\.2\.weight is \[128, 192\], wanted \[64, 192\]"):
        open_checkpoint(tmp_path / "m.gguf").validate()


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_quantized_tensors_come_decoded_and_as_they_are(tmp_path: Path, type_name: str) -> None:
    tensors = random_tensors(TEXT)
    write_text(tmp_path / "m.gguf", TEXT, tensors, type_name)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    file = GgufFile(tmp_path / "m.gguf")
    half = TEXT.moe_intermediate_size
    ours = dict(checkpoint.tensors(torch.float32))
    for name, expert, block, of, rows in (
        (O_PROJ, None, None, "blk.1.attn_output.weight", slice(None)),
        (GATE_UP, 3, "gate", "blk.1.ffn_gate_exps.weight", slice(0, half)),
        (GATE_UP, 3, "up", "blk.1.ffn_up_exps.weight", slice(half, None)),
        (DOWN, 7, None, "blk.1.ffn_down_exps.weight", slice(None)),
        (KV_B, 2, "v", "blk.1.attn_v_b.weight", None),
        (KV_B, 2, "k", "blk.1.attn_k_b.weight", None),
    ):
        matrix = checkpoint.matrix(name, expert, block)
        whole = file.tensors[of].blocks()
        assert matrix.type == stored[of].tensor_type.name
        # The 16 numbers of a key head do not fill a block.
        assert matrix.type == ("F32" if block == "k" and type_name[0] == "Q" else type_name)
        assert (matrix.rows, matrix.cols) == file.tensors[of].shape[-2:]
        assert np.array_equal(matrix.data, whole if expert is None else whole[expert])
        assert matrix.data.flags.c_contiguous
        values = gguf.quants.dequantize(stored[of].data, stored[of].tensor_type)
        values = values.reshape(file.tensors[of].shape)
        values = values if expert is None else values[expert]
        assert np.array_equal(decode(matrix.type, matrix.data), values)
        if rows is not None:
            decoded = ours[name] if expert is None else ours[name][expert]
            assert np.array_equal(decoded[rows].numpy(), values)
    for wrong in ((GATE_UP, 8, "up"), (GATE_UP, 0, None), (GATE_UP, None, "up"), (KV_B, None, None),
                  (LAYER + "input_layernorm.weight", None, None), ("nothing", None, None)):  # fmt: skip
        with pytest.raises(KeyError):
            checkpoint.matrix(*wrong)


def test_old_files_behave_like_folders(tmp_path: Path) -> None:
    tensors = random_tensors(TEXT)
    old: dict[str, Any] = {
        "deepseek2__attention__head_count_kv": TEXT.num_attention_heads,
        "deepseek2__attention__key_length": TEXT.qk_head_dim,
        "deepseek2__attention__value_length": TEXT.v_head_dim,
    }
    dropped = ("attention__key_length_mla", "attention__value_length_mla", "expert_group_count",
               "expert_group_used_count", "rope__scaling__yarn_beta_fast", "vocab_size",
               "rope__scaling__yarn_beta_slow")  # fmt: skip
    old |= {f"deepseek2__{name}": None for name in dropped}
    write_text(tmp_path / "m.gguf", TEXT, tensors, form=1, **old)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.config == TEXT
    assert_equal(dict(checkpoint.tensors()), tensors)
    whole = checkpoint.matrix(KV_B)
    assert whole.data.tobytes() == tensors[KV_B].numpy().tobytes()
    with pytest.raises(KeyError):
        checkpoint.matrix(KV_B, 0, "k")
    up = checkpoint.matrix(GATE_UP, 1, "up")
    assert up.data.tobytes() == tensors[GATE_UP][1, 32:].numpy().tobytes()


def test_stacks_that_are_written_as_matrices(tmp_path: Path) -> None:
    """ik_llama.cpp puts the heads of kv_b below each other; llama.cpp drops leading dimensions of 1."""
    single = replace(TEXT, n_routed_experts=1, num_experts_per_tok=1, num_attention_heads=1)
    for config, flat in ((single, True), (TEXT, False)):
        tensors = random_tensors(config)
        slots = [
            (spec, replace(slot, shape=(slot.shape[0] * slot.shape[1], slot.shape[2])))
            if len(slot.shape) == 3 and (flat or spec.part == "attention")
            else (spec, slot)
            for spec, slot in slots_of(config, is_vision=False)
        ]
        _write_reshaped(tmp_path / "m.gguf", slots, tensors, config)
        checkpoint = open_checkpoint(tmp_path / "m.gguf")
        assert_equal(dict(checkpoint.tensors()), tensors)
        stored = checkpoint.matrix(KV_B, 0, "k")
        assert (stored.rows, stored.cols) == (config.kv_lora_rank, config.qk_nope_head_dim)


def _write_reshaped(
    path: Path, slots: Slots, tensors: dict[str, torch.Tensor], config: ModelConfig
) -> None:
    infos = [TensorInfo(slot.name, slot.shape, "F32") for _, slot in slots]
    with GgufWriter(path, text_metadata(config), infos) as writer:
        for spec, slot in slots:
            form = forms_of(spec, config)[0]
            whole = next(other for other in form if other.name == slot.name)
            writer.write(to_gguf(tensors[spec.name], spec, whole, config).numpy())


def test_what_a_silent_file_means() -> None:
    metadata = {"general.architecture": "deepseek2", **config_to_gguf(TEXT)}
    for name in ("expert_gating_func", "expert_weights_scale", "expert_weights_norm",
                 "rope.scaling.yarn_log_multiplier", "leading_dense_block_count"):  # fmt: skip
        del metadata[f"deepseek2.{name}"]
    config = config_from_gguf(metadata)
    assert (config.model_type, config.scoring_func, config.topk_method) == (
        "deepseek_v2", "softmax", "greedy",
    )  # fmt: skip
    assert (config.routed_scaling_factor, config.norm_topk_prob) == (1.0, False)
    assert (config.first_k_dense_replace, config.rope.mscale_all_dim) == (0, 0.0)
    glm = {"general.architecture": "deepseek2", **config_to_gguf(preset("glm-4.7-flash"))}
    del glm["deepseek2.expert_gating_func"]
    assert config_from_gguf(glm).model_type == "glm4_moe_lite"
    glm |= {"deepseek2.block_count": 48, "deepseek2.nextn_predict_layers": 1}
    config = config_from_gguf(glm)
    assert (config.num_hidden_layers, config.num_nextn_predict_layers) == (47, 1)
    per_layer = metadata | {"deepseek2.feed_forward_length": np.array([96, 96, 96], np.int32)}
    assert config_from_gguf(per_layer).intermediate_size == 96


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "llama"}, "'llama' is another class"),
        ({"general.architecture": "clip"}, "vision file"),
        ({"general.architecture": 3}, "3 is another class"),
        ({"deepseek2.attention.temperature_scale": 0.1}, "unknown key deepseek2.attention.temp"),
        ({"deepseek2.expert_gating_func": 3}, "neither 1"),
        ({"deepseek2.rope.scaling.type": "linear"}, "'linear' is not supported"),
        ({"deepseek2.rope.scaling.yarn_ext_factor": 0.5}, "only 1.0 is"),
        ({"deepseek2.block_count": "three"}, "not a whole number"),
        ({"deepseek2.block_count": True}, "not a whole number"),
        ({"deepseek2.block_count": 2**40}, "num_hidden_layers"),
        ({"deepseek2.feed_forward_length": np.array([1, 2])}, "array of 2"),
        ({"deepseek2.attention.layer_norm_rms_epsilon": "small"}, "not a usable number"),
        ({"deepseek2.attention.layer_norm_rms_epsilon": float("nan")}, "not a usable number"),
        ({"deepseek2.expert_weights_norm": 1}, "not true or false"),
        ({"deepseek2.rope.scaling.type": 4}, "not a text"),
        ({"deepseek2.rope.freq_base": 0.0}, "rope_theta"),
        ({"deepseek2.attention.key_length": 50}, "make them"),
        ({"deepseek2.rope.dimension_count": 7}, "make them"),
        ({"deepseek2.embedding_length": None}, "embedding_length is missing"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id"),
        ({"tokenizer.ggml.bos_token_id": "x"}, "not a whole number"),
    ],
)
def test_metadata_that_describe_no_model_of_ours(change: dict[str, Any], message: str) -> None:
    metadata = {"general.architecture": "deepseek2", **config_to_gguf(TEXT), **change}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises((ConfigError, NotSupportedError), match=message):
        config_from_gguf(metadata)


def test_models_that_gguf_cannot_hold() -> None:
    odd = replace(TEXT.rope, mscale=0.5)
    with pytest.raises(NotSupportedError, match="mscale"):
        config_to_gguf(replace(TEXT, rope=odd))
    with pytest.raises(NotSupportedError, match="no router"):
        config_to_gguf(replace(TEXT, topk_method="greedy"))
    with pytest.raises(NotSupportedError, match="no vision tower"):
        vision_to_gguf(TEXT)


def test_the_report_names_everything_at_once(tmp_path: Path) -> None:
    tensors, config = random_tensors(TEXT), TEXT
    slots = slots_of(config, is_vision=False)
    slots = [(s, slot) for s, slot in slots if slot.name != "blk.2.attn_v_b.weight"]
    wide = replace(config, intermediate_size=128)
    spec = next(s for s in tensor_specs(wide) if s.name.endswith("0.mlp.up_proj.weight"))
    at = next(i for i, (_, slot) in enumerate(slots) if slot.name == "blk.0.ffn_up.weight")
    slots[at] = (spec, forms_of(spec, wide)[0][0])
    extra = replace(slots[0][1], name="blk.7.attn_sinks.weight")
    tensors[spec.name] = torch.zeros(spec.shape)
    write_slots(
        tmp_path / "m.gguf", text_metadata(config), [*slots, (slots[0][0], extra)], tensors, config
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m.gguf").validate()
    for part in ("1 missing (blk.2.attn_v_b.weight)", "blk.0.ffn_up.weight is [128, 64], wanted [96, 64]",
                 "1 unknown (blk.7.attn_sinks.weight)"):  # fmt: skip
        assert part in str(caught.value)


def test_a_claim_of_many_layers_is_refused_at_once(tmp_path: Path) -> None:
    write_text(tmp_path / "m.gguf", TEXT, random_tensors(TEXT), deepseek2__block_count=9999)
    with pytest.raises(CheckpointError, match="too few for 9999 layers"):
        open_checkpoint(tmp_path / "m.gguf")


def test_drafting_layers_are_left_out(tmp_path: Path) -> None:
    tensors = random_tensors(TEXT)
    slots = slots_of(TEXT, is_vision=False)
    draft = replace(slots[1][1], name="blk.3.nextn.eh_proj.weight")
    metadata = text_metadata(TEXT)
    metadata |= {"deepseek2.block_count": 4, "deepseek2.nextn_predict_layers": 1}
    write_slots(tmp_path / "m.gguf", metadata, [*slots, (slots[1][0], draft)], tensors, TEXT)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.config == replace(TEXT, num_nextn_predict_layers=1)
    assert_equal(dict(checkpoint.tensors()), tensors)
