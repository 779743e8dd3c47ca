"""The sparse mixture of experts: router, routed experts as grouped matrix products, shared expert.

Router of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) and, with softmax scores, of DeepSeek-V2.

Shapes: T tokens, D hidden_size, E experts, K experts per token, F expert width, G groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.layers import SwiGLU


class Router(nn.Module):
    """Chooses K experts per token and their weights.

    While training, `load` [E] counts how often each expert was chosen since the trainer reset it.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.n_group, self.topk_group = config.n_group, config.topk_group
        self.scoring_func = config.scoring_func
        self.group_score_size = 2 if config.topk_method == "noaux_tc" else 1
        self.norm_topk_prob = config.norm_topk_prob
        self.routed_scaling_factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias = (
            torch.zeros(config.n_routed_experts, dtype=torch.float32)
            if config.has_correction_bias
            else None
        )
        self.register_buffer("e_score_correction_bias", bias)
        self.load: Tensor | None = None

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """topk_ids [T, K] and topk_weights [T, K] float32; scores are computed in float32."""
        logits_TE = F.linear(x_TD.float(), self.weight.float())
        scores_TE = logits_TE.sigmoid() if self.scoring_func == "sigmoid" else logits_TE.softmax(-1)
        topk_ids = self._choose(scores_TE.detach())
        # The bias steers the choice only: weights come from the unbiased scores.
        topk_weights = scores_TE.gather(-1, topk_ids)
        if self.norm_topk_prob:
            topk_weights = topk_weights / (topk_weights.sum(-1, keepdim=True) + 1e-20)
        if self.training:
            self._count(topk_ids)
        return topk_ids, topk_weights * self.routed_scaling_factor

    def _choose(self, scores_TE: Tensor) -> Tensor:
        if self.e_score_correction_bias is not None:
            scores_TE = scores_TE + self.e_score_correction_bias
        if self.n_group > 1:
            # A group is as good as its best experts: the two best, or the best one without a bias.
            groups_TGe = scores_TE.unflatten(-1, (self.n_group, -1))
            size = min(self.group_score_size, groups_TGe.shape[-1])
            kept = (
                groups_TGe.topk(size, dim=-1).values.sum(-1).topk(self.topk_group, dim=-1).indices
            )
            dropped = torch.ones_like(groups_TGe[..., 0], dtype=torch.bool).scatter(-1, kept, False)
            scores_TE = groups_TGe.masked_fill(dropped[..., None], -torch.inf).flatten(-2)
        return scores_TE.topk(self.top_k, dim=-1, sorted=False).indices

    @torch.no_grad()
    def _count(self, topk_ids: Tensor) -> None:
        counts = topk_ids.flatten().bincount(minlength=self.weight.shape[0])
        self.load = counts if self.load is None else self.load + counts


class Experts(nn.Module):
    """All routed experts of a layer as two stacks, computed for their own tokens only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, hidden, width = (
            config.n_routed_experts,
            config.hidden_size,
            config.moe_intermediate_size,
        )
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs, weighted: [T, D]."""
        chosen = topk_ids.flatten()
        order = chosen.argsort(stable=True)  # (token, choice) pairs, those of one expert together
        tokens = order // topk_ids.shape[1]
        counts_E = chosen.bincount(minlength=self.gate_up_proj.shape[0])
        gate, up = grouped_linear(x_TD[tokens], self.gate_up_proj, counts_E).chunk(2, dim=-1)
        y = grouped_linear(F.silu(gate) * up, self.down_proj, counts_E)
        weighted = y.float() * topk_weights.flatten()[order, None]
        out = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
        return out.index_add(0, tokens, weighted).to(x_TD.dtype)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Rows of `x` [rows, in], grouped by expert as `counts` [E] says, through weight [E, out, in]."""
    if x.shape[-1] * x.element_size() % 16 == 0 and weight.shape[1] * x.element_size() % 16 == 0:
        return F.grouped_mm(x, weight.mT, offs=counts.cumsum(0).to(torch.int32))
    # The grouped kernel wants 16-byte strides; views of the stack keep odd sizes working.
    parts = zip(x.split(counts.tolist()), weight.unbind(0), strict=True)
    return torch.cat([F.linear(rows, matrix) for rows, matrix in parts])


class MoE(nn.Module):
    """shared_experts(x) + sum of the routed experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = None
        if config.n_shared_experts:
            width = config.n_shared_experts * config.moe_intermediate_size
            self.shared_experts = SwiGLU(config.hidden_size, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_TD = x_BTD.flatten(0, -2)
        topk_ids, topk_weights = self.gate(x_TD)
        out = self.experts(x_TD, topk_ids, topk_weights).view_as(x_BTD)
        return out if self.shared_experts is None else out + self.shared_experts(x_BTD)
