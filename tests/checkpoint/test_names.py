"""Every dialect in which the family is published leads to the same canonical names."""

from dataclasses import replace

import pytest

from moonlet.checkpoint.names import Slot, file_name, slot_of
from moonlet.config import preset, tensor_specs
from moonlet.errors import NotSupportedError

K25 = preset("kimi-k2.5")
MOONLIGHT = preset("moonlight-16b-a3b")
LAYER = "language_model.model.layers.7."
BLOCK = "vision_tower.encoder.blocks.3."


@pytest.mark.parametrize(
    ("stored", "slot"),
    [
        # A, the published names
        ("language_model.model.embed_tokens.weight", Slot("language_model.model.embed_tokens.weight")),
        ("language_model.lm_head.weight", Slot("language_model.lm_head.weight")),
        (LAYER + "mlp.gate.e_score_correction_bias", Slot(LAYER + "mlp.gate.e_score_correction_bias")),
        (
            LAYER + "mlp.experts.12.up_proj.weight_packed",
            Slot(LAYER + "mlp.experts.gate_up_proj", 12, "up", "weight_packed"),
        ),
        (
            LAYER + "mlp.experts.12.gate_proj.weight_scale",
            Slot(LAYER + "mlp.experts.gate_up_proj", 12, "gate", "weight_scale"),
        ),
        (
            LAYER + "mlp.experts.0.down_proj.weight_shape",
            Slot(LAYER + "mlp.experts.down_proj", 0, "down", "weight_shape"),
        ),
        (BLOCK + "norm1.bias", Slot(BLOCK + "norm1.bias")),
        (BLOCK + "mlp.fc1.weight", Slot(BLOCK + "mlp.fc1.weight")),
        # B, transformers in memory
        ("lm_head.weight", Slot("language_model.lm_head.weight")),
        ("model.language_model.norm.weight", Slot("language_model.model.norm.weight")),
        ("model.language_model.layers.7.mlp.experts.gate_up_proj", Slot(LAYER + "mlp.experts.gate_up_proj")),
        ("model.vision_tower.layers.3.norm1.weight", Slot(BLOCK + "norm0.weight")),
        ("model.vision_tower.layers.3.norm2.weight", Slot(BLOCK + "norm1.weight")),
        ("model.vision_tower.layers.3.mlp.fc1.bias", Slot(BLOCK + "mlp.fc0.bias")),
        ("model.vision_tower.layers.3.mlp.fc2.bias", Slot(BLOCK + "mlp.fc1.bias")),
        ("model.vision_tower.layers.3.attn.proj.bias", Slot(BLOCK + "wo.bias")),
        ("model.vision_tower.layers.3.attn.k_proj.weight", Slot(BLOCK + "wqkv.weight", None, "k")),
        ("model.vision_tower.final_layernorm.bias", Slot("vision_tower.encoder.final_layernorm.bias")),
        (
            "model.vision_tower.patch_embed.pos_emb.position_embeddings",
            Slot("vision_tower.patch_embed.pos_emb.weight"),
        ),
        ("model.mm_projector.in_proj.weight", Slot("mm_projector.proj.0.weight")),
        ("model.mm_projector.out_proj.bias", Slot("mm_projector.proj.2.bias")),
        # C, transformers on disk
        (
            "language_model.model.blocks.7.mlp.experts.3.up_proj.weight",
            Slot(LAYER + "mlp.experts.gate_up_proj", 3, "up"),
        ),
        ("vision_tower.encoder.patch_embed.proj.bias", Slot("vision_tower.patch_embed.proj.bias")),
        ("model.mm_projector.pre_norm.weight", Slot("mm_projector.pre_norm.weight")),
        # D, early exports
        ("language_model.layers.7.input_layernorm.weight", Slot(LAYER + "input_layernorm.weight")),
        ("language_model.embed_tokens.weight", Slot("language_model.model.embed_tokens.weight")),
        ("mm_projector.linear_1.weight", Slot("mm_projector.proj.0.weight")),
        # E, Kimi-VL
        ("multi_modal_projector.linear_2.weight", Slot("mm_projector.proj.2.weight")),
        ("multi_modal_projector.pre_norm.bias", Slot("mm_projector.pre_norm.bias")),
        # F, text only
        ("model.layers.7.self_attn.o_proj.weight_scale_inv", Slot(LAYER + "self_attn.o_proj.weight", role="weight_scale_inv")),
        ("model.norm.weight", Slot("language_model.model.norm.weight")),
        # not ours, left as it is
        ("model.layers.7.mlp.experts.9999999999.up_proj.weight", Slot(LAYER + "mlp.experts.9999999999.up_proj.weight")),
        ("optimizer.state", Slot("optimizer.state")),
    ],
)  # fmt: skip
def test_slot(stored: str, slot: Slot) -> None:
    assert slot_of(stored, K25) == slot


def test_what_is_left_out_on_purpose() -> None:
    assert slot_of("model.layers.7.self_attn.rotary_emb.inv_freq", MOONLIGHT) is None
    with_mtp = preset("deepseek-v3")
    assert slot_of("model.layers.61.eh_proj.weight", with_mtp) is None
    assert slot_of("model.layers.61.mlp.experts.3.up_proj.weight", with_mtp) is None
    assert slot_of("model.layers.60.mlp.experts.3.up_proj.weight", with_mtp) is not None
    assert slot_of("model.layers.62.eh_proj.weight", with_mtp) is not None
    assert slot_of("model.layers.61.eh_proj.weight", replace(with_mtp, num_nextn_predict_layers=0))


@pytest.mark.parametrize("name", ["kimi-k2.5", "kimi-vl-a3b", "moonlight-16b-a3b", "deepseek-v3"])
@pytest.mark.parametrize("naming", ["kimi", "transformers"])
def test_every_written_name_is_read_back(name: str, naming: str) -> None:
    config = preset(name)
    if (name, naming) == ("kimi-vl-a3b", "transformers"):
        with pytest.raises(NotSupportedError, match="kimi_vl"):
            file_name(Slot("mm_projector.pre_norm.weight"), config, "transformers")
        return
    for spec in tensor_specs(config):
        slots = [Slot(spec.name), Slot(spec.name, role="weight_scale_inv")]
        if spec.name.endswith("down_proj") and spec.part == "experts":
            slots = [Slot(spec.name, 5, "down"), Slot(spec.name, 5, "down", "weight_packed")]
        elif spec.part == "experts":
            slots = [Slot(spec.name, 5, "up"), Slot(spec.name, 0, "gate", "weight_shape")]
        elif not spec.name.endswith(".weight"):
            slots = slots[:1]
        for slot in slots:
            assert slot_of(file_name(slot, config, naming), config) == slot  # type: ignore[arg-type]


def test_published_names_of_each_kind_of_model() -> None:
    slot = Slot(LAYER + "mlp.experts.gate_up_proj", 3, "gate", "weight_packed")
    tail = "layers.7.mlp.experts.3.gate_proj.weight_packed"
    assert file_name(slot, K25, "kimi") == "language_model.model." + tail
    assert file_name(slot, MOONLIGHT, "kimi") == "model." + tail
    assert file_name(slot, K25, "transformers") == "language_model.model." + tail.replace(
        "layers", "blocks"
    )
    projector = Slot("mm_projector.proj.2.bias")
    assert (
        file_name(projector, preset("kimi-vl-a3b"), "kimi") == "multi_modal_projector.linear_2.bias"
    )
