"""A quantized checkpoint -> a model whose leaves are packed for the kernels.

Every matrix keeps the type it is stored in. Matrices stored as floats become 8-bit (Q8_0) unless the
caller wants them kept: attention, shared experts and head are most of what a token reads, and 8 bits
halve it. The router stays as stored, since a rounded score changes which experts are asked.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from moonlet import kernels
from moonlet.checkpoint import open_checkpoint
from moonlet.checkpoint.transcode import from_values, values_of
from moonlet.config import tensor_specs
from moonlet.errors import CheckpointError, MoonletError
from moonlet.model.loading import build_on_meta
from moonlet.model.network import Model
from moonlet.model.packed import (
    Floats,
    FloatSwiGLU,
    PackedAttention,
    PackedDecoder,
    PackedEmbedding,
    PackedLayer,
    PackedLinear,
    PackedMoE,
    PackedNorm,
    PackedSwiGLU,
)
from moonlet.model.sources import FLOATS, AnyCheckpoint, FloatForm, as_stored, panel_source

Progress = Callable[[int, int], None]


def load_packed(
    path: Path, floats: FloatForm = "Q8_0", progress: Progress = lambda done, total: None
) -> Model:
    """The model in `path`, quantized as stored, in evaluation mode; it runs on the CPU.

    `floats` says what becomes of attention, shared experts, dense layers and head where they are stored
    as floats; routed experts stored as floats always become Q8_0, and a packed folder has decided already.
    `progress` is called with layers done and layers in all. Raises what `open_checkpoint` and its
    `validate` raise, before anything is packed, and CheckpointError for what the kernels refuse.
    """
    checkpoint = open_checkpoint(path)
    checkpoint.validate()
    try:
        # A wrong MOONLET_ISA or MOONLET_THREADS is told now, not in the middle of the first answer.
        kernels.isa()
        kernels.num_threads()
        return _pack(checkpoint, floats, progress)
    except MoonletError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path} cannot run on the kernels: {error}") from error


def _pack(checkpoint: AnyCheckpoint, floats: FloatForm, progress: Progress) -> Model:
    model = build_on_meta(checkpoint.config)
    packer = _Packer(checkpoint, floats)
    embedding = checkpoint.matrix("language_model.model.embed_tokens.weight")
    if embedding.scale is not None:  # INT4, of which a row alone cannot be decoded
        embedding = from_values(values_of(embedding), "F32")
    layers = []
    total = checkpoint.config.num_hidden_layers
    for index in range(total):
        layers.append(packer.layer(index))
        progress(index + 1, total)
    model.language_model.model = PackedDecoder(  # type: ignore[assignment]
        checkpoint.config,
        PackedEmbedding(embedding.type, embedding.data),
        layers,
        packer.norm("language_model.model.norm.weight"),
    )
    head = packer.source.matrix("language_model.lm_head.weight")
    model.language_model.lm_head = PackedLinear(head)  # type: ignore[assignment]
    _load_vision(model, checkpoint)
    model.cache_dtype = torch.bfloat16
    return model.eval().requires_grad_(False)


def is_quantized(path: Path) -> bool:
    """Whether weights in `path` are stored in less than floats. Raises what `open_checkpoint` raises."""
    return open_checkpoint(path).is_quantized


def _load_vision(model: Model, checkpoint: AnyCheckpoint) -> None:
    """The tower and the projector stay float32 modules: they run once per image."""
    for part in ("vision_tower", "mm_projector"):
        module: nn.Module | None = getattr(model, part)
        if module is None:
            continue
        prefix = part + "."
        names = [s.name for s in tensor_specs(checkpoint.config) if s.name.startswith(prefix)]
        state = {
            name.removeprefix(prefix): checkpoint.tensor(name, torch.float32) for name in names
        }
        module.load_state_dict(state, strict=True, assign=True)


class _Packer:
    def __init__(self, checkpoint: AnyCheckpoint, floats: FloatForm) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.source = panel_source(checkpoint, floats)

    def layer(self, index: int) -> PackedLayer:
        prefix = f"language_model.model.layers.{index}."
        norm = self.norm(prefix + "post_attention_layernorm.weight")
        is_dense = index < self.config.first_k_dense_replace
        mlp = self.swiglu(prefix + "mlp.", norm) if is_dense else self.moe(prefix + "mlp.", norm)
        return PackedLayer(self.attention(prefix, index), mlp)

    def attention(self, prefix: str, index: int) -> PackedAttention:
        norm = self.norm(prefix + "input_layernorm.weight")
        prefix += "self_attn."
        matrix = self.source.matrix
        if self.config.q_lora_rank is None:
            queries = (matrix(prefix + "q_proj.weight"),)
        else:
            queries = (
                matrix(prefix + "q_a_proj.weight"),
                self.vector(prefix + "q_a_layernorm.weight"),
                matrix(prefix + "q_b_proj.weight"),
            )
        k_b, v_b = self.source.heads(prefix + "kv_b_proj.weight")
        return PackedAttention(
            self.config,
            index,
            norm,
            queries,
            matrix(prefix + "kv_a_proj_with_mqa.weight"),
            self.vector(prefix + "kv_a_layernorm.weight"),
            k_b,
            v_b,
            matrix(prefix + "o_proj.weight"),
        )

    def moe(self, prefix: str, norm: PackedNorm) -> PackedMoE:
        router = as_stored(self.checkpoint.matrix(prefix + "gate.weight"))
        bias = None
        if self.config.has_correction_bias:
            bias = self.vector(prefix + "gate.e_score_correction_bias")
        shared = None
        if self.config.n_shared_experts:
            shared = self.swiglu(prefix + "shared_experts.", norm)
        experts = self.source.experts(prefix + "experts")
        return PackedMoE(self.config, norm, router, bias, experts, shared)

    def swiglu(self, prefix: str, norm: PackedNorm) -> PackedSwiGLU | FloatSwiGLU:
        gate, up, down = (
            self.source.matrix(f"{prefix}{name}_proj.weight") for name in ("gate", "up", "down")
        )
        if {gate.type, up.type, down.type} & set(FLOATS):
            return FloatSwiGLU(norm, gate, up, down)
        return PackedSwiGLU(norm, kernels.Ffn(gate, up, down))

    def norm(self, name: str) -> PackedNorm:
        return PackedNorm(self.vector(name), self.config.rms_norm_eps)

    def vector(self, name: str) -> Floats:
        return self.checkpoint.tensor(name, torch.float32).numpy()
