"""ModelConfig -> config.json, in the published spelling."""

from typing import Any

from moonlet.config.keys import ONLY_VISION, OPTIONAL, REQUIRED
from moonlet.config.model import ModelConfig, VisionConfig
from moonlet.config.quantization import write_quantization


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
    names = (*REQUIRED, *OPTIONAL, "first_k_dense_replace", "n_group", "topk_group", "scoring_func",
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
        out["quantization_config"] = write_quantization(config.quantization)
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
    out |= {name: values[0] for name, values in ONLY_VISION.items()}
    out |= {
        "mm_hidden_size": vision.vt_hidden_size,
        "text_hidden_size": config.hidden_size,
        "projector_ln_eps": vision.projector_ln_eps,
    }
    return out
