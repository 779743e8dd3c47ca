"""What a model takes beside its weights: the cache of the context, and room to compute in."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType

from moonlet.config import ModelConfig
from moonlet.errors import ConfigError

# Values and bytes of a block; Q8_0 is what llama.cpp can keep its cache in.
_CACHE: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"bf16": (1, 2), "fp16": (1, 2), "fp32": (1, 4), "fp8": (1, 1), "q8_0": (32, 34)}
)
CACHE_KINDS = tuple(_CACHE)
_BYTES: Mapping[str, int] = MappingProxyType({"bf16": 2, "fp16": 2, "fp32": 4})
_SCORE_BLOCK = 512  # queries and keys whose scores exist at a time; kernels have 64 to 512
_GROUPS = 8  # of grouped-query attention, as in Llama 3 (arXiv 2407.21783, table 3)


def cache_bytes_per_token(config: ModelConfig, kind: str = "bf16") -> int:
    """layers x (kv_lora_rank + qk_rope_head_dim) numbers: all that latent attention keeps of a token.

    K2.5: 61 x 576 x 2 = 70,272 bytes in bf16. kind: one of CACHE_KINDS, else ConfigError.
    """
    _check(kind, _CACHE, "a type of cache")
    values, block_bytes = _CACHE[kind]
    return config.num_hidden_layers * ceil(config.latent_size / values) * block_bytes


@dataclass(frozen=True)
class CacheAlternative:
    """The cache that the same heads would need in another kind of attention, in bf16.

    times_latent: how many times the latent cache's bytes that is.
    """

    name: str
    bytes_per_token: int
    times_latent: float


def cache_alternatives(config: ModelConfig) -> tuple[CacheAlternative, CacheAlternative]:
    """Plain multi-head attention and grouped-query attention of 8 groups, with this model's own heads.

    MHA keeps layers x heads x ((nope + rope) + v) numbers of a token: a key and a value of every head. GQA keeps
    8 in place of all heads. Both are held against layers x (kv_lora_rank + rope). K2.5: 64 x 320 = 20,480 and
    8 x 320 = 2,560 against 576, so 35.6 and 4.4 times as much. A model that was built with MHA or GQA would have
    chosen other widths (heads of 128 for key and value alike make it 28.4 and 3.6), so a ratio says nothing
    unless it says against what.
    """
    c = config
    latent = cache_bytes_per_token(c)

    def alternative(name: str, heads: int) -> CacheAlternative:
        size = c.num_hidden_layers * heads * (c.qk_head_dim + c.v_head_dim) * 2
        return CacheAlternative(name, size, size / latent)

    heads = c.num_attention_heads
    return alternative("mha", heads), alternative(f"gqa{_GROUPS}", min(heads, _GROUPS))


@dataclass(frozen=True)
class Buffers:
    """Bytes of a step's intermediate values. Attention and MLP follow each other and share their room."""

    hidden: int
    attention: int
    mlp: int
    logits: int

    @property
    def peak(self) -> int:
        return self.hidden + max(self.attention, self.mlp) + self.logits


def buffers(
    config: ModelConfig, chunk_tokens: int, streams: int = 1, dtype: str = "bf16"
) -> Buffers:
    """Of a forward step over `chunk_tokens` of a prompt and one token of each of `streams` answers.

    Per token, as fused kernels need it (no attention matrix; a chunk's own keys and values, expanded):
    hidden: the residual stream, its norm, and the output of the layer, 3 x hidden_size;
    attention: q_lora_rank + latent_size + heads x (q + k + v + output);
    mlp: of the wider of the dense MLP, 3 x intermediate_size, and of the experts chosen,
    num_experts_per_tok x (2 x hidden_size + 3 x moe_intermediate_size) with the router's scores and the shared
    experts. Logits are float32, for one token of the prompt and of each answer.
    Raises ConfigError for another dtype than bf16, fp16, fp32, and for negative numbers.
    """
    if chunk_tokens < 0 or streams < 0:
        raise ConfigError(f"{min(chunk_tokens, streams)} tokens cannot be computed: give 0 or more")
    _check(dtype, _BYTES, "a type to compute in")
    c, size, tokens = config, _BYTES[dtype], chunk_tokens + streams
    heads, block = c.num_attention_heads, min(chunk_tokens, _SCORE_BLOCK)
    per_head = 2 * c.qk_head_dim + 2 * c.v_head_dim
    attention = tokens * ((c.q_lora_rank or 0) + c.latent_size + heads * per_head) * size
    dense = 3 * c.intermediate_size * size if c.first_k_dense_replace else 0
    moe = 0
    if c.first_k_dense_replace < c.num_hidden_layers:
        chosen = c.num_experts_per_tok * (2 * c.hidden_size + 3 * c.moe_intermediate_size)
        shared = 3 * c.n_shared_experts * c.moe_intermediate_size
        moe = (chosen + shared) * size + 2 * c.n_routed_experts * 4
    return Buffers(
        hidden=tokens * 3 * c.hidden_size * size,
        attention=attention + heads * block * block * 4,
        mlp=tokens * max(dense, moe),
        logits=(streams + min(chunk_tokens, 1)) * c.vocab_size * 4,
    )


def buffers_bytes(
    config: ModelConfig, chunk_tokens: int, streams: int = 1, dtype: str = "bf16"
) -> int:
    """The most that `buffers` take at once."""
    return buffers(config, chunk_tokens, streams, dtype).peak


def moonlet_buffers_bytes(config: ModelConfig, tokens: int) -> int:
    """What moonlet's CPU kernels hold for steps of up to `tokens` tokens, and keep between steps.

    Attention is in its absorbed form, values between kernels are float32, and the inputs of quantized products
    8-bit codes: 52 bytes for 32 values, rows rounded up to 256. Each array of csrc/layer.cpp and csrc/ffn.cpp is
    as large as the largest use of it, and a quarter larger, so that it need not grow often. Beside them there are
    four arrays of hidden states, and the logits of one token. Raises ConfigError for a negative number.
    """
    if tokens < 0:
        raise ConfigError(f"{tokens} tokens cannot be computed: give 0 or more")
    c, heads = config, config.num_attention_heads
    is_moe = c.first_k_dense_replace < c.num_hidden_layers
    chosen, shared = (c.num_experts_per_tok, c.n_shared_experts) if is_moe else (0, 1)
    dense = c.intermediate_size if c.first_k_dense_replace else 0
    between = 4 * (
        max(c.q_lora_rank or 0, c.n_routed_experts if is_moe else 0)
        + heads * (c.qk_head_dim + c.latent_size + c.kv_lora_rank + c.v_head_dim)
        + c.latent_size
        + c.hidden_size
    )
    codes = (
        _codes(c.hidden_size)
        + max(heads * _codes(c.kv_lora_rank), _codes(heads * c.v_head_dim), _codes(c.hidden_size))
        + (chosen + min(shared, 1)) * _codes(c.hidden_size)
        + max(
            chosen * _codes(c.moe_intermediate_size) + _codes(shared * c.moe_intermediate_size),
            _codes(dense),
        )
    )
    return tokens * ((between + codes) * 5 // 4 + 4 * 4 * c.hidden_size) + 4 * c.vocab_size


def _codes(columns: int) -> int:
    return ceil(columns / 256) * 8 * 52


def vision_bytes(config: ModelConfig, patches: int, dtype: str = "bf16") -> int:
    """Working set of the vision tower over `patches` at once, 0 without one.

    Pixels and the residual stream with its norm, and the widest of: attention (q, k, v, both rotated, output),
    MLP (twice its width), projector (two merged rows and one of hidden_size for each merged cell). Raises
    ConfigError as `buffers`.
    """
    _check(dtype, _BYTES, "a type to compute in")
    v, size = config.vision, _BYTES[dtype]
    if patches < 0:
        raise ConfigError(f"{patches} patches cannot be computed: give 0 or more")
    if v is None:
        return 0
    d, block = v.vt_hidden_size, min(patches, _SCORE_BLOCK)
    cells = ceil(patches / (v.merge_kernel_size[0] * v.merge_kernel_size[1]))
    attention = patches * 6 * d * size + v.vt_num_attention_heads * block * block * 4
    mlp = patches * 2 * v.vt_intermediate_size * size
    projector = cells * (2 * v.merged_size + config.hidden_size) * size
    always = patches * (3 * v.patch_size**2 + 2 * d) * size
    return always + max(attention, mlp, projector)


def _check(name: str, known: Mapping[str, object], what: str) -> None:
    if name not in known:
        raise ConfigError(f"{name[:80]!r} is not {what}: give one of {', '.join(known)}")
