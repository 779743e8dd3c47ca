"""Small models with random weights, built in memory for measuring: the code that serves runs them.

Every matrix repeats a few rows, since speed does not depend on what weights say.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moonlet import kernels
from moonlet.config import ModelConfig
from moonlet.model import Model, build_on_meta
from moonlet.model.packed import (
    PackedAttention,
    PackedDecoder,
    PackedEmbedding,
    PackedLayer,
    PackedLinear,
    PackedMoE,
    PackedNorm,
    PackedSwiGLU,
)
from moonlet.quant import bf16, encode, int4
from moonlet.quant.codec import ENCODERS
from moonlet.quant.types import TYPES

_POOL_ROWS = 16  # a panel
_GROUP = 32  # columns of INT4 that share a scale


@dataclass(frozen=True)
class Rows:
    """Rows as a file stores them; INT4 keeps its scales apart."""

    data: NDArray[np.uint8]
    scale: NDArray[np.uint16] | None = None


class Pool:
    """Random rows by type and width, encoded once."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], Rows] = {}

    def rows(self, kind: str, count: int, columns: int) -> Rows:
        if (kind, columns) not in self._rows:
            self._rows[kind, columns] = _encoded(kind, columns)
        few, times = self._rows[kind, columns], -(-count // _POOL_ROWS)
        scale = None if few.scale is None else np.tile(few.scale, (times, 1))[:count]
        return Rows(np.tile(few.data, (times, 1))[:count], scale)

    def matrix(self, kind: str, rows: int, columns: int, count: int = 1) -> kernels.Matrix:
        packed = kernels.Matrix(kernels.panel_type(kind), rows, columns, count)
        made = self.rows(kind, rows, columns)
        for index in range(count):
            packed.pack(kind, made.data, made.scale, index)
        return packed

    def experts(self, kind: str, count: int, hidden: int, width: int) -> kernels.Experts:
        panel = kernels.panel_type(kind)
        packed = kernels.Experts(count, hidden, width, panel, panel, panel)
        across, back = self.rows(kind, width, hidden), self.rows(kind, hidden, width)
        for expert in range(count):
            for which, made in (("gate", across), ("up", across), ("down", back)):
                packed.pack(expert, which, kind, made.data, made.scale)
        return packed


def _encoded(kind: str, columns: int) -> Rows:
    values = np.random.default_rng(0).standard_normal((_POOL_ROWS, columns), np.float32)
    values *= np.float32(0.1 * columns**-0.5)  # layers add little, so that tokens stay different
    if kind in ENCODERS:
        return Rows(encode(kind, values))
    if kind in TYPES:  # any bytes are such a block; small ones leave its scale a finite number
        shape = _POOL_ROWS, TYPES[kind].row_bytes(columns)
        return Rows(np.random.default_rng(0).integers(0x38, size=shape, dtype=np.uint8))
    codes, scales = int4.encode(values)
    return Rows(codes.view(np.uint8), bf16.from_float32(scales))


def packed_slice(pool: Pool, config: ModelConfig, kind: str, rest: str = "Q8_0") -> Model:
    """`config` with experts and dense layers of type `kind`, everything else of type `rest`."""
    c = config
    model = build_on_meta(c)
    ones = np.ones(max(c.hidden_size, c.kv_lora_rank, c.q_lora_rank or 0), np.float32)
    norm = PackedNorm(ones[: c.hidden_size], c.rms_norm_eps)

    def attention(index: int) -> PackedAttention:
        q_out = c.num_attention_heads * c.qk_head_dim
        queries = (pool.matrix(rest, q_out, c.hidden_size),)
        if c.q_lora_rank is not None:
            queries = (
                pool.matrix(rest, c.q_lora_rank, c.hidden_size),
                ones[: c.q_lora_rank],
                pool.matrix(rest, q_out, c.q_lora_rank),
            )
        heads, rank = c.num_attention_heads, c.kv_lora_rank
        return PackedAttention(
            c, index, norm, queries,
            pool.matrix(rest, c.latent_size, c.hidden_size), ones[:rank],
            pool.matrix(rest, rank, c.qk_nope_head_dim, heads), pool.matrix(rest, c.v_head_dim, rank, heads),
            pool.matrix(rest, c.hidden_size, heads * c.v_head_dim),
        )  # fmt: skip

    def swiglu(width: int, kind: str) -> PackedSwiGLU:
        gate, up = (pool.matrix(kind, width, c.hidden_size) for _ in range(2))
        return PackedSwiGLU(norm, kernels.Ffn(gate, up, pool.matrix(kind, c.hidden_size, width)))

    def moe() -> PackedMoE:
        # Unlike other weights a router's must differ, and be so small that no score is 1, or all tokens would ask
        # the same experts.
        values = np.random.default_rng(1).standard_normal(
            (c.n_routed_experts, c.hidden_size), np.float32
        ) * np.float32(c.hidden_size**-0.5)
        gate = kernels.Matrix("F32", c.n_routed_experts, c.hidden_size)
        gate.pack("F32", values.view(np.uint8))
        bias = np.zeros(c.n_routed_experts, np.float32) if c.has_correction_bias else None
        experts = pool.experts(kind, c.n_routed_experts, c.hidden_size, c.moe_intermediate_size)
        shared = (
            swiglu(c.n_shared_experts * c.moe_intermediate_size, kind)
            if c.n_shared_experts
            else None
        )
        return PackedMoE(c, norm, gate, bias, experts, shared)

    layers = [
        PackedLayer(
            attention(i),
            swiglu(c.intermediate_size, kind) if i < c.first_k_dense_replace else moe(),
        )
        for i in range(c.num_hidden_layers)
    ]
    values = np.random.default_rng(2).standard_normal((c.vocab_size, c.hidden_size), np.float32)
    embedding = PackedEmbedding("F32", values.view(np.uint8))
    model.language_model.model = PackedDecoder(c, embedding, layers, norm)  # type: ignore[assignment]
    head = pool.matrix(rest, c.vocab_size, c.hidden_size)
    model.language_model.lm_head = PackedLinear(head)  # type: ignore[assignment]
    model.cache_dtype = torch.bfloat16
    return model.eval().requires_grad_(False)


def float_slice(config: ModelConfig) -> Model:
    """`config` with random float32 weights."""
    model = build_on_meta(config).to(torch.float32).to_empty(device="cpu")
    model.init_weights()
    return model.eval().requires_grad_(False)
