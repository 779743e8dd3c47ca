"""Small GGUF models: canonical tensors written as files, in one type where its blocks fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moonlet.checkpoint.gguf_config import config_to_gguf
from moonlet.checkpoint.gguf_rows import to_gguf
from moonlet.checkpoint.gguf_vision import vision_to_gguf
from moonlet.checkpoint.gguf_write import GgufWriter, TensorInfo
from moonlet.config import ModelConfig, TensorSpec, tensor_specs
from moonlet.config.gguf_tensors import GgufSlot, forms_of
from moonlet.quant import encode
from moonlet.quant.types import TYPES

Slots = list[tuple[TensorSpec, GgufSlot]]


def text_metadata(config: ModelConfig) -> dict[str, Any]:
    """What llama.cpp needs to open a file: the network, and some tokens."""
    tokens = [f"t{index}" for index in range(config.vocab_size)]
    if config.media_placeholder_token_id is not None:
        tokens[config.media_placeholder_token_id] = "<|media_pad|>"
    return {
        "general.architecture": "deepseek2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.ones(config.vocab_size, np.int32),
        "tokenizer.ggml.merges": ["t 1"],
        **config_to_gguf(config),
    }


def slots_of(config: ModelConfig, *, is_vision: bool, form: int = 0) -> Slots:
    return [
        (spec, slot)
        for spec in tensor_specs(config)
        if (spec.part in ("vision", "projector")) == is_vision
        for slot in forms_of(spec, config)[min(form, len(forms_of(spec, config)) - 1)]
    ]


def write_slots(
    path: Path,
    metadata: Mapping[str, Any],
    slots: Slots,
    tensors: Mapping[str, torch.Tensor],
    config: ModelConfig,
    type_name: str = "F32",
) -> None:
    def type_of(slot: GgufSlot) -> str:
        fits = slot.shape[-1] % TYPES[type_name].values == 0
        return type_name if fits and not slot.float32 else "F32"

    infos = [TensorInfo(slot.name, slot.shape, type_of(slot)) for _, slot in slots]
    with GgufWriter(path, metadata, infos) as writer:
        for (spec, slot), info in zip(slots, infos, strict=True):
            values = to_gguf(tensors[spec.name], spec, slot, config).float().numpy()
            rows = np.ascontiguousarray(values).reshape(-1, values.shape[-1])
            writer.write(encode(info.type, rows))


def write_text(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    type_name: str = "F32",
    *,
    form: int = 0,
    **more: Any,
) -> None:
    """The text network of `config` as a file; `more` are metadata with two underscores for a dot."""
    metadata = text_metadata(config) | {k.replace("__", "."): v for k, v in more.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    slots = slots_of(config, is_vision=False, form=form)
    write_slots(path, metadata, slots, tensors, config, type_name)


def write_mmproj(path: Path, config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """The tower and the projector of `config` as a vision file."""
    slots = slots_of(config, is_vision=True)
    write_slots(path, vision_to_gguf(config), slots, tensors, config)
