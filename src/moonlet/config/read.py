"""config.json -> ModelConfig, for every spelling the family is published in.

Reading is strict: a key is used, or it is in the list of keys that are known to be inert, or it is
refused by name; a missing key is named too. Only keys that a published file of that `model_type`
really omits have a default, and that default is stated in `keys.py`.
"""

import json
from pathlib import Path
from typing import Any, cast, get_args

from moonlet.config.keys import (
    DEFAULTS,
    INERT,
    INERT_TOP,
    INERT_VISION,
    ONLY,
    ONLY_VISION,
    OPTIONAL,
    REQUIRED,
    Keys,
)
from moonlet.config.model import ModelConfig, ModelType, QuantConfig, RopeConfig, VisionConfig
from moonlet.errors import ConfigError, NotSupportedError

CONFIG_BYTES_LIMIT = 16 * 2**20


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
    keys = Keys(raw, INERT, "")
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
    top = Keys(raw, INERT_TOP, "")
    text_raw = top.take("text_config")
    vision_raw = top.take("vision_config")
    for name, part in (("text_config", text_raw), ("vision_config", vision_raw)):
        if not isinstance(part, dict):
            raise ConfigError(f"{name} is a {type(part).__name__}, not a JSON object")
    placeholder = top.take("media_placeholder_token_id", raw.get("image_token_id"))
    projector_eps = top.take("projection_layer_norm_eps", 1e-5)
    top.only({"tie_word_embeddings": ONLY["tie_word_embeddings"]})
    shared = {
        "bos_token_id": top.take("bos_token_id", None),
        "eos_token_id": top.take("eos_token_id", None),
        "pad_token_id": top.take("pad_token_id", None),
        "dtype": top.take("dtype", top.take("torch_dtype", None)),
        "quantization_config": top.take("quantization_config", None),
    }
    top.take("model_type")
    top.finish()
    text = Keys(text_raw, INERT, "text_config.")
    for key, value in shared.items():
        if value is not None and text_raw.get(key) is None:
            text.values[key] = value
    text_type = text.peek("model_type", "deepseek_v3")
    vision = _vision(Keys(vision_raw, INERT_VISION, "vision_config."), model_type, projector_eps)
    return _text(
        text, model_type, text_type, {"vision": vision, "media_placeholder_token_id": placeholder}
    )


def _text(keys: "Keys", model_type: ModelType, text_type: str, more: dict[str, Any]) -> ModelConfig:
    if not isinstance(text_type, str) or text_type not in DEFAULTS:
        raise NotSupportedError(
            f"text network {text_type!r} is not of this family ({', '.join(DEFAULTS)})"
        )
    keys.take("model_type", text_type)
    fields = {name: keys.take(name) for name in REQUIRED}
    fields |= {name: value for name in OPTIONAL if (value := keys.take(name, None)) is not None}
    fields["first_k_dense_replace"] = _dense_layers(keys)
    defaults = DEFAULTS[text_type]
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
    keys.only(ONLY)
    keys.finish()
    for name in ("routed_scaling_factor", "rms_norm_eps"):
        fields[name] = _number(name, fields[name])
    if not isinstance(fields["norm_topk_prob"], bool):
        raise ConfigError(f"norm_topk_prob is {fields['norm_topk_prob']!r}, not true or false")
    return _build(ModelConfig, {"model_type": model_type, **fields, **more})


def _dense_layers(keys: "Keys") -> int:
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


def _rope(keys: "Keys") -> RopeConfig:
    """From `rope_theta` + `rope_scaling`, or from the one dict `rope_parameters` of transformers 5."""
    raw = keys.take("rope_parameters", None)
    scaling = keys.take("rope_scaling", None)
    theta = keys.take("rope_theta", None)
    raw = raw if raw is not None else (scaling or {})
    if not isinstance(raw, dict):
        raise ConfigError(f"rope settings are a {type(raw).__name__}, not a JSON object")
    rope = Keys(raw, frozenset({"partial_rotary_factor"}), "rope_scaling.")
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


def _vision(keys: "Keys", model_type: ModelType, projector_eps: Any) -> VisionConfig:
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
    keys.only(ONLY_VISION)
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
