"""A quantized model on the kernels, against the float model of the same decoded weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moonlet import kernels
from moonlet.checkpoint import save_checkpoint
from moonlet.config import ModelConfig, preset
from moonlet.errors import CheckpointError, EngineError, NotSupportedError
from moonlet.model import LatentCache, Model, is_quantized, load_model, load_packed
from moonlet.model.packed import PackedDecoder
from moonlet.quant import bf16, int4
from tests.checkpoint.tiny import edit_tensors

# Activations are rounded to 8 bits before every product: about 1 % in each layer of so narrow a model.
BAR = 4e-2
TEXT = replace(
    preset("tiny"), model_type="deepseek_v3", vision=None, media_placeholder_token_id=None,
    q_lora_rank=None, n_group=4, topk_group=2, initializer_range=0.1,
)  # fmt: skip
K25 = replace(preset("tiny"), initializer_range=0.1)


@pytest.fixture(scope="module", params=[K25, TEXT], ids=["q_lora", "groups"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config: ModelConfig = request.param
    folder = tmp_path_factory.mktemp("int4") / "model"
    save_checkpoint(folder, config, Model(config).state_dict(), quantize="int4")
    return folder


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the token in the middle: where a rounded score asks another expert, the answer is another."""
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())


def token_ids(config: ModelConfig, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, generator=generator)


@torch.inference_mode()
def test_logits_are_those_of_the_float_model(folder: Path) -> None:
    assert is_quantized(folder)
    float_model, model = load_model(folder, torch.float32), load_packed(folder)
    ids = token_ids(model.config, 3, 23)
    wanted = float_model(ids)
    assert 1e-4 < error(model(ids), wanted) < BAR
    kept = load_packed(folder, floats="stored")
    assert error(kept(ids), wanted) < error(model(ids), wanted)


@torch.inference_mode()
def test_pieces_equal_the_whole_bit_by_bit(folder: Path) -> None:
    model = load_packed(folder)
    ids = token_ids(model.config, 2, 21)
    whole = model(ids)
    cache = LatentCache(model.config, 2, 21, torch.bfloat16)
    pieces = [model(ids[:, start:end], cache=cache) for start, end in ((0, 9), (9, 10), (10, 21))]
    assert torch.equal(torch.cat(pieces, 1), whole)


@torch.inference_mode()
def test_all_layers_in_one_call_are_the_layers_one_by_one(folder: Path) -> None:
    model = load_packed(folder)
    decoder = model.language_model.model
    assert isinstance(decoder, PackedDecoder)
    assert decoder.together is not None
    ids = token_ids(model.config, 2, 9)
    wanted = model(ids)
    decoder.together = None
    assert torch.equal(model(ids), wanted)


@torch.inference_mode()
def test_layers_want_a_cache_each_and_one_size(folder: Path) -> None:
    decoder = load_packed(folder).language_model.model
    parts = [layer.native() for layer in decoder.layers]
    layers = kernels.Layers(parts)
    hidden, rope = decoder.config.hidden_size, decoder.config.qk_rope_head_dim
    x, angles = np.zeros((1, hidden), np.float32), np.zeros((1, rope // 2), np.float32)
    pages = np.zeros((len(parts) + 1, 1, 4, decoder.config.latent_size), np.uint16)
    zero = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match=f"pages for {len(parts) + 1} layers"):
        layers(x, angles, angles, pages, zero[:, None], zero, zero)
    with pytest.raises(ValueError, match="position 4 of a table"):
        layers(x, angles, angles, pages[1:], zero[:, None], zero, zero + 4)
    with pytest.raises(ValueError, match="no layers"):
        kernels.Layers([])
    narrow = kernels.Dense(np.ones(96, np.float32), 1e-6, small_ffn(96))
    with pytest.raises(ValueError, match="different sizes"):
        kernels.Layers([(parts[0][0], narrow)])


def small_ffn(columns: int) -> kernels.Ffn:
    """Of zeros."""
    matrix = kernels.Matrix("Q8_0", columns, columns)
    return kernels.Ffn(matrix, matrix, matrix)


@torch.inference_mode()
def test_a_sequence_does_not_depend_on_its_neighbours(folder: Path) -> None:
    """One sequence alone, and beside others of other lengths, at positions of its own."""
    model = load_packed(folder)
    ids = token_ids(model.config, 3, 12)
    alone = model(ids[1:2])
    cache = LatentCache(model.config, 3, 16, torch.bfloat16)
    model(ids[:, :8], cache=cache)
    positions = torch.tensor([[3], [8], [6]])
    step = model(ids[:, 8:9], positions=positions, cache=cache)
    assert torch.equal(step[1], alone[0, 8:9])


@torch.inference_mode()
def test_the_number_of_threads_changes_nothing(folder: Path) -> None:
    model = load_packed(folder)
    ids = token_ids(model.config, 2, 7)
    wanted = model(ids)
    before = kernels.num_threads()
    try:
        kernels.set_num_threads(3)
        assert torch.equal(model(ids), wanted)
    finally:
        kernels.set_num_threads(before)


@torch.inference_mode()
def test_what_it_refuses(folder: Path) -> None:
    model = load_packed(folder)
    ids = token_ids(model.config, 1, 4)
    with pytest.raises(NotSupportedError, match="absorbed"):
        model(ids, absorbed=False)
    with pytest.raises(NotSupportedError, match="one document"):
        model(ids, segments=torch.zeros_like(ids))
    with pytest.raises(EngineError, match="bfloat16"):
        model(ids, cache=LatentCache(model.config, 1, 4))


@torch.inference_mode()
def test_the_head_takes_the_last_token_of_each_sequence(folder: Path) -> None:
    """A view with gaps between its rows."""
    model = load_packed(folder)
    hidden = model.hidden(token_ids(model.config, 3, 5))
    assert torch.equal(model.logits(hidden[:, -1:]), model.logits(hidden)[:, -1:])


def as_int4(tensors: dict[str, Any], name: str) -> None:
    """Stores one float32 matrix of a file as INT4."""
    _, shape, content = tensors.pop(name + ".weight")
    words, scale = int4.encode(np.frombuffer(content, np.float32).reshape(shape))
    for role, dtype, array in (
        ("shape", "I64", np.array(shape, np.int64)),
        ("packed", "I32", words),
        ("scale", "BF16", bf16.from_float32(scale)),
    ):
        tensors[f"{name}.weight_{role}"] = dtype, list(array.shape), array.tobytes()


@torch.inference_mode()
def test_any_matrix_may_be_int4(tmp_path: Path) -> None:
    """The embedding, too, of which a row alone cannot be decoded."""
    save_checkpoint(tmp_path / "m", TEXT, Model(TEXT).state_dict(), quantize="int4")

    def change(tensors: dict[str, Any]) -> None:
        for name in ("model.embed_tokens", "lm_head", "model.layers.1.self_attn.kv_b_proj"):
            as_int4(tensors, name)

    edit_tensors(tmp_path / "m" / "model.safetensors", change)
    wanted, model = load_model(tmp_path / "m", torch.float32), load_packed(tmp_path / "m")
    ids = token_ids(TEXT, 2, 9)
    assert error(model(ids), wanted(ids)) < BAR


def test_experts_of_several_types_are_refused(tmp_path: Path) -> None:
    config = replace(TEXT, n_routed_experts=4, n_group=1, topk_group=1)
    save_checkpoint(tmp_path / "m", config, Model(config).state_dict())
    edit_tensors(
        tmp_path / "m" / "model.safetensors",
        lambda tensors: as_int4(tensors, "model.layers.1.mlp.experts.2.up_proj"),
    )
    with pytest.raises(CheckpointError, match="INT4 rows cannot be packed into a matrix of Q8_0"):
        load_packed(tmp_path / "m")
