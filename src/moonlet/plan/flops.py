"""How many operations a step does, by part: multiplications and additions, so two for every weight a token meets.

Attention has its projections under "attention" and what grows with the context under "scores". Per head, layer
and pair of positions the scores take 2 x (nope + rope + v) operations in the plain form of latent attention and
2 x (2 x kv_lora_rank + rope) in the absorbed one, which reads the cached latents as they are (DeepSeek-V2,
arXiv 2405.04434, section 2.1.2). Norms, rotations and softmax are left out: below 1 %.
"""

from math import ceil

from moonlet.config import ModelConfig
from moonlet.config.sizes import model_sizes
from moonlet.errors import ConfigError

_PARTS = ("attention", "dense", "router", "experts", "shared_experts", "head")


def prefill_flops(
    config: ModelConfig, tokens: int, past: int = 0, chunk: int | None = None, logits: int = 1
) -> dict[str, float]:
    """A prompt of `tokens` after `past` cached ones, causal, in the plain form.

    chunk: tokens at a time; each chunk expands the latents of all that came before it anew, which without one
    happens once. logits: at how many positions the head is needed.
    """
    pairs = tokens * past + tokens * (tokens + 1) / 2
    c = config
    work = _linear(c, tokens, logits)
    work["scores"] = scores(c, pairs, absorbed=False)
    chunks = ceil(tokens / chunk) if chunk else min(tokens, 1)
    expanded_again = past * chunks + (chunk or 0) * chunks * (chunks - 1) / 2
    kv_b = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank
    work["attention"] += 2.0 * expanded_again * kv_b * c.num_hidden_layers
    return work


def decode_flops(config: ModelConfig, context: float, streams: int = 1) -> dict[str, float]:
    """One token of each of `streams` sequences that see `context` positions, in the absorbed form.

    Folding queries and outputs through kv_b costs what expanding one latent does.
    """
    work = _linear(config, streams, streams)
    work["scores"] = scores(config, streams * context, absorbed=True)
    return work


def vision_flops(config: ModelConfig, patches: int) -> float:
    """The tower over one item (an image, a chunk of video) of so many patches, and the projector.

    0 for a model without one. A chunk's frames are averaged, which makes the projector's share smaller than
    counted here.
    """
    v = config.vision
    if v is None:
        return 0.0
    d, per_cell = v.vt_hidden_size, v.merge_kernel_size[0] * v.merge_kernel_size[1]
    block = 4 * d * d + 2 * d * v.vt_intermediate_size + 2 * patches * d
    tower = patches * (3 * v.patch_size**2 * d + v.vt_num_hidden_layers * block)
    return 2.0 * (tower + patches / per_cell * v.merged_size * (v.merged_size + config.hidden_size))


def _linear(config: ModelConfig, tokens: int, logits: int) -> dict[str, float]:
    if tokens < 0 or logits < 0:
        raise ConfigError(f"{min(tokens, logits)} tokens cannot be computed: give 0 or more")
    sizes = model_sizes(config)
    work = {
        part: 2.0 * tokens * size.parameters for part, size in sizes.parts.items() if part in _PARTS
    }
    if "experts" in work:
        work["experts"] *= config.num_experts_per_tok / config.n_routed_experts
    work["head"] = 2.0 * logits * sizes.parameters("head")
    return {str(part): number for part, number in work.items()}


def scores(config: ModelConfig, pairs: float, *, absorbed: bool) -> float:
    """Of all layers for so many pairs of a query and a position that it sees."""
    c = config
    plain = c.qk_head_dim + c.v_head_dim
    each = 2 * c.kv_lora_rank + c.qk_rope_head_dim if absorbed else plain
    return 2.0 * pairs * each * c.num_attention_heads * c.num_hidden_layers
