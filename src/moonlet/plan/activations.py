"""What a forward pass keeps for its backward pass: numbers per token, tensor by tensor.

Two ways to count. Fused kernels keep only what they need: the input of a norm but not its normalised form,
the halves that go into SwiGLU but not their SiLU, no attention matrix (FlashAttention, arXiv 2205.14135), as
in Megatron-Core (arXiv 2205.05198, for the method). Plain torch modules, as in `moonlet train`, keep
every intermediate that the formula of a gradient names; those are the `eager` columns.

Letters: D hidden_size, Q q_lora_rank, L latent_size, H heads, F width of the MLP, K experts per token, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moonlet.config import ModelConfig

Recompute = Literal["none", "selective", "full"]
# K2 (arXiv 2507.20534, section 2.4.3) recomputes these four groups and stores the inputs of the experts' up
# projection and of SwiGLU in FP8.
Group = Literal["kept", "norm", "swiglu", "mla_up", "moe_down"]
FP8_BYTES = 1 + 4 / 128  # E4M3 in tiles of 1x128, one float32 scale each
_TOLD = "a layer's input"


@dataclass(frozen=True)
class Saved:
    """One tensor: numbers per token with fused kernels, and in plain torch where that differs.

    kind: "float" has the run's activation type, "fp8" may be stored in FP8, "f32" is always float32, "int" int64.
    """

    name: str
    fused: int
    eager: int
    group: Group = "kept"
    kind: Literal["float", "fp8", "f32", "int"] = "float"


def layer_saved(c: ModelConfig, layer: int) -> list[Saved]:
    """Everything that decoder layer `layer` keeps of one token."""
    mlp = _dense(c) if layer < c.first_k_dense_replace else _moe(c)
    return [*_attention(c), *mlp]


def head_saved(c: ModelConfig) -> list[Saved]:
    """Of the last norm, the head and the loss, for a token that has a target."""
    d = c.hidden_size
    return [
        Saved(_TOLD, d, d),
        Saved("final norm", d, 2 * d, "norm"),
        Saved("log-probabilities", c.vocab_size, c.vocab_size, kind="f32"),
        Saved("targets", 1, 1, kind="int"),
    ]


def embedding_saved(c: ModelConfig) -> list[Saved]:
    """Of the lookup: the ids, and the cosines and sines of the positions."""
    return [
        Saved("ids", 1, 1, kind="int"),
        Saved("rotation", c.qk_rope_head_dim, c.qk_rope_head_dim, kind="f32"),
    ]


def _attention(c: ModelConfig) -> Iterator[Saved]:
    d, h = c.hidden_size, c.num_attention_heads
    qk, v = h * c.qk_head_dim, h * c.v_head_dim
    wide = h * max(c.qk_head_dim, c.v_head_dim)  # plain torch pads heads to one width
    yield Saved(_TOLD, d, d)
    yield Saved("input norm", d, 2 * d, "norm")
    if c.q_lora_rank is not None:
        yield Saved("query latent", c.q_lora_rank, c.q_lora_rank)
        yield Saved("query norm", c.q_lora_rank, 2 * c.q_lora_rank, "norm")
    yield Saved("key-value latent", c.latent_size, c.latent_size)
    yield Saved("key-value norm", c.latent_size, c.latent_size + c.kv_lora_rank, "norm")
    yield Saved("queries", qk, wide, "mla_up")
    yield Saved("keys", qk, wide, "mla_up")
    yield Saved("values", v, _values(c), "mla_up")
    yield Saved("attention output", v, wide + v)
    yield Saved("log-sum-exp", h, h, kind="f32")
    yield Saved("scales of three norms", 0, 2 + (c.q_lora_rank is not None), kind="f32")


def _values(c: ModelConfig) -> int:
    """Where they are not narrower than keys they stay a view of all that the up projection made."""
    if c.qk_head_dim > c.v_head_dim:
        return c.num_attention_heads * c.qk_head_dim
    return c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)


def _dense(c: ModelConfig) -> Iterator[Saved]:
    yield from _before_mlp(c)
    yield from _swiglu(c.intermediate_size)


def _moe(c: ModelConfig) -> Iterator[Saved]:
    k, width = c.num_experts_per_tok, c.moe_intermediate_size
    yield from _before_mlp(c)
    yield Saved("router scores", c.n_routed_experts, c.n_routed_experts, kind="f32")
    yield Saved("expert weights", k, 2 * k + 1, kind="f32")
    yield Saved("expert numbers", k, 3 * k, kind="int")
    yield Saved("expert inputs", k * c.hidden_size, k * c.hidden_size, kind="fp8")
    yield Saved("expert gate and up", 2 * k * width, 2 * k * width, kind="fp8")
    yield Saved("expert SwiGLU", k * width, 2 * k * width, "swiglu")
    yield Saved("expert outputs", k * c.hidden_size, 2 * k * c.hidden_size, "moe_down")
    if c.n_shared_experts:
        yield from _swiglu(c.n_shared_experts * width)


def _before_mlp(c: ModelConfig) -> Iterator[Saved]:
    yield Saved("MLP's residual", c.hidden_size, c.hidden_size)
    yield Saved("MLP norm", c.hidden_size, 2 * c.hidden_size, "norm")
    yield Saved("scale of the MLP's norm", 0, 1, kind="f32")


def _swiglu(width: int) -> Iterator[Saved]:
    yield Saved("gate and up", 2 * width, 2 * width, kind="fp8")
    yield Saved("SwiGLU", width, 2 * width, "swiglu")


@dataclass(frozen=True)
class Storage:
    """How activations are kept: `float_bytes` of the run's type, FP8 where K2 uses it, which recomputation."""

    float_bytes: int
    fp8: bool = False
    fused: bool = True
    recompute: Recompute = "none"

    def kept_bytes(self, rows: list[Saved]) -> float:
        """Per token, from the forward to the backward pass."""
        if self.recompute == "full":
            rows = [row for row in rows if row.name == _TOLD]
        elif self.recompute == "selective":
            rows = [row for row in rows if row.group == "kept"]
        return sum(self._bytes(row) for row in rows)

    def working_bytes(self, rows: list[Saved]) -> float:
        """Per token, only while the layer's own backward pass runs: what is recomputed for it."""
        return sum(self._bytes(row) for row in rows) - self.kept_bytes(rows)

    def _bytes(self, row: Saved) -> float:
        numbers = row.fused if self.fused else row.eager
        sizes = {"float": self.float_bytes, "f32": 4, "int": 8}
        fp8 = FP8_BYTES if self.fp8 else self.float_bytes
        return numbers * (fp8 if row.kind == "fp8" else sizes[row.kind])
