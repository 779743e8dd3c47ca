"""Every tensor of a model under its canonical name: the one list that loading, counting and planning share.

Canonical names are those of the published Kimi-K2.5 repository, also for text-only models, except
that the routed experts of a layer are stacked into two tensors: `experts.gate_up_proj`
[experts, 2 * width, hidden], gate rows first, and `experts.down_proj` [experts, hidden, width].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moonlet.config.model import ModelConfig, VisionConfig

Part = Literal[
    "embedding",
    "attention",
    "dense",
    "router",
    "experts",
    "shared_experts",
    "norm",
    "head",
    "vision",
    "projector",
]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor. `float32` marks what is stored in float32 whatever the model's type is."""

    name: str
    shape: tuple[int, ...]
    part: Part
    float32: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def tensor_specs(config: ModelConfig) -> list[TensorSpec]:
    """Every parameter and persistent buffer of the model, in the order of the network."""
    specs = list(_text(config))
    if config.vision is not None:
        specs += _vision(config.vision)
        specs += _projector(config.vision, config.hidden_size)
    return specs


def _text(c: ModelConfig) -> Iterator[TensorSpec]:
    root = "language_model.model."
    yield TensorSpec(root + "embed_tokens.weight", (c.vocab_size, c.hidden_size), "embedding")
    for i in range(c.num_hidden_layers):
        layer = f"{root}layers.{i}."
        yield TensorSpec(layer + "input_layernorm.weight", (c.hidden_size,), "norm")
        yield from _attention(c, layer + "self_attn.")
        yield TensorSpec(layer + "post_attention_layernorm.weight", (c.hidden_size,), "norm")
        if i < c.first_k_dense_replace:
            yield from _mlp(layer + "mlp.", c.hidden_size, c.intermediate_size, "dense")
        else:
            yield from _moe(c, layer + "mlp.")
    yield TensorSpec(root + "norm.weight", (c.hidden_size,), "norm")
    yield TensorSpec("language_model.lm_head.weight", (c.vocab_size, c.hidden_size), "head")


def _attention(c: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    q_out = c.num_attention_heads * c.qk_head_dim
    shapes: dict[str, tuple[int, ...]] = {"q_proj": (q_out, c.hidden_size)}
    if c.q_lora_rank is not None:
        shapes = {
            "q_a_proj": (c.q_lora_rank, c.hidden_size),
            "q_a_layernorm": (c.q_lora_rank,),
            "q_b_proj": (q_out, c.q_lora_rank),
        }
    shapes |= {
        "kv_a_proj_with_mqa": (c.latent_size, c.hidden_size),
        "kv_a_layernorm": (c.kv_lora_rank,),
        "kv_b_proj": (c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
        "o_proj": (c.hidden_size, c.num_attention_heads * c.v_head_dim),
    }
    for name, shape in shapes.items():
        yield TensorSpec(
            f"{prefix}{name}.weight", shape, "norm" if len(shape) == 1 else "attention"
        )


def _mlp(prefix: str, hidden: int, width: int, part: Part) -> Iterator[TensorSpec]:
    yield TensorSpec(prefix + "gate_proj.weight", (width, hidden), part)
    yield TensorSpec(prefix + "up_proj.weight", (width, hidden), part)
    yield TensorSpec(prefix + "down_proj.weight", (hidden, width), part)


def _moe(c: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    experts, width = c.n_routed_experts, c.moe_intermediate_size
    yield TensorSpec(prefix + "gate.weight", (experts, c.hidden_size), "router")
    if c.has_correction_bias:
        yield TensorSpec(
            prefix + "gate.e_score_correction_bias", (experts,), "router", float32=True
        )
    yield TensorSpec(
        prefix + "experts.gate_up_proj", (experts, 2 * width, c.hidden_size), "experts"
    )
    yield TensorSpec(prefix + "experts.down_proj", (experts, c.hidden_size, width), "experts")
    if c.n_shared_experts:
        yield from _mlp(
            prefix + "shared_experts.", c.hidden_size, c.n_shared_experts * width, "shared_experts"
        )


def _vision(v: VisionConfig) -> Iterator[TensorSpec]:
    d, root = v.vt_hidden_size, "vision_tower."

    def linear(name: str, out: int, inn: int) -> Iterator[TensorSpec]:
        yield TensorSpec(name + ".weight", (out, inn), "vision")
        yield TensorSpec(name + ".bias", (out,), "vision")

    def norm(name: str) -> Iterator[TensorSpec]:
        yield TensorSpec(name + ".weight", (d,), "vision")
        yield TensorSpec(name + ".bias", (d,), "vision")

    yield TensorSpec(root + "patch_embed.proj.weight", (d, 3, v.patch_size, v.patch_size), "vision")
    yield TensorSpec(root + "patch_embed.proj.bias", (d,), "vision")
    table = (v.init_pos_emb_height, v.init_pos_emb_width, d)
    yield TensorSpec(root + "patch_embed.pos_emb.weight", table, "vision")
    for i in range(v.vt_num_hidden_layers):
        block = f"{root}encoder.blocks.{i}."
        yield from norm(block + "norm0")
        yield from norm(block + "norm1")
        yield from linear(block + "wqkv", 3 * d, d)
        yield from linear(block + "wo", d, d)
        yield from linear(block + "mlp.fc0", v.vt_intermediate_size, d)
        yield from linear(block + "mlp.fc1", d, v.vt_intermediate_size)
    yield from norm(root + "encoder.final_layernorm")


def _projector(v: VisionConfig, hidden: int) -> Iterator[TensorSpec]:
    shapes: dict[str, tuple[int, ...]] = {
        "pre_norm.weight": (v.vt_hidden_size,),
        "pre_norm.bias": (v.vt_hidden_size,),
        "proj.0.weight": (v.merged_size, v.merged_size),
        "proj.0.bias": (v.merged_size,),
        "proj.2.weight": (hidden, v.merged_size),
        "proj.2.bias": (hidden,),
    }
    for name, shape in shapes.items():
        yield TensorSpec("mm_projector." + name, shape, "projector")
