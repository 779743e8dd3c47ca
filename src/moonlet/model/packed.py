"""Quantized leaves: they take the places of float modules and compute with `moonlet.kernels` on the CPU.

Same module tree, same flow; weights stay packed, activations are float32 between the calls. Arrays
pass as numpy views, because handing a tensor over costs ten times as much as handing an array over.

Shapes as in `moonlet.model.attention` and `moonlet.model.moe`; N is B * T, the tokens of a batch in a row.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from moonlet import kernels
from moonlet.config import ModelConfig
from moonlet.errors import NotSupportedError
from moonlet.model.cache import Paged, Past
from moonlet.quant import decode

Floats = NDArray[np.float32]


def _rows(x: Tensor) -> Floats:
    """x [..., D] as an array [N, D] without gaps."""
    return x.reshape(-1, x.shape[-1]).contiguous().numpy()


class PackedLinear(nn.Module):
    def __init__(self, matrix: kernels.Matrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        out = torch.from_numpy(self.matrix(_rows(x)))
        return out.view(*x.shape[:-1], out.shape[-1])


class PackedEmbedding(nn.Module):
    """Rows are decoded as they are asked for, from the bytes as stored."""

    def __init__(self, type_name: str, data: NDArray[np.uint8]) -> None:
        super().__init__()
        self.type_name = type_name
        self.data = data

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = self.data[input_ids.flatten().numpy()]
        values = torch.from_numpy(decode(self.type_name, rows))
        return values.view(*input_ids.shape, values.shape[-1])


class PackedNorm(nn.Module):
    """RMSNorm in one call."""

    def __init__(self, weight: Floats, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(kernels.rms_norm(_rows(x), self.weight, self.eps)).view_as(x)


class PackedDecoder(nn.Module):
    """All layers in one call where none of them was kept as floats: what stands between two calls takes
    as long as reading a small matrix."""

    def __init__(
        self,
        config: ModelConfig,
        embed_tokens: PackedEmbedding,
        layers: "list[PackedLayer]",
        norm: PackedNorm,
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens, self.layers, self.norm = embed_tokens, nn.ModuleList(layers), norm
        parts = [layer.native() for layer in layers]
        whole = [part for part in parts if part is not None]
        self.together = kernels.Layers(whole) if len(whole) == len(parts) else None

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], past: Past, absorbed: bool | None
    ) -> Tensor:
        if self.together is None:
            return self.one_by_one(x, rotation, past, absorbed)
        cos, sin, p = _place(self.config, rotation, past, absorbed)
        out = self.together(_rows(x), cos, sin, p.pages, p.table, p.sequence, p.position)
        return self.norm(torch.from_numpy(out).view_as(x))

    def one_by_one(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], past: Past, absorbed: bool | None
    ) -> Tensor:
        """The same, with every part of a layer a module that can be watched."""
        for layer in self.layers:
            x = layer(x, rotation, past, absorbed)
        return self.norm(x)


def _place(
    config: ModelConfig, rotation: tuple[Tensor, Tensor], past: Past, absorbed: bool | None
) -> tuple[Floats, Floats, Paged]:
    """Angles and cache as the kernels take them; refused is what they cannot compute."""
    if absorbed is False or past.segments is not None:
        raise NotSupportedError(
            "a quantized model computes attention in its absorbed form, one document at a time"
        )
    cos, sin = (_rows(angle) for angle in rotation)
    return cos, sin, past.paged(config)


class PackedLayer(nn.Module):
    """A decoder layer whose two parts take their norm and their residual sum along."""

    def __init__(
        self, self_attn: "PackedAttention", mlp: "PackedSwiGLU | FloatSwiGLU | PackedMoE"
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        past: Past,
        absorbed: bool | None = None,
    ) -> Tensor:
        return self.mlp(self.self_attn(x, rotation, past, absorbed))

    def native(self) -> tuple[kernels.Attention, kernels.Dense | kernels.Moe] | None:
        """Both parts as the kernels know them; None where floats were kept, which take calls between."""
        mlp = self.mlp
        if isinstance(mlp, FloatSwiGLU):
            return None
        if isinstance(mlp, PackedMoE) and isinstance(mlp.shared, FloatSwiGLU):
            return None
        return self.self_attn.layer, mlp.layer


class PackedSwiGLU(nn.Module):
    """x + ffn(norm(x)) in one call."""

    def __init__(self, norm: PackedNorm, ffn: kernels.Ffn) -> None:
        super().__init__()
        self.norm, self.ffn = norm, ffn
        self.layer = kernels.Dense(norm.weight, norm.eps, ffn)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.layer(_rows(x))).view_as(x)


class FloatSwiGLU(nn.Module):
    """The same where the weights were kept as floats."""

    def __init__(
        self, norm: PackedNorm, gate: kernels.Matrix, up: kernels.Matrix, down: kernels.Matrix
    ) -> None:
        super().__init__()
        self.norm, self.gate, self.up, self.down = norm, gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        return x + self.without_sum(x)

    def without_sum(self, x: Tensor) -> Tensor:
        inner_ND = _rows(self.norm(x))
        gate = torch.from_numpy(self.gate(inner_ND))
        hidden = F.silu(gate) * torch.from_numpy(self.up(inner_ND))
        return torch.from_numpy(self.down(hidden.numpy())).view_as(x)


class PackedMoE(nn.Module):
    """x + moe(norm(x)): router, routed experts and shared expert in one call, however many the tokens.

    `shared` has the same norm; where it is kept as floats, it is computed apart.
    """

    def __init__(
        self,
        config: ModelConfig,
        norm: PackedNorm,
        gate: kernels.Matrix,
        bias: Floats | None,
        experts: kernels.Experts,
        shared: PackedSwiGLU | FloatSwiGLU | None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.gate, self.bias, self.experts, self.shared = gate, bias, experts, shared
        self.routing = {
            "top_k": config.num_experts_per_tok,
            "sigmoid": config.scoring_func == "sigmoid",
            "normalize": config.norm_topk_prob,
            "scaling": config.routed_scaling_factor,
            "groups": config.n_group,
            "top_groups": config.topk_group,
            "group_best": 2 if config.topk_method == "noaux_tc" else 1,
        }
        together = shared.ffn if isinstance(shared, PackedSwiGLU) else None
        self.layer = kernels.Moe(
            norm.weight, norm.eps, gate, bias, experts, together, **self.routing
        )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.from_numpy(self.layer(_rows(x))).view_as(x)
        return out + self.shared.without_sum(x) if isinstance(self.shared, FloatSwiGLU) else out


class PackedAttention(nn.Module):
    """x + attention(norm(x)), absorbed, over a bfloat16 cache, in one call.

    queries: (q_proj,) or (q_a_proj, gain of the norm, q_b_proj). k_b: H matrices [C, N], v_b: H
    matrices [O, C], the halves of kv_b_proj that are folded into query and output.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer_idx: int,
        norm: PackedNorm,
        queries: tuple[kernels.Matrix, Floats, kernels.Matrix] | tuple[kernels.Matrix],
        kv_a: kernels.Matrix,
        kv_norm: Floats,
        k_b: kernels.Matrix,
        v_b: kernels.Matrix,
        output: kernels.Matrix,
    ) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.config = config
        self.norm = norm
        self.queries, self.kv_a, self.kv_norm = queries, kv_a, kv_norm
        self.k_b, self.v_b, self.output = k_b, v_b, output
        q_a, q_norm = queries[:2] if len(queries) == 3 else (None, None)
        self.layer = kernels.Attention(
            norm.weight, norm.eps, q_a, q_norm, queries[-1], kv_a, kv_norm, k_b, v_b, output,
            config.qk_rope_head_dim, config.latent_norm_eps, config.softmax_scale,
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        past: Past,
        absorbed: bool | None = None,
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]; `absorbed` False, which asks for the plain form, is refused."""
        cos, sin, p = _place(self.config, rotation, past, absorbed)
        pages = p.pages[self.layer_idx]
        out = self.layer(_rows(x), cos, sin, pages, p.table, p.sequence, p.position)
        return torch.from_numpy(out).view_as(x)
