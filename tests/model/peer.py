"""The reference implementation of each class, from transformers, with weights that matter everywhere."""

from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from moonlet.config import ModelConfig, RopeConfig, preset, to_hf

TINY = replace(preset("tiny"), max_position_embeddings=64 * 4096)  # what its YaRN factor implies
YARN_K2 = RopeConfig(50_000.0, "yarn", 32.0, 4096, 1.0, 1.0, 1.0, 1.0)

VARIANTS: dict[str, ModelConfig] = {
    "kimi_k25": TINY,
    "kimi_k25 without q_lora": replace(TINY, q_lora_rank=None, rope=RopeConfig(50_000.0)),
    "deepseek_v3 grouped": replace(
        TINY, model_type="deepseek_v3", vision=None, n_group=4, topk_group=2, num_experts_per_tok=3
    ),
    "deepseek_v3 plain rope, no q_lora, two shared": replace(
        TINY, model_type="deepseek_v3", vision=None, q_lora_rank=None, n_shared_experts=2,
        rope=RopeConfig(10_000.0), max_position_embeddings=8192,
    ),
    "deepseek_v3 with K2's hard YaRN step": replace(
        TINY, model_type="deepseek_v3", vision=None, rope=YARN_K2, max_position_embeddings=32 * 4096
    ),
    "deepseek_v2 lite": replace(
        TINY, model_type="deepseek_v2", vision=None, q_lora_rank=None, scoring_func="softmax",
        topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
        rope=RopeConfig(10_000.0, "yarn", 40.0, 4096, 32.0, 1.0, 0.707, 0.707),
        max_position_embeddings=40 * 4096,
    ),
    "deepseek_v2 grouped": replace(
        TINY, model_type="deepseek_v2", vision=None, scoring_func="softmax",
        topk_method="group_limited_greedy", norm_topk_prob=False, n_group=4, topk_group=2,
    ),
    "glm4_moe_lite": replace(
        TINY, model_type="glm4_moe_lite", vision=None, qk_nope_head_dim=24, v_head_dim=48,
        rope=RopeConfig(1_000_000.0),
    ),
}  # fmt: skip


def reference(config: ModelConfig, seed: int = 0) -> Any:
    """A float32 transformers model of that shape; norms, biases and router bias are random too."""
    raw = to_hf(config)
    for key in ("architectures", "dtype"):
        raw.pop(key)
    hf_config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    kind = (
        transformers.AutoModelForImageTextToText
        if config.vision
        else transformers.AutoModelForCausalLM
    )
    model = kind.from_config(hf_config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    buffers = [(n, b) for n, b in model.named_buffers() if "correction_bias" in n]
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *buffers):
            noise = torch.randn(tensor.shape, generator=generator)
            if "correction_bias" in name:
                tensor.copy_(0.1 * noise.abs())
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            else:
                tensor.copy_((0.05 if tensor.dim() > 1 else 0.1) * noise)
    return model


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())
