"""What a model is: one frozen dataclass for the text network, one for the vision tower.

Field names are the keys of the published config.json, so that a value can be found by grep. Reading
and writing that file is in `read.py` and `write.py`; this module only holds values and refuses impossible ones.
"""

import math
from dataclasses import dataclass
from typing import Literal

from moonlet.errors import ConfigError

ModelType = Literal["kimi_k25", "kimi_vl", "kimi_k2", "deepseek_v3", "deepseek_v2", "glm4_moe_lite"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions of the text network, plain (`factor` 1) or stretched by YaRN.

    `mscale` and `mscale_all_dim` are YaRN's attention temperatures as DeepSeek-V2 uses them
    (arXiv 2405.04434, appendix B.2 and the published code).
    """

    theta: float
    type: Literal["default", "yarn"] = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        _require(1.0 < self.theta < 1e12, "rope_theta", self.theta, "a number above 1")
        _require(1.0 <= self.factor < 1e6, "rope factor", self.factor, "a number of at least 1")
        _require(
            0 < self.beta_slow <= self.beta_fast < 1e6,
            "beta_slow and beta_fast",
            (self.beta_slow, self.beta_fast),
            "0 < beta_slow <= beta_fast",
        )
        _positive(self, ("original_max_position_embeddings",))
        for name in ("mscale", "mscale_all_dim"):
            _require(0 <= getattr(self, name) < 1e3, name, getattr(self, name), "0 to 1000")

    @property
    def softmax_multiplier(self) -> float:
        """Factor on 1/sqrt(d): the square of YaRN's `0.1 * mscale_all_dim * ln(factor) + 1`."""
        if self.type == "default" or not self.mscale_all_dim:
            return 1.0
        return _yarn_mscale(self.factor, self.mscale_all_dim) ** 2

    @property
    def amplitude(self) -> float:
        """Factor on cos and sin: 1 whenever `mscale` equals `mscale_all_dim`."""
        if self.type == "default":
            return 1.0
        if self.mscale and self.mscale_all_dim:
            return _yarn_mscale(self.factor, self.mscale) / _yarn_mscale(
                self.factor, self.mscale_all_dim
            )
        return _yarn_mscale(self.factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True)
class VisionConfig:
    """MoonViT (Kimi-VL) and MoonViT-3D (K2.5): the tower and the projector behind it.

    `init_pos_emb_time` is None for MoonViT, which takes single images only.
    """

    vt_hidden_size: int
    vt_intermediate_size: int
    vt_num_attention_heads: int
    vt_num_hidden_layers: int
    patch_size: int = 14
    init_pos_emb_height: int = 64
    init_pos_emb_width: int = 64
    init_pos_emb_time: int | None = 4
    merge_kernel_size: tuple[int, int] = (2, 2)
    projector_ln_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = ("vt_hidden_size", "vt_intermediate_size", "vt_num_attention_heads", "patch_size")
        _positive(self, (*sizes, "init_pos_emb_height", "init_pos_emb_width"))
        _whole(self, "vt_num_hidden_layers", 1, 1000)
        head_dim, rest = divmod(self.vt_hidden_size, self.vt_num_attention_heads)
        _require(rest == 0 and head_dim % 4 == 0, "vt_hidden_size", self.vt_hidden_size,
                 f"a multiple of 4 * vt_num_attention_heads ({self.vt_num_attention_heads})")  # fmt: skip
        sides = [_is_whole(side, 1, 16) for side in self.merge_kernel_size]
        _require(
            sides == [True, True],
            "merge_kernel_size",
            self.merge_kernel_size,
            "two numbers from 1 to 16",
        )
        if self.init_pos_emb_time is not None:
            _whole(self, "init_pos_emb_time", 1, 1024)

    @property
    def merged_size(self) -> int:
        """Width of one merged cell of patches, the projector's inner width."""
        return self.vt_hidden_size * self.merge_kernel_size[0] * self.merge_kernel_size[1]


@dataclass(frozen=True)
class QuantConfig:
    """How the weights are stored on disk; None in `ModelConfig.quantization` means as floats.

    `int4`: compressed-tensors pack-quantized, group 32, routed experts. `fp8`: e4m3 in 128x128 blocks.
    """

    method: Literal["int4", "fp8"]
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A model of the family: text network, and vision tower when there is one."""

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    first_k_dense_replace: int
    rope: RopeConfig
    max_position_embeddings: int
    n_group: int = 1
    topk_group: int = 1
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = "noaux_tc"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    rms_norm_eps: float = 1e-5
    # The published code and transformers use 1e-6 in q_a_layernorm and kv_a_layernorm whatever
    # rms_norm_eps says; vLLM, SGLang and llama.cpp use rms_norm_eps there.
    latent_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    num_nextn_predict_layers: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    media_placeholder_token_id: int | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    quantization: QuantConfig | None = None
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        _positive(self, (
            "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
            "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
            "v_head_dim", "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group",
            "max_position_embeddings",
        ))  # fmt: skip
        if self.q_lora_rank is not None:
            _positive(self, ("q_lora_rank",))
        _whole(self, "num_hidden_layers", 1, 10_000)
        _require(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", self.qk_rope_head_dim, "even")
        _require(
            0 <= self.n_shared_experts <= 64, "n_shared_experts", self.n_shared_experts, "0 to 64"
        )
        _whole(self, "first_k_dense_replace", 0, self.num_hidden_layers)
        _whole(self, "num_nextn_predict_layers", 0, 64)
        _require(
            0 < self.routed_scaling_factor < 1e6,
            "routed_scaling_factor",
            self.routed_scaling_factor,
            "above 0",
        )
        _require(
            0 < self.initializer_range < 1e3, "initializer_range", self.initializer_range, "above 0"
        )
        _require(0 < self.rms_norm_eps < 1, "rms_norm_eps", self.rms_norm_eps, "between 0 and 1")
        _require(self.n_routed_experts % self.n_group == 0, "n_routed_experts",
                 self.n_routed_experts, f"a multiple of n_group ({self.n_group})")  # fmt: skip
        _require(self.topk_group <= self.n_group, "topk_group", self.topk_group,
                 f"at most n_group ({self.n_group})")  # fmt: skip
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        _require(self.num_experts_per_tok <= reachable, "num_experts_per_tok",
                 self.num_experts_per_tok, f"at most the {reachable} experts it can choose from")  # fmt: skip
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                _whole(self, name, 0, self.vocab_size - 1)
        _require(all(_is_whole(end, 0, self.vocab_size - 1) for end in self.eos_token_ids), "eos_token_id",
                 self.eos_token_ids, f"ids below vocab_size ({self.vocab_size})")  # fmt: skip
        if self.vision is not None:
            _whole(self, "media_placeholder_token_id", 0, self.vocab_size - 1)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_size(self) -> int:
        """Numbers cached per token and layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on q.k before the softmax, YaRN's temperature included."""
        return self.qk_head_dim**-0.5 * self.rope.softmax_multiplier

    @property
    def has_correction_bias(self) -> bool:
        """Whether the router chooses by score + bias (auxiliary-loss-free balancing)."""
        return self.topk_method == "noaux_tc"


_SIZE_LIMIT = 2**31 - 1  # no dimension of a real model comes near; keeps products inside 64 bits


def _positive(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        _whole(config, name, 1, _SIZE_LIMIT)


def _whole(config: object, name: str, low: int, high: int) -> None:
    value = getattr(config, name)
    _require(_is_whole(value, low, high), name, value, f"a whole number from {low} to {high}")


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _require(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value!r}, but it must be {wanted}")
