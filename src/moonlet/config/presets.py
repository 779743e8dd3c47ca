"""The family by name, and two sizes that fit anywhere: `nano`, the embedded model, and `tiny`, for tests.

Sources: the published config.json of each repository (Hugging Face), for DeepSeek-V2-Lite the fields
that public loaders agree on.
"""

from dataclasses import replace

from moonlet.config.model import ModelConfig, QuantConfig, RopeConfig, VisionConfig
from moonlet.errors import ConfigError

_INT4 = QuantConfig(
    "int4",
    (
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ),
)
_MOONVIT_3D = VisionConfig(
    vt_hidden_size=1152,
    vt_intermediate_size=4304,
    vt_num_attention_heads=16,
    vt_num_hidden_layers=27,
)


def _yarn(theta: float, factor: float, beta_fast: float, mscale: float = 1.0) -> RopeConfig:
    return RopeConfig(theta, "yarn", factor, 4096, beta_fast, 1.0, mscale, mscale)


_K2 = ModelConfig(
    model_type="kimi_k2", vocab_size=163840, hidden_size=7168, intermediate_size=18432,
    moe_intermediate_size=2048, num_hidden_layers=61, num_attention_heads=64, q_lora_rank=1536,
    kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    n_routed_experts=384, n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=1,
    routed_scaling_factor=2.827, rms_norm_eps=1e-6, rope=_yarn(50_000.0, 32.0, 1.0),
    max_position_embeddings=131072, bos_token_id=163584, eos_token_ids=(163585,),
    quantization=QuantConfig("fp8"),
)  # fmt: skip
_K2_THINKING = replace(
    _K2,
    rope=_yarn(50_000.0, 64.0, 1.0),
    max_position_embeddings=262144,
    rms_norm_eps=1e-5,
    quantization=_INT4,
)
_K25 = replace(
    _K2_THINKING, model_type="kimi_k25", rope=_yarn(50_000.0, 64.0, 32.0), pad_token_id=163839,
    media_placeholder_token_id=163605, vision=_MOONVIT_3D,
)  # fmt: skip
_MOONLIGHT = ModelConfig(
    model_type="deepseek_v3", vocab_size=163840, hidden_size=2048, intermediate_size=11264,
    moe_intermediate_size=1408, num_hidden_layers=27, num_attention_heads=16, q_lora_rank=None,
    kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1,
    routed_scaling_factor=2.446, rope=RopeConfig(50_000.0), max_position_embeddings=8192,
    bos_token_id=163584, eos_token_ids=(163586,),
)  # fmt: skip
_DEEPSEEK_V3 = replace(
    _K2, model_type="deepseek_v3", vocab_size=129280, num_attention_heads=128, n_routed_experts=256,
    first_k_dense_replace=3, n_group=8, topk_group=4, routed_scaling_factor=2.5,
    rope=_yarn(10_000.0, 40.0, 32.0), max_position_embeddings=163840, bos_token_id=0,
    eos_token_ids=(1,), num_nextn_predict_layers=1,
)  # fmt: skip

# Where presets are published; the embedded model and the tiny one are not.
REPOSITORIES: dict[str, str] = {
    "kimi-k2.5": "moonshotai/Kimi-K2.5",
    "kimi-k2.6": "moonshotai/Kimi-K2.6",
    "kimi-k2": "moonshotai/Kimi-K2-Instruct",
    "kimi-k2-thinking": "moonshotai/Kimi-K2-Thinking",
    "kimi-vl-a3b": "moonshotai/Kimi-VL-A3B-Instruct",
    "moonlight-16b-a3b": "moonshotai/Moonlight-16B-A3B-Instruct",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "deepseek-r1": "deepseek-ai/DeepSeek-R1",
    "deepseek-v2-lite": "deepseek-ai/DeepSeek-V2-Lite",
    "glm-4.7-flash": "zai-org/GLM-4.7-Flash",
}

_PRESETS: dict[str, ModelConfig] = {
    "kimi-k2.5": _K25,
    "kimi-k2.6": replace(_K25, eos_token_ids=(163586,)),
    "kimi-k2": _K2,
    "kimi-k2-thinking": _K2_THINKING,
    "kimi-vl-a3b": replace(
        _MOONLIGHT, model_type="kimi_vl", rope=RopeConfig(800_000.0), max_position_embeddings=131072,
        media_placeholder_token_id=163605, vision=replace(_MOONVIT_3D, init_pos_emb_time=None),
    ),
    "moonlight-16b-a3b": _MOONLIGHT,
    "deepseek-v3": _DEEPSEEK_V3,
    "deepseek-r1": _DEEPSEEK_V3,
    "deepseek-v2-lite": replace(
        _MOONLIGHT, model_type="deepseek_v2", vocab_size=102400, intermediate_size=10944,
        scoring_func="softmax", topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
        rms_norm_eps=1e-6, rope=_yarn(10_000.0, 40.0, 32.0, 0.707), max_position_embeddings=163840,
        bos_token_id=None, eos_token_ids=(),
    ),
    "glm-4.7-flash": replace(
        _MOONLIGHT, model_type="glm4_moe_lite", vocab_size=154880, intermediate_size=10240,
        moe_intermediate_size=1536, num_hidden_layers=47, num_attention_heads=20, q_lora_rank=768,
        qk_nope_head_dim=192, v_head_dim=256, n_shared_experts=1, num_experts_per_tok=4,
        routed_scaling_factor=1.8, rope=RopeConfig(1_000_000.0), max_position_embeddings=202752,
        bos_token_id=None, eos_token_ids=(154820, 154827, 154829), pad_token_id=154820,
        num_nextn_predict_layers=1,
    ),
    # 4.1 M parameters, 768 tokens and Kimi's 256 special ones; `moonlet.nano` has the recipe.
    "nano": ModelConfig(
        model_type="kimi_k25", vocab_size=1024, hidden_size=160, intermediate_size=320,
        moe_intermediate_size=80, num_hidden_layers=5, num_attention_heads=4, q_lora_rank=96,
        kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
        n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1,
        routed_scaling_factor=1.414, rope=RopeConfig(10_000.0, "yarn", 4.0, 512, 32.0, 1.0, 1.0, 1.0),
        max_position_embeddings=2048, bos_token_id=768, eos_token_ids=(770,), pad_token_id=1023,
        media_placeholder_token_id=789,
        vision=VisionConfig(
            vt_hidden_size=96, vt_intermediate_size=288, vt_num_attention_heads=4, vt_num_hidden_layers=3,
            init_pos_emb_height=8, init_pos_emb_width=16,
        ),
    ),
    "tiny": ModelConfig(
        model_type="kimi_k25", vocab_size=512, hidden_size=64, intermediate_size=96,
        moe_intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, q_lora_rank=32,
        kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1,
        routed_scaling_factor=2.0, rope=_yarn(50_000.0, 64.0, 32.0), max_position_embeddings=8192,
        bos_token_id=256, eos_token_ids=(257, 258), pad_token_id=511, media_placeholder_token_id=277,
        dtype="float32",
        vision=VisionConfig(
            vt_hidden_size=48, vt_intermediate_size=96, vt_num_attention_heads=4, vt_num_hidden_layers=2,
            init_pos_emb_height=8, init_pos_emb_width=8,
        ),
    ),
}  # fmt: skip
PRESETS = tuple(_PRESETS)


def preset(name: str) -> ModelConfig:
    """The configuration of that name. Raises ConfigError with the known names."""
    if name.lower() not in _PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return _PRESETS[name.lower()]
