"""The tensors of a model as GGUF files hold them: names and shapes. Three kinds lie differently there.

* `kv_b` is stored as two stacks over heads, for attention in the latent space: `attn_k_b` [heads,
  kv_lora_rank, qk_nope_head_dim] holds the key half of every head transposed, `attn_v_b` [heads, v_head_dim,
  kv_lora_rank] the value half as it is. Files of before spring 2025 have it whole, as `attn_kv_b`.
* Routed experts are one stack per projection, gate and up apart (or, rarely, gate above up).
* Vision attention: K2.5's files keep `attn_qkv` whole but order the q and k rows of a head so that all pairs
  which turn with the column come before those which turn with the row; Kimi-VL's files keep the published
  order, cut q, k and v apart, and flatten the position table.

Source: the names of llama.cpp (gguf-py/gguf/constants.py), the layouts of its converters.
"""

import re
from dataclasses import dataclass

from moonlet.config.model import ModelConfig
from moonlet.config.tensors import TensorSpec

_TEXT = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
_VISION = {
    "patch_embed.proj": "v.patch_embd",
    "patch_embed.pos_emb": "v.position_embd",
    "encoder.final_layernorm": "v.post_ln",
    "norm0": "ln1",
    "norm1": "ln2",
    "wqkv": "attn_qkv",
    "wo": "attn_out",
    "mlp.fc0": "ffn_up",
    "mlp.fc1": "ffn_down",
    "pre_norm": "mm.input_norm",
    "proj.0": "mm.1",
    "proj.2": "mm.2",
}
_LAYER = re.compile(r"language_model\.model\.layers\.([0-9]+)\.(.*)")
_BLOCK = re.compile(r"vision_tower\.encoder\.blocks\.([0-9]+)\.(.*)\.(weight|bias)")
_PREFIX = re.compile(r"^(language_model\.(model\.)?|vision_tower\.|mm_projector\.)")
_FILE_LAYER = re.compile(r"blk\.([0-9]{1,9})\.")


@dataclass(frozen=True)
class GgufSlot:
    """One tensor of a GGUF file. `shape` has the rows' length last.

    `block` says which part of the canonical tensor it is: gate or up of the experts, k or v of kv_b, q, k
    or v of Kimi-VL's vision attention; None is the whole. `float32` marks what is never quantized.
    """

    name: str
    shape: tuple[int, ...]
    block: str | None = None
    float32: bool = False


Form = tuple[GgufSlot, ...]


def forms_of(spec: TensorSpec, config: ModelConfig) -> list[Form]:
    """The ways in which files store a canonical tensor; the first is the one that is written."""
    name, shape = gguf_name(spec.name), spec.shape
    if spec.name.endswith("kv_b_proj.weight"):
        heads, rank = config.num_attention_heads, config.kv_lora_rank
        key = (heads, rank, config.qk_nope_head_dim)
        value = (heads, config.v_head_dim, rank)
        halves = (
            GgufSlot(name.replace("kv_b", "k_b"), key, "k"),
            GgufSlot(name.replace("kv_b", "v_b"), value, "v"),
        )
        return [halves, (GgufSlot(name, shape),)]
    if spec.name.endswith("experts.gate_up_proj"):
        half = (shape[0], shape[1] // 2, shape[2])
        pair = (name.replace("gate_up", "gate"), name.replace("gate_up", "up"))
        apart = (GgufSlot(pair[0], half, "gate"), GgufSlot(pair[1], half, "up"))
        return [apart, (GgufSlot(name, shape),)]
    if config.model_type == "kimi_vl" and ".wqkv." in spec.name:
        third = (shape[0] // 3, *shape[1:])
        float32 = len(shape) == 1
        return [tuple(GgufSlot(name.replace("qkv", b), third, b, float32) for b in "qkv")]
    if config.model_type == "kimi_vl" and spec.name.endswith("pos_emb.weight"):
        shape = (shape[0] * shape[1], shape[2])
    fixed = len(shape) == 1 or spec.part == "router" or "patch_embed" in spec.name
    return [(GgufSlot(name, shape, float32=fixed),)]


def gguf_name(name: str) -> str:
    """What GGUF calls the canonical tensor `name`, undivided."""
    if layer := _LAYER.fullmatch(name):
        return f"blk.{layer[1]}.{_TEXT[layer[2]]}"
    if block := _BLOCK.fullmatch(name):
        return f"v.blk.{block[1]}.{_VISION[block[2]]}.{block[3]}"
    plain = _PREFIX.sub("", name)
    if plain in _TEXT and name.startswith("language_model."):
        return _TEXT[plain]
    stem, _, kind = plain.rpartition(".")
    return f"{_VISION[stem]}.{kind}"


def is_left_out(name: str, config: ModelConfig) -> bool:
    """Whether a tensor of a file is one that nobody needs: of a layer for multi-token prediction."""
    layer = _FILE_LAYER.match(name)
    first = config.num_hidden_layers
    last = first + config.num_nextn_predict_layers - 1
    return layer is not None and first <= int(layer[1]) <= last
