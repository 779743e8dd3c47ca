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
from moonlet.config.model import ModelConfig, ModelType, RopeConfig, VisionConfig
from moonlet.config.quantization import read_quantization
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
    if model_type is None:
        raise ConfigError("model_type is missing")
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
    image_token = top.take("image_token_id", None)
    placeholder = top.take("media_placeholder_token_id", image_token)
    if image_token not in (None, placeholder):
        raise ConfigError(
            f"image_token_id {image_token!r} contradicts media_placeholder_token_id {placeholder!r}"
        )
    projector_eps = top.take("projection_layer_norm_eps", 1e-5)
    projection = top.take("projection_hidden_size", None)
    eos = top.take("eos_token_id", None)
    top.only({"tie_word_embeddings": ONLY["tie_word_embeddings"]})
    shared = {
        "bos_token_id": top.take("bos_token_id", None),
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
    # Either part may know more ends than the other: every one of them ends an answer.
    text.values["eos_token_id"] = _token_ids(text.peek("eos_token_id", None)) + _token_ids(eos)
    text_type = text.peek("model_type", "deepseek_v3")
    vision = _vision(Keys(vision_raw, INERT_VISION, "vision_config."), model_type, projector_eps)
    wanted = {"projection_hidden_size": (projection, vision.vt_hidden_size)}
    _same(
        wanted
        | {
            "vision_config.text_hidden_size": (
                vision_raw.get("text_hidden_size"),
                text_raw.get("hidden_size"),
            )
        }
    )
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
    fields["quantization"] = read_quantization(keys.take("quantization_config", None))
    qk_head_dim = keys.take("qk_head_dim", None)
    keys.only(ONLY)
    keys.finish()
    for name in ("routed_scaling_factor", "rms_norm_eps", "initializer_range"):
        if name in fields:
            fields[name] = _number(name, fields[name])
    if not isinstance(fields["norm_topk_prob"], bool):
        raise ConfigError(f"norm_topk_prob is {fields['norm_topk_prob']!r}, not true or false")
    config = _build(ModelConfig, {"model_type": model_type, **fields, **more})
    _same({"qk_head_dim": (qk_head_dim, config.qk_head_dim)})
    return config


def _same(sizes: dict[str, tuple[Any, int]]) -> None:
    """Refuses a size that a file repeats in contradiction to the others."""
    for name, (found, wanted) in sizes.items():
        if found not in (None, wanted):
            raise ConfigError(f"{name} is {found!r}, but the other sizes make it {wanted}")


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


def _rope(keys: Keys) -> RopeConfig:
    """From `rope_theta` + `rope_scaling`, or from the one dict `rope_parameters` of transformers 5."""
    parameters, scaling = keys.take("rope_parameters", None), keys.take("rope_scaling", None)
    if parameters is not None and scaling is not None:
        raise ConfigError(
            "rope_parameters and rope_scaling are both given; which one counts is open"
        )
    raw = parameters or scaling or {}
    if not isinstance(raw, dict):
        raise ConfigError(f"rope settings are a {type(raw).__name__}, not a JSON object")
    rope = Keys(raw, frozenset(), "rope_scaling.")
    older = rope.take("type", None)
    kind = rope.take("rope_type", older or "default")
    inner, outer = rope.take("rope_theta", None), keys.take("rope_theta", None)
    if None not in (inner, outer) and inner != outer:
        raise ConfigError(f"rope_theta is given twice, as {outer!r} and {inner!r}")
    if older not in (None, kind):
        raise ConfigError(f"the rope type is given twice, as {older!r} and {kind!r}")
    theta = outer if inner is None else inner
    if theta is None:
        raise ConfigError("rope_theta is missing")
    rope.only({"partial_rotary_factor": ONLY["partial_rotary_factor"]})
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
    _same(
        {
            "vision_config.mm_hidden_size": (
                keys.take("mm_hidden_size", None),
                fields["vt_hidden_size"],
            )
        }
    )
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


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if not all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31 for item in ids
    ):
        raise ConfigError(f"eos_token_id is {value!r}, not a token id or a list of them")
    return tuple(dict.fromkeys(ids))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        raise ConfigError(f"{name} is {value!r}, not a usable number")
    return float(value)


def _build(kind: type, fields: dict[str, Any]) -> Any:
    try:
        return kind(**fields)
    except TypeError as error:  # a comparison inside __post_init__ met a value of the wrong type
        raise ConfigError(f"a value has the wrong type: {error}") from error
