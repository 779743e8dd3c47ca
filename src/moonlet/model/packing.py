"""A quantized checkpoint -> a model whose leaves are packed for the kernels.

Every matrix keeps the type it is stored in. Matrices stored as floats become 8-bit (Q8_0) unless the
caller wants them kept: attention, shared experts and head are most of what a token reads, and 8 bits
halve it. The router stays as stored, since a rounded score changes which experts are asked.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from moonlet import kernels
from moonlet.checkpoint import Checkpoint, GgufCheckpoint, StoredMatrix, open_checkpoint
from moonlet.config import ModelConfig, tensor_specs
from moonlet.model.loading import build_on_meta
from moonlet.model.network import DecoderLayer, Model
from moonlet.model.packed import (
    Floats,
    FloatSwiGLU,
    PackedAttention,
    PackedEmbedding,
    PackedLinear,
    PackedMoE,
    PackedNorm,
    PackedSwiGLU,
)

FLOATS = ("F32", "F16", "BF16")
FloatForm = Literal["Q8_0", "stored"]
Progress = Callable[[int, int], None]


def load_packed(
    path: Path, floats: FloatForm = "Q8_0", progress: Progress = lambda done, total: None
) -> Model:
    """The model in `path`, quantized as stored, in evaluation mode; it runs on the CPU.

    `floats` says what becomes of attention, shared experts, dense layers and head where they are stored
    as floats; routed experts stored as floats always become Q8_0. `progress` is called with layers done
    and layers in all. Raises what `open_checkpoint` and its `validate` raise, before anything is packed.
    """
    checkpoint = open_checkpoint(path)
    checkpoint.validate()
    model = build_on_meta(checkpoint.config)
    packer = _Packer(checkpoint, floats)
    text = model.language_model.model
    total = len(text.layers)
    text.embed_tokens = packer.embedding("language_model.model.embed_tokens.weight")  # type: ignore[assignment]
    for index, layer in enumerate(text.layers):
        assert isinstance(layer, DecoderLayer)
        packer.pack_layer(layer, index)
        progress(index + 1, total)
    text.norm = packer.norm("language_model.model.norm.weight", checkpoint.config.rms_norm_eps)  # type: ignore[assignment]
    head = packer.matrix("language_model.lm_head.weight")
    model.language_model.lm_head = PackedLinear(head)  # type: ignore[assignment]
    _load_vision(model, packer)
    model.cache_dtype = torch.bfloat16
    return model.eval().requires_grad_(False)


def is_quantized(path: Path) -> bool:
    """Whether weights in `path` are stored in less than floats. Raises what `open_checkpoint` raises."""
    return open_checkpoint(path).is_quantized


def _load_vision(model: Model, packer: "_Packer") -> None:
    """The tower and the projector stay float32 modules: they run once per image."""
    for part in ("vision_tower", "mm_projector"):
        module: nn.Module | None = getattr(model, part)
        if module is None:
            continue
        prefix = part + "."
        names = [s.name for s in tensor_specs(packer.config) if s.name.startswith(prefix)]
        state = {
            name.removeprefix(prefix): packer.checkpoint.tensor(name, torch.float32)
            for name in names
        }
        module.load_state_dict(state, strict=True, assign=True)


class _Packer:
    def __init__(self, checkpoint: Checkpoint | GgufCheckpoint, floats: FloatForm) -> None:
        self.checkpoint = checkpoint
        self.config: ModelConfig = checkpoint.config
        self.floats = floats

    def pack_layer(self, layer: DecoderLayer, index: int) -> None:
        prefix = f"language_model.model.layers.{index}."
        eps = self.config.rms_norm_eps
        layer.input_layernorm = self.norm(prefix + "input_layernorm.weight", eps)  # type: ignore[assignment]
        layer.self_attn = self.attention(prefix + "self_attn.", index)  # type: ignore[assignment]
        layer.post_attention_layernorm = self.norm(prefix + "post_attention_layernorm.weight", eps)  # type: ignore[assignment]
        is_dense = index < self.config.first_k_dense_replace
        layer.mlp = self.swiglu(prefix + "mlp.") if is_dense else self.moe(prefix + "mlp.")  # type: ignore[assignment]

    def attention(self, prefix: str, index: int) -> PackedAttention:
        if self.config.q_lora_rank is None:
            queries = (self.matrix(prefix + "q_proj.weight"),)
        else:
            queries = (
                self.matrix(prefix + "q_a_proj.weight"),
                self.vector(prefix + "q_a_layernorm.weight"),
                self.matrix(prefix + "q_b_proj.weight"),
            )
        k_b, v_b = self.key_and_value(prefix + "kv_b_proj.weight")
        return PackedAttention(
            self.config,
            index,
            queries,
            self.matrix(prefix + "kv_a_proj_with_mqa.weight"),
            self.vector(prefix + "kv_a_layernorm.weight"),
            k_b,
            v_b,
            self.matrix(prefix + "o_proj.weight"),
        )

    def key_and_value(self, name: str) -> tuple[kernels.Matrix, kernels.Matrix]:
        """kv_b_proj as H matrices [C, N] for the query and H matrices [O, C] for the output."""
        heads = range(self.config.num_attention_heads)
        try:
            keys = [self.checkpoint.matrix(name, head, "k") for head in heads]
            values = [self.checkpoint.matrix(name, head, "v") for head in heads]
        except KeyError:  # stored whole
            whole = self.checkpoint.tensor(name, torch.float32).unflatten(0, (len(heads), -1))
            sizes = (self.config.qk_nope_head_dim, self.config.v_head_dim)
            k_HNC, v_HOC = whole.split(sizes, dim=1)
            keys, values = [_stored(k.mT) for k in k_HNC], [_stored(v) for v in v_HOC]
        return self.stack(keys), self.stack(values)

    def stack(self, parts: list[StoredMatrix]) -> kernels.Matrix:
        first = parts[0]
        packed = kernels.Matrix(self.kept_as(first.type), first.rows, first.cols, len(parts))
        for i, part in enumerate(parts):
            packed.pack(part.type, part.data, part.scale, i)
        return packed

    def moe(self, prefix: str) -> PackedMoE:
        gate = self.checkpoint.matrix(prefix + "gate.weight")
        router = kernels.Matrix(gate.type, gate.rows, gate.cols)
        router.pack(gate.type, gate.data)
        bias = None
        if self.config.has_correction_bias:
            bias = self.vector(prefix + "gate.e_score_correction_bias")
        shared = self.swiglu(prefix + "shared_experts.") if self.config.n_shared_experts else None
        return PackedMoE(self.config, router, bias, self.experts(prefix + "experts."), shared)

    def experts(self, prefix: str) -> kernels.Experts:
        names = {"gate": ("gate_up_proj", "gate"), "up": ("gate_up_proj", "up"), "down": ("down_proj", None)}  # fmt: skip

        def part(which: str, expert: int) -> StoredMatrix:
            stack, block = names[which]
            return self.checkpoint.matrix(prefix + stack, expert, block)

        types = [self.quantized_as(part(which, 0).type) for which in names]
        c = self.config
        packed = kernels.Experts(c.n_routed_experts, c.hidden_size, c.moe_intermediate_size, *types)
        for expert in range(c.n_routed_experts):
            for which in names:
                stored = part(which, expert)
                packed.pack(expert, which, stored.type, stored.data, stored.scale)
        return packed

    def swiglu(self, prefix: str) -> PackedSwiGLU | FloatSwiGLU:
        gate, up, down = (
            self.matrix(f"{prefix}{name}_proj.weight") for name in ("gate", "up", "down")
        )
        if {gate.type, up.type, down.type} & set(FLOATS):
            return FloatSwiGLU(gate, up, down)
        return PackedSwiGLU(kernels.Ffn(gate, up, down))

    def matrix(self, name: str) -> kernels.Matrix:
        stored = self.checkpoint.matrix(name)
        packed = kernels.Matrix(self.kept_as(stored.type), stored.rows, stored.cols)
        packed.pack(stored.type, stored.data, stored.scale)
        return packed

    def kept_as(self, stored: str) -> str:
        return stored if stored in FLOATS and self.floats == "stored" else self.quantized_as(stored)

    def quantized_as(self, stored: str) -> str:
        return "Q8_0" if stored in FLOATS else kernels.panel_type(stored)

    def embedding(self, name: str) -> PackedEmbedding:
        stored = self.checkpoint.matrix(name)
        return PackedEmbedding(stored.type, stored.data)

    def norm(self, name: str, eps: float) -> PackedNorm:
        return PackedNorm(self.checkpoint.tensor(name, torch.float32), eps)

    def vector(self, name: str) -> Floats:
        return self.checkpoint.tensor(name, torch.float32).numpy()


def _stored(values: torch.Tensor) -> StoredMatrix:
    rows, cols = values.shape
    return StoredMatrix("F32", rows, cols, values.contiguous().numpy().view(np.uint8))
