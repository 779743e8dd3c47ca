"""What is known about the keys of a config.json, and a reader that leaves no key unread."""

from collections.abc import Mapping
from typing import Any

from moonlet.errors import ConfigError, NotSupportedError

# Keys that change nothing in the network: provenance, training leftovers, generation defaults.
INERT = frozenset(
    [
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "attention_dropout",
        "auto_map",
        "aux_loss_alpha",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "ep_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "head_dim",
        "id2label",
        "ignore_index",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "output_scores",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "pruned_heads",
        "qk_head_dim",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "seq_aux",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
        "unsloth_version",
    ]
)
INERT_TOP = INERT | frozenset(
    [
        "image_token_id",
        "use_unified_vision_chunk",
        "video_placeholder",
        "video_token_id",
        "vision_end_token_id",
        "vision_start_token_id",
        "projection_hidden_size",
    ]
)
INERT_VISION = INERT | {
    "_attn_implementation",
    "dtype",
    "torch_dtype",
    "text_hidden_size",
}

REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
    "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
    "routed_scaling_factor", "norm_topk_prob", "rms_norm_eps", "max_position_embeddings",
)  # fmt: skip
OPTIONAL = ("initializer_range", "num_nextn_predict_layers", "bos_token_id", "pad_token_id")

# What the published code of each class assumes where its config.json is silent.
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"scoring_func": "softmax", "topk_method": "greedy"},
    "deepseek_v3": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    "kimi_k2": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    "glm4_moe_lite": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
}
# Keys whose other values would mean another network than the one moonlet builds.
ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "rope_interleave": (True,),
    "partial_rotary_factor": (1, 1.0),
}
ONLY_VISION: dict[str, tuple[Any, ...]] = {
    "pos_emb_type": ("divided_fixed",),
    "merge_type": ("sd2_tpool",),
    "video_attn_type": ("spatial_temporal",),
    "mm_projector_type": ("patchmerger",),
    "projector_hidden_act": ("gelu",),
    "hidden_act": ("gelu_pytorch_tanh",),
}


class Keys:
    """Takes keys out of a JSON object one by one, so that at the end the unknown ones are left."""

    def __init__(self, raw: Mapping[str, Any], inert: frozenset[str], prefix: str) -> None:
        self.values = dict(raw)
        self.inert = inert
        self.prefix = prefix

    def peek(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def take(self, name: str, *default: Any) -> Any:
        if name in self.values:
            return self.values.pop(name)
        if default:
            return default[0]
        raise ConfigError(f"{self.prefix}{name} is missing")

    def choice(self, name: str, allowed: tuple[str, ...], defaults: Mapping[str, Any]) -> Any:
        value = self.take(name, None)
        value = defaults[name] if value is None else value
        if value not in allowed:
            raise NotSupportedError(
                f"{self.prefix}{name} {value!r} is not supported here ({', '.join(allowed)})"
            )
        return value

    def only(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        for name, values in allowed.items():
            value = self.take(name, values[0])
            if value not in values:
                raise NotSupportedError(
                    f"{self.prefix}{name} {value!r} is not supported (only {values[0]!r} is)"
                )

    def finish(self) -> None:
        unknown = sorted(set(self.values) - self.inert)
        if unknown:
            raise ConfigError(
                f"unknown keys {', '.join(self.prefix + name for name in unknown)}: "
                "moonlet refuses what it does not understand"
            )
