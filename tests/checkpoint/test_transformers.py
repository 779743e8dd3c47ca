"""Checkpoints travel between transformers and moonlet in both directions, value for value."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moonlet.checkpoint import (
    Checkpoint,
    from_state_dict,
    open_checkpoint,
    save_checkpoint,
    to_state_dict,
)
from moonlet.checkpoint.safetensors import SafetensorsFile
from moonlet.config import tensor_specs

transformers = pytest.importorskip("transformers")

TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "pos_emb_height": 6,
    "pos_emb_width": 5,
    "pos_emb_time": 4,
}


def build(kind: str) -> Any:
    """A small model of transformers with random weights, buffers included."""
    torch.manual_seed(0)
    if kind == "deepseek_v2":
        config = transformers.DeepseekV2Config(
            **{**TEXT, "q_lora_rank": None, "topk_method": "greedy"}
        )
        model = transformers.DeepseekV2ForCausalLM(config)
    elif kind == "deepseek_v3":
        model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**TEXT))
    else:
        config = transformers.Kimi_K25Config(
            text_config={"model_type": "deepseek_v3", **TEXT},
            vision_config=VISION,
            projection_hidden_size=48,
            image_token_id=7,
            tie_word_embeddings=False,
        )
        model = transformers.Kimi_K25ForConditionalGeneration(config)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn_like(tensor))
    return model


@pytest.fixture(scope="module", params=["kimi_k25", "deepseek_v3", "deepseek_v2"])
def theirs(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture(scope="module")
def saved(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_what_transformers_saved_is_read_exactly(theirs: Any, saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    checkpoint.validate()
    ours = dict(checkpoint.tensors())
    assert list(ours) == [spec.name for spec in tensor_specs(checkpoint.config)]
    in_memory = theirs.state_dict()
    again = to_state_dict(ours, checkpoint.config)
    assert again.keys() == in_memory.keys()
    assert all(torch.equal(again[name], in_memory[name]) for name in in_memory)
    direct = from_state_dict(in_memory, checkpoint.config)
    assert all(torch.equal(direct[name], ours[name]) for name in ours)


def test_a_state_dict_stored_as_it_is_is_read_exactly(
    theirs: Any, saved: Path, tmp_path: Path
) -> None:
    """Dialect B on disk: stacked experts, and a vision tower with q, k and v apart."""
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    ours = dict(open_checkpoint(saved).tensors())
    raw = dict(open_checkpoint(tmp_path).tensors())
    assert raw.keys() == ours.keys()
    assert all(torch.equal(raw[name], ours[name]) for name in ours)


@pytest.mark.parametrize("naming", ["kimi", "transformers"])
def test_transformers_loads_what_we_save(
    theirs: Any, saved: Path, tmp_path: Path, naming: Any
) -> None:
    checkpoint = open_checkpoint(saved)
    save_checkpoint(
        tmp_path / "ours",
        checkpoint.config,
        dict(checkpoint.tensors()),
        naming=naming,
        max_shard_bytes=40_000,
    )
    loaded, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = theirs.state_dict()
    state = loaded.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_our_transformers_naming_is_theirs(theirs: Any, saved: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved)
    assert isinstance(checkpoint, Checkpoint)
    folder = tmp_path / "ours"
    save_checkpoint(folder, checkpoint.config, dict(checkpoint.tensors()), naming="transformers")
    names = set(SafetensorsFile(folder / "model.safetensors").entries)
    assert names == {name for file in checkpoint.files for name in file.entries}
