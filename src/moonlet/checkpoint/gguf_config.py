"""Metadata of a GGUF file <-> ModelConfig, for the architecture that llama.cpp calls deepseek2.

Reading is strict in the same way as for a config.json: a key of the architecture is used, or known to change
nothing, or refused by name. Where a file is silent its meaning is llama.cpp's default. Two things are not in a
GGUF. Which model it is: see `_model_type`. And the epsilon of the latent norms: llama.cpp computes all norms
with one, so that is what a file means, and `latent_norm_eps` is the same as `rms_norm_eps`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moonlet.checkpoint.gguf import Value
from moonlet.checkpoint.untrusted import shown
from moonlet.config import ModelConfig, RopeConfig, VisionConfig
from moonlet.config.model import ModelType
from moonlet.errors import ConfigError, NotSupportedError

ARCHITECTURE = "deepseek2"
SOFTMAX, SIGMOID = 1, 2
GLM_VOCABULARY = 154_880  # by which llama.cpp knows GLM-4.7-Flash, too
# Keys with a single value that is understood; None stands for any, as the key changes nothing.
_ONLY: dict[str, tuple[Any, ...] | None] = {
    "attention.causal": (True,),
    "attention.head_count_kv": None,
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.finetuned": None,
    "rope.scale_linear": (1.0,),
}


class Metadata:
    """Takes the keys of one prefix out of a file's metadata, so that at the end the unknown are left."""

    def __init__(self, values: Mapping[str, Value], prefix: str) -> None:
        self.prefix = prefix
        self.values = {
            key.removeprefix(prefix): value
            for key, value in values.items()
            if key.startswith(prefix)
        }

    def whole(self, name: str, *default: int) -> int:
        """A whole number; an array of one number per layer counts when all of them are equal."""
        value = self._take(name, *default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.prefix}{name} is {_show(value)}, not a whole number")
        return value

    def number(self, name: str, *default: float) -> float:
        value = self._take(name, *default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
            raise ConfigError(f"{self.prefix}{name} is {_show(value)}, not a usable number")
        return float(value)

    def flag(self, name: str, *default: bool) -> bool:
        value = self._take(name, *default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.prefix}{name} is {_show(value)}, not true or false")
        return value

    def text(self, name: str, *default: str) -> str:
        value = self._take(name, *default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.prefix}{name} is {_show(value)}, not a text")
        return value

    def optional(self, name: str) -> int | None:
        return self.whole(name) if name in self.values else None

    def finish(self, only: Mapping[str, tuple[Any, ...] | None]) -> None:
        """Refuses what is left, but for the keys of `only` with one of their values."""
        for name, value in self.values.items():
            if name not in only:
                raise ConfigError(
                    f"unknown key {self.prefix}{shown(name)}: moonlet refuses what it does not understand"
                )
            allowed = only[name]
            if allowed is not None and not (np.isscalar(value) and value in allowed):
                raise NotSupportedError(
                    f"{self.prefix}{name} {_show(value)} is not supported (only {allowed[0]!r} is)"
                )

    def _take(self, name: str, *default: Value) -> Value:
        if name in self.values:
            return self.values.pop(name)
        if default:
            return default[0]
        raise ConfigError(f"{self.prefix}{name} is missing")


def _show(value: Any) -> str:
    return (
        f"an array of {len(value)}" if isinstance(value, np.ndarray | list) else shown(repr(value))
    )


def config_from_gguf(
    metadata: Mapping[str, Value], vision: VisionConfig | None = None
) -> ModelConfig:
    """The model that the metadata describe, with the tower of a vision file when there is one.

    Raises ConfigError for missing, unknown and impossible values, NotSupportedError for other
    architectures.
    """
    architecture = metadata.get("general.architecture")
    if architecture == "clip":
        raise NotSupportedError(
            "this is the vision file (mmproj) of a model; give the model's own file and leave this beside it"
        )
    if architecture != ARCHITECTURE:
        raise NotSupportedError(
            f"the architecture {_show(architecture)} is another class of network; in GGUF files moonlet "
            f"reads {ARCHITECTURE}, which is what Kimi, Moonlight and DeepSeek-V2 and V3 are stored as"
        )
    keys = Metadata(metadata, ARCHITECTURE + ".")
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    vocab_size = keys.whole("vocab_size", len(tokens) if isinstance(tokens, list) else 0)
    layers = keys.whole("block_count")
    is_glm = vocab_size == GLM_VOCABULARY and layers in (47, 48)
    gating = keys.whole("expert_gating_func", 0) or (SIGMOID if is_glm else SOFTMAX)
    if gating not in (SOFTMAX, SIGMOID):
        raise NotSupportedError(
            f"expert_gating_func {gating} is neither 1, softmax, nor 2, sigmoid"
        )
    groups = keys.whole("expert_group_count", 0) or 1
    drafts = keys.whole("nextn_predict_layers", 0)
    q_lora_rank = keys.optional("attention.q_lora_rank") or None
    eps = keys.number("attention.layer_norm_rms_epsilon")
    context = keys.whole("context_length")
    config = ModelConfig(
        model_type=_model_type(gating, is_glm, q_lora_rank, metadata, vision),
        vocab_size=vocab_size,
        hidden_size=keys.whole("embedding_length"),
        intermediate_size=keys.whole("feed_forward_length"),
        moe_intermediate_size=keys.whole("expert_feed_forward_length"),
        num_hidden_layers=layers - drafts,
        num_attention_heads=keys.whole("attention.head_count"),
        q_lora_rank=q_lora_rank,
        **_heads(keys),
        n_routed_experts=keys.whole("expert_count"),
        n_shared_experts=keys.whole("expert_shared_count"),
        num_experts_per_tok=keys.whole("expert_used_count"),
        first_k_dense_replace=keys.whole("leading_dense_block_count", 0),
        rope=_rope(keys, context),
        max_position_embeddings=context,
        n_group=groups,
        topk_group=keys.whole("expert_group_used_count", 0) or groups,
        scoring_func="sigmoid" if gating == SIGMOID else "softmax",
        topk_method=(
            "noaux_tc" if gating == SIGMOID else "group_limited_greedy" if groups > 1 else "greedy"
        ),
        norm_topk_prob=keys.flag("expert_weights_norm", False),
        routed_scaling_factor=keys.number("expert_weights_scale", 0.0) or 1.0,
        rms_norm_eps=eps,
        latent_norm_eps=eps,
        num_nextn_predict_layers=drafts,
        **_token_ids(metadata, vision),
        vision=vision,
    )
    keys.finish(_ONLY)
    return config


def _model_type(
    gating: int,
    is_glm: bool,
    q_lora_rank: int | None,
    metadata: Mapping[str, Value],
    vision: VisionConfig | None,
) -> ModelType:
    """The name of the model's class, of which a file keeps no record; the network is told by the sizes.

    A vision file with a time axis is K2.5's, one without is Kimi-VL's. Softmax gating is DeepSeek-V2's.
    Kimi's vocabulary with a latent for queries is K2, without one Moonlight, which is a deepseek_v3.
    """
    if vision is not None:
        return "kimi_vl" if vision.init_pos_emb_time is None else "kimi_k25"
    if gating == SOFTMAX:
        return "deepseek_v2"
    if is_glm:
        return "glm4_moe_lite"
    is_kimi = metadata.get("tokenizer.ggml.pre") == "kimi-k2"
    return "kimi_k2" if is_kimi and q_lora_rank is not None else "deepseek_v3"


def _heads(keys: Metadata) -> dict[str, int]:
    """The head sizes: from the `_mla` keys, or, in old files and ik_llama.cpp's, from those without.

    With the `_mla` keys the others speak of attention in the latent space, and have to fit.
    """
    rank, rope = keys.whole("attention.kv_lora_rank"), keys.whole("rope.dimension_count")
    key, value = keys.whole("attention.key_length"), keys.whole("attention.value_length")
    full_key = keys.optional("attention.key_length_mla")
    full_value = keys.optional("attention.value_length_mla")
    if full_key and full_value:
        if (key, value) not in ((rank + rope, rank), (full_key, full_value)):
            raise ConfigError(
                f"key_length and value_length are {key} and {value}, but kv_lora_rank {rank} and "
                f"rope.dimension_count {rope} make them {rank + rope} and {rank}"
            )
        key, value = full_key, full_value
    return {
        "kv_lora_rank": rank,
        "qk_nope_head_dim": key - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
    }


def _rope(keys: Metadata, context: int) -> RopeConfig:
    theta = keys.number("rope.freq_base", 10_000.0)
    kind = keys.text("rope.scaling.type", "none")
    factor = keys.number("rope.scaling.factor", 1.0)
    original = keys.whole("rope.scaling.original_context_length", context)
    beta_fast = keys.number("rope.scaling.yarn_beta_fast", 32.0)
    beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1.0)
    # Stored as a tenth; what comes of it in 32 bits is not quite ten times that.
    mscale_all_dim = round(10 * keys.number("rope.scaling.yarn_log_multiplier", 0.0), 6)
    if kind == "none":
        return RopeConfig(theta)
    if kind != "yarn":
        raise NotSupportedError(f"rope.scaling.type {shown(repr(kind))} is not supported (yarn is)")
    return RopeConfig(
        theta, "yarn", factor, original, beta_fast, beta_slow, mscale_all_dim or 1.0, mscale_all_dim
    )


_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def _token_ids(metadata: Mapping[str, Value], vision: VisionConfig | None) -> dict[str, Any]:
    keys = Metadata(metadata, "tokenizer.ggml.")
    ends = [keys.optional(name) for name in _ENDS]
    ids: dict[str, Any] = {
        "bos_token_id": keys.optional("bos_token_id"),
        "eos_token_ids": tuple(dict.fromkeys(end for end in ends if end is not None)),
        "pad_token_id": keys.optional("padding_token_id"),
    }
    if vision is not None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or "<|media_pad|>" not in tokens:
            raise ConfigError(
                "the vocabulary has no token <|media_pad|>, so images have no place in a prompt; "
                "take the vision file (mmproj) away to use the text model alone"
            )
        ids["media_placeholder_token_id"] = tokens.index("<|media_pad|>")
    return ids


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The metadata of the text network, in the types and with the meaning that llama.cpp gives them.

    Raises NotSupportedError for a model that llama.cpp would compute differently.
    """
    has_bias = config.topk_method == "noaux_tc"
    if has_bias != (config.scoring_func == "sigmoid"):
        raise NotSupportedError(
            f"GGUF has no router with {config.scoring_func} and {config.topk_method}"
        )
    c, rank, rope = config, config.kv_lora_rank, config.qk_rope_head_dim
    values: dict[str, Any] = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "expert_feed_forward_length": c.moe_intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": c.qk_head_dim,
        "attention.value_length_mla": c.v_head_dim,
        # 0 is written for "none", because llama.cpp insists on the key but in models of 26 or 27 layers.
        "attention.q_lora_rank": c.q_lora_rank or 0,
        "attention.kv_lora_rank": rank,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "rope.dimension_count": rope,
        **_rope_to_gguf(c.rope),
        "expert_count": c.n_routed_experts,
        "expert_used_count": c.num_experts_per_tok,
        "expert_shared_count": c.n_shared_experts,
        "expert_group_count": c.n_group,
        "expert_group_used_count": c.topk_group,
        "expert_gating_func": SIGMOID if has_bias else SOFTMAX,
        "expert_weights_scale": c.routed_scaling_factor,
        "expert_weights_norm": c.norm_topk_prob,
        "leading_dense_block_count": c.first_k_dense_replace,
        "vocab_size": c.vocab_size,
    }
    ids = dict(zip(_ENDS, c.eos_token_ids, strict=False))
    ids |= {"bos_token_id": c.bos_token_id, "padding_token_id": c.pad_token_id}
    tokens = {f"tokenizer.ggml.{key}": value for key, value in ids.items() if value is not None}
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()} | tokens


def _rope_to_gguf(rope: RopeConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"rope.freq_base": rope.theta}
    if rope.type == "default":
        return values
    if rope.factor > 1 and not rope.mscale == rope.mscale_all_dim > 0:
        raise NotSupportedError(
            f"GGUF has no place for the YaRN temperatures mscale {rope.mscale} and mscale_all_dim "
            f"{rope.mscale_all_dim}, which must be equal and above 0"
        )
    return values | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope.factor,
        "rope.scaling.original_context_length": rope.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": rope.beta_fast,
        "rope.scaling.yarn_beta_slow": rope.beta_slow,
        "rope.scaling.yarn_log_multiplier": 0.1 * rope.mscale_all_dim,
    }
