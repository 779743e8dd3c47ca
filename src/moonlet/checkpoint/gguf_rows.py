"""Values between a canonical tensor and the tensors of a GGUF file (`moonlet.config.gguf_tensors`)."""

from collections.abc import Mapping

import torch

from moonlet.config import ModelConfig, TensorSpec
from moonlet.config.gguf_tensors import GgufSlot


def to_gguf(
    tensor: torch.Tensor, spec: TensorSpec, slot: GgufSlot, config: ModelConfig
) -> torch.Tensor:
    """What `slot` holds of the canonical `tensor`, in the shape of the slot."""
    if slot.block in ("gate", "up"):
        half = slot.shape[1]
        return tensor[:, :half] if slot.block == "gate" else tensor[:, half:]
    if slot.block is not None and spec.part == "attention":
        heads = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
        nope = config.qk_nope_head_dim
        return heads[:, :nope].transpose(1, 2) if slot.block == "k" else heads[:, nope:]
    if slot.block is not None:
        return tensor.chunk(3)["qkv".index(slot.block)]
    if _has_sorted_pairs(spec, config):
        q, k, v = tensor.chunk(3)
        return torch.cat([_columns_first(q, config), _columns_first(k, config), v])
    return tensor.reshape(slot.shape)


def from_gguf(
    parts: Mapping[str | None, torch.Tensor], spec: TensorSpec, config: ModelConfig
) -> torch.Tensor:
    """The canonical tensor out of the tensors of one form, by block: the inverse of `to_gguf`."""
    if None not in parts:
        blocks = list(parts.values())
        if "gate" in parts:
            return torch.cat(blocks, dim=1)
        if spec.part == "attention":
            heads = torch.cat([parts["k"].transpose(1, 2), parts["v"]], dim=1)
            return heads.reshape(spec.shape)
        return torch.cat(blocks)
    whole = parts[None]
    if _has_sorted_pairs(spec, config):
        q, k, v = whole.chunk(3)
        return torch.cat([_columns_in_turn(q, config), _columns_in_turn(k, config), v])
    return whole.reshape(spec.shape)


def _has_sorted_pairs(spec: TensorSpec, config: ModelConfig) -> bool:
    return ".wqkv." in spec.name and config.model_type == "kimi_k25"


def _columns_first(rows: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Rows of a vision q or k projection: in a head, number 4j + 2a + b moves to a * D/2 + 2j + b."""
    assert config.vision is not None
    heads = config.vision.vt_num_attention_heads
    return rows.reshape(heads, -1, 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _columns_in_turn(rows: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The inverse of `_columns_first`."""
    assert config.vision is not None
    heads = config.vision.vt_num_attention_heads
    return rows.reshape(heads, 2, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
