"""config.json <-> ModelConfig, for every spelling the family is published in.

Reading is strict: a key is used, or it is in the list of keys that are known to be inert, or it is
refused by name; a missing key is named too. Only keys that a published file of that `model_type`
really omits have a default, and that default is stated here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from moonlet.config.model import ModelConfig, ModelType, QuantConfig, RopeConfig, VisionConfig
from moonlet.errors import ConfigError, NotSupportedError

CONFIG_BYTES_LIMIT = 16 * 2**20

# Keys that change nothing in the network: provenance, training leftovers, generation defaults.
_INERT = frozenset(
    """
    _name_or_path add_cross_attention architectures attention_dropout auto_map aux_loss_alpha
    bad_words_ids begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    ep_size exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    head_dim id2label ignore_index is_decoder is_encoder_decoder label2id length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_router_logits output_scores prefix pretraining_tp
    problem_type pruned_heads qk_head_dim remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id seq_aux suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torchscript
    transformers_version typical_p use_bfloat16 use_cache unsloth_version
    """.split()
)
_INERT_TOP = _INERT | frozenset(
    "image_token_id use_unified_vision_chunk video_placeholder video_token_id vision_end_token_id "
    "vision_start_token_id projection_hidden_size".split()
)
_INERT_VISION = _INERT | {
    "_attn_implementation",
    "dtype",
    "torch_dtype",
    "mm_hidden_size",
    "text_hidden_size",
}

_REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
    "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
    "routed_scaling_factor", "norm_topk_prob", "rms_norm_eps", "max_position_embeddings",
)  # fmt: skip
_OPTIONAL = ("initializer_range", "num_nextn_predict_layers", "bos_token_id", "pad_token_id")

# What the published code of each class assumes where its config.json is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"scoring_func": "softmax", "topk_method": "greedy"},
    "deepseek_v3": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    "kimi_k2": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    "glm4_moe_lite": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
}
# Keys whose other values would mean another network than the one moonlet builds.
_ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "rope_interleave": (True,),
    "partial_rotary_factor": (1, 1.0),
}
_ONLY_VISION: dict[str, tuple[Any, ...]] = {
    "pos_emb_type": ("divided_fixed",),
    "merge_type": ("sd2_tpool",),
    "video_attn_type": ("spatial_temporal",),
    "mm_projector_type": ("patchmerger",),
    "projector_hidden_act": ("gelu",),
    "hidden_act": ("gelu_pytorch_tanh",),
}


def load_config(path: Path) -> ModelConfig:
    """The configuration in a config.json file.

    Raises ConfigError (unreadable, not JSON, keys missing or impossible) or NotSupportedError.
    """
    try:
        if path.stat().st_size > CONFIG_BYTES_LIMIT:
            raise ConfigError(f"{path} is larger than 16 MiB, which no config.json is")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    return from_hf(raw, str(path))


def from_hf(raw: Any, source: str = "config.json") -> ModelConfig:
    """ModelConfig from the parsed config.json `raw`; `source` names the file in messages.

    Raises ConfigError for missing, unknown or impossible values, NotSupportedError for a network of
    another class and for rope types, activations, scoring functions that moonlet does not have.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"{source} holds a {type(raw).__name__}, not a JSON object")
    try:
        return _from_hf(raw)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    except NotSupportedError as error:
        raise NotSupportedError(f"{source}: {error}") from error


def _from_hf(raw: dict[str, Any]) -> ModelConfig:
    model_type = raw.get("model_type")
    if model_type not in get_args(ModelType):
        raise NotSupportedError(
            f"model_type {model_type!r} is another class of network"
            + _foreign_parts(raw)
            + "; supported are "
            + ", ".join(get_args(ModelType))
        )
    if model_type in ("kimi_k25", "kimi_vl"):
        return _multimodal(raw, cast(ModelType, model_type))
    keys = _Keys(raw, _INERT, "")
    return _text(keys, cast(ModelType, model_type), cast(str, model_type), {})


def _foreign_parts(raw: dict[str, Any]) -> str:
    """Names the parts of a Kimi-Linear-like network, so that the refusal says what is missing."""
    text = raw.get("text_config") if isinstance(raw.get("text_config"), dict) else raw
    parts = {
        "linear_attn_config": "Kimi Delta Attention layers",
        "routed_expert_hidden_size": "latent experts",
        "attn_res_block_size": "attention residuals",
        "mla_use_output_gate": "gated attention output",
        "mla_use_nope": "attention without rotary positions",
    }
    found = [name for key, name in parts.items() if cast(dict[str, Any], text).get(key)]
    return f" ({', '.join(found)} are not supported)" if found else ""


def _multimodal(raw: dict[str, Any], model_type: ModelType) -> ModelConfig:
    top = _Keys(raw, _INERT_TOP, "")
    text_raw = top.take("text_config")
    vision_raw = top.take("vision_config")
    for name, part in (("text_config", text_raw), ("vision_config", vision_raw)):
        if not isinstance(part, dict):
            raise ConfigError(f"{name} is a {type(part).__name__}, not a JSON object")
    placeholder = top.take("media_placeholder_token_id", raw.get("image_token_id"))
    projector_eps = top.take("projection_layer_norm_eps", 1e-5)
    top.only({"tie_word_embeddings": _ONLY["tie_word_embeddings"]})
    shared = {
        "bos_token_id": top.take("bos_token_id", None),
        "eos_token_id": top.take("eos_token_id", None),
        "pad_token_id": top.take("pad_token_id", None),
        "dtype": top.take("dtype", top.take("torch_dtype", None)),
        "quantization_config": top.take("quantization_config", None),
    }
    top.take("model_type")
    top.finish()
    text = _Keys(text_raw, _INERT, "text_config.")
    for key, value in shared.items():
        if value is not None and text_raw.get(key) is None:
            text.values[key] = value
    text_type = text.peek("model_type", "deepseek_v3")
    vision = _vision(_Keys(vision_raw, _INERT_VISION, "vision_config."), model_type, projector_eps)
    return _text(
        text, model_type, text_type, {"vision": vision, "media_placeholder_token_id": placeholder}
    )


def _text(
    keys: "_Keys", model_type: ModelType, text_type: str, more: dict[str, Any]
) -> ModelConfig:
    if text_type not in _DEFAULTS:
        raise NotSupportedError(
            f"text network {text_type!r} is not of this family ({', '.join(_DEFAULTS)})"
        )
    keys.take("model_type", text_type)
    fields = {name: keys.take(name) for name in _REQUIRED}
    fields |= {name: value for name in _OPTIONAL if (value := keys.take(name, None)) is not None}
    fields["first_k_dense_replace"] = _dense_layers(keys)
    defaults = _DEFAULTS[text_type]
    fields["scoring_func"] = keys.choice("scoring_func", ("sigmoid", "softmax"), defaults)
    methods = (
        ("noaux_tc",) if fields["scoring_func"] == "sigmoid" else ("greedy", "group_limited_greedy")
    )
    fields["topk_method"] = keys.choice("topk_method", methods, defaults)
    for name in ("n_group", "topk_group"):
        value = keys.take(name, None)
        fields[name] = 1 if value is None else value
    heads = keys.take("num_key_value_heads", fields["num_attention_heads"])
    if heads != fields["num_attention_heads"]:
        raise NotSupportedError(
            f"num_key_value_heads {heads!r} differs from num_attention_heads, which latent attention has not"
        )
    fields["rope"] = _rope(keys)
    fields["eos_token_ids"] = _token_ids(keys.take("eos_token_id", None))
    fields["dtype"] = keys.choice("dtype", ("bfloat16", "float16", "float32"),
                                  {"dtype": keys.take("torch_dtype", None) or "bfloat16"})  # fmt: skip
    fields["quantization"] = _quantization(keys.take("quantization_config", None))
    keys.only(_ONLY)
    keys.finish()
    for name in ("routed_scaling_factor", "rms_norm_eps"):
        fields[name] = _number(name, fields[name])
    if not isinstance(fields["norm_topk_prob"], bool):
        raise ConfigError(f"norm_topk_prob is {fields['norm_topk_prob']!r}, not true or false")
    return _build(ModelConfig, {"model_type": model_type, **fields, **more})


def _dense_layers(keys: "_Keys") -> int:
    """first_k_dense_replace, also from the layer list that transformers 5 writes for GLM."""
    kinds = keys.take("mlp_layer_types", None)
    if kinds is None:
        # GLM-4.7-Flash and DeepSeek-V3 agree with their published code here; no default is needed.
        return keys.take("first_k_dense_replace")
    dense = kinds.index("sparse") if isinstance(kinds, list) and "sparse" in kinds else 0
    if not isinstance(kinds, list) or kinds != ["dense"] * dense + ["sparse"] * (
        len(kinds) - dense
    ):
        raise NotSupportedError(
            "mlp_layer_types mixes dense and sparse layers after the first sparse one"
        )
    return keys.take("first_k_dense_replace", dense)


def _rope(keys: "_Keys") -> RopeConfig:
    """From `rope_theta` + `rope_scaling`, or from the one dict `rope_parameters` of transformers 5."""
    raw = keys.take("rope_parameters", None)
    scaling = keys.take("rope_scaling", None)
    theta = keys.take("rope_theta", None)
    raw = raw if raw is not None else (scaling or {})
    if not isinstance(raw, dict):
        raise ConfigError(f"rope settings are a {type(raw).__name__}, not a JSON object")
    rope = _Keys(raw, frozenset({"partial_rotary_factor"}), "rope_scaling.")
    kind = rope.take("rope_type", rope.take("type", "default"))
    rope.take("type", None)
    theta = rope.take("rope_theta", theta)
    if theta is None:
        raise ConfigError("rope_theta is missing")
    if kind == "default":
        rope.finish()
        return _build(RopeConfig, {"theta": _number("rope_theta", theta)})
    if kind != "yarn":
        raise NotSupportedError(f"rope type {kind!r} is not supported (default and yarn are)")
    values: dict[str, Any] = {
        "theta": _number("rope_theta", theta),
        "type": "yarn",
        "factor": _number("rope factor", rope.take("factor")),
        "original_max_position_embeddings": rope.take("original_max_position_embeddings"),
    }
    for name, default in (
        ("beta_fast", 32),
        ("beta_slow", 1),
        ("mscale", 1),
        ("mscale_all_dim", 0),
    ):
        values[name] = _number(name, rope.take(name, default))
    rope.only({"truncate": (True,), "attention_factor": (None,)})
    rope.finish()
    return _build(RopeConfig, values)


def _vision(keys: "_Keys", model_type: ModelType, projector_eps: Any) -> VisionConfig:
    """Reads Moonshot's `vt_*` names, else the plain names of Kimi-VL and transformers."""
    fields: dict[str, Any] = {}
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"):
        plain = keys.take(name, None)
        fields[f"vt_{name}"] = keys.take(f"vt_{name}", plain)
    fields["patch_size"] = keys.take("patch_size")
    for axis in ("height", "width", "time"):
        plain = keys.take(f"pos_emb_{axis}", None)
        fields[f"init_pos_emb_{axis}"] = keys.take(f"init_pos_emb_{axis}", plain)
    merge = keys.take("merge_kernel_size", [2, 2])
    fields["merge_kernel_size"] = tuple(merge) if isinstance(merge, list) else (merge, merge)
    fields["projector_ln_eps"] = _number(
        "projector_ln_eps", keys.take("projector_ln_eps", projector_eps)
    )
    rope = keys.take("rope_parameters", None)
    if rope is not None and rope != {"rope_type": "axial", "rope_theta": 10000.0}:
        raise NotSupportedError(f"vision_config.rope_parameters {rope!r} is not supported")
    keys.take("model_type", None)
    keys.only(_ONLY_VISION)
    keys.finish()
    missing = [
        name for name, value in fields.items() if value is None and name != "init_pos_emb_time"
    ]
    if missing:
        raise ConfigError(f"vision_config lacks {', '.join(missing)}")
    if model_type == "kimi_k25" and fields["init_pos_emb_time"] is None:
        raise ConfigError("vision_config lacks init_pos_emb_time")
    return _build(VisionConfig, fields)


def _quantization(raw: Any) -> QuantConfig | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise ConfigError(f"quantization_config is a {type(raw).__name__}, not a JSON object")
    method = raw.get("quant_method")
    if method == "fp8":
        if raw.get("fmt", "e4m3") != "e4m3" or raw.get("weight_block_size") != [128, 128]:
            raise NotSupportedError("FP8 weights are supported as e4m3 in 128x128 blocks only")
        return QuantConfig("fp8")
    if method != "compressed-tensors":
        raise NotSupportedError(
            f"quantization method {method!r} is not supported (compressed-tensors and fp8 are)"
        )
    groups = raw.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    weights = groups[0].get("weights") if len(groups) == 1 and isinstance(groups[0], dict) else None
    wanted = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
    }
    found = {key: weights.get(key) for key in wanted} if isinstance(weights, dict) else None
    if raw.get("format") != "pack-quantized" or found != wanted:
        raise NotSupportedError(
            f"compressed-tensors weights of format {raw.get('format')!r} with {found} are not supported "
            "(pack-quantized, 4-bit int, symmetric, group 32 is)"
        )
    ignore = raw.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(item, str) for item in ignore):
        raise ConfigError("quantization_config.ignore is not a list of strings")
    return QuantConfig("int4", tuple(ignore))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of `config`: what Moonshot publishes, readable by transformers >= 5.23 as well.

    Vision sizes are written in both spellings, because transformers ignores the published one.
    """
    text = _text_to_hf(config)
    if config.vision is None:
        return text
    eos = text.get("eos_token_id")
    text["model_type"] = "kimi_k2" if config.model_type == "kimi_k25" else "deepseek_v3"
    text["architectures"] = ["DeepseekV3ForCausalLM"]
    name = "KimiK25" if config.model_type == "kimi_k25" else "KimiVL"
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": config.model_type,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": config.pad_token_id,
        "media_placeholder_token_id": config.media_placeholder_token_id,
        "image_token_id": config.media_placeholder_token_id,
        "projection_hidden_size": config.vision.vt_hidden_size,
        "projection_layer_norm_eps": config.vision.projector_ln_eps,
        "dtype": config.dtype,
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": _vision_to_hf(config.vision, config),
    }


_ARCHITECTURES = {
    "kimi_k2": "DeepseekV3ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
}


def _text_to_hf(config: ModelConfig) -> dict[str, Any]:
    out: dict[str, Any] = {
        "architectures": [_ARCHITECTURES.get(config.model_type, "")],
        "model_type": config.model_type,
    }
    names = (*_REQUIRED, *_OPTIONAL, "first_k_dense_replace", "n_group", "topk_group", "scoring_func",
             "topk_method", "dtype")  # fmt: skip
    out |= {name: getattr(config, name) for name in names}
    eos = list(config.eos_token_ids)
    out["eos_token_id"] = eos[0] if len(eos) == 1 else (eos or None)
    out["num_key_value_heads"] = config.num_attention_heads
    out |= {
        "hidden_act": "silu",
        "attention_bias": False,
        "moe_layer_freq": 1,
        "tie_word_embeddings": False,
    }
    out["rope_theta"] = config.rope.theta
    out["rope_scaling"] = None
    if config.rope.type == "yarn":
        out["rope_scaling"] = {
            "type": "yarn",
            "factor": config.rope.factor,
            "original_max_position_embeddings": config.rope.original_max_position_embeddings,
            "beta_fast": config.rope.beta_fast,
            "beta_slow": config.rope.beta_slow,
            "mscale": config.rope.mscale,
            "mscale_all_dim": config.rope.mscale_all_dim,
        }
    if config.quantization is not None:
        out["quantization_config"] = _quantization_to_hf(config.quantization)
    return out


def _vision_to_hf(vision: VisionConfig, config: ModelConfig) -> dict[str, Any]:
    out: dict[str, Any] = {
        "patch_size": vision.patch_size,
        "merge_kernel_size": list(vision.merge_kernel_size),
    }
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    out |= {name: getattr(vision, f"vt_{name}") for name in sizes}
    out |= {
        f"init_pos_emb_{axis}": getattr(vision, f"init_pos_emb_{axis}")
        for axis in ("height", "width")
    }
    if config.model_type == "kimi_vl":
        return {"model_type": "moonvit", **out}
    out |= {f"vt_{name}": getattr(vision, f"vt_{name}") for name in sizes}
    out["init_pos_emb_time"] = vision.init_pos_emb_time
    out |= {
        f"pos_emb_{axis}": getattr(vision, f"init_pos_emb_{axis}")
        for axis in ("height", "width", "time")
    }
    out |= {name: values[0] for name, values in _ONLY_VISION.items()}
    out |= {
        "mm_hidden_size": vision.vt_hidden_size,
        "text_hidden_size": config.hidden_size,
        "projector_ln_eps": vision.projector_ln_eps,
    }
    return out


def _quantization_to_hf(quant: QuantConfig) -> dict[str, Any]:
    if quant.method == "fp8":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
        }
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
               "dynamic": False, "observer": "minmax", "actorder": None, "block_structure": None}  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": list(quant.ignore),
    }


class _Keys:
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


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31 for item in ids
    ):
        raise ConfigError(f"eos_token_id is {value!r}, not a token id or a list of them")
    return tuple(ids)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        raise ConfigError(f"{name} is {value!r}, not a usable number")
    return float(value)


def _build(kind: type, fields: dict[str, Any]) -> Any:
    try:
        return kind(**fields)
    except TypeError as error:  # a comparison inside __post_init__ met a value of the wrong type
        raise ConfigError(f"a value has the wrong type: {error}") from error
