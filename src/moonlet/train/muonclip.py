"""MuonClip: Muon for matrices, AdamW for the rest, QK-Clip and the router bias after each step.

Kimi K2 (arXiv 2507.20534), algorithm 1, on the Muon of Moonlight (arXiv 2502.16982):

    M <- mu M + G;   O = orthogonalize(G + mu M)               (classic momentum, Nesterov)
    W <- W (1 - lr wd) - lr 0.2 sqrt(max(n, m)) O              (W: n x m)

A stack of experts [E, n, m] is E matrices, and the fused `gate_up_proj` [E, 2F, D] is 2E of them: gate
and up are different maps. The router's matrix is a matrix. Embedding, head, norms, biases, the patch
convolution and the table of positions get AdamW with the same learning rate, which the factor 0.2 makes fit.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Quintic iteration of K. Jordan's Muon (github.com/KellerJordan/Muon): singular values to about 0.7..1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
RMS_MATCH = 0.2  # RMS of AdamW's update (arXiv 2502.16982, section 2.2)
BETAS = (0.9, 0.95)
_NOT_MATRICES = ("embed_tokens", "lm_head")


def orthogonalize(stack: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest semi-orthogonal matrices, approximately, of `stack` [..., n, m]; zero stays zero."""
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[-2] > stack.shape[-1]
    x = (stack.mT if tall else stack).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # not in place: x may alias the momentum
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(stack.dtype)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon updates the parameter; AdamW has all others."""
    if any(part in name for part in _NOT_MATRICES):
        return False
    return parameter.ndim == 2 or (parameter.ndim == 3 and ".experts." in name)


class MuonClip:
    """The optimizer of a `Model`.

    Every trainable parameter is in exactly one of `matrices` and `others`, which map names to
    parameters. `step` takes the learning rate, so a schedule is just a function of the step.
    """

    def __init__(
        self,
        model: nn.Module,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        tau: float = 100.0,
        bias_rate: float = 1e-3,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is that of the Newton-Schulz products; `bias_rate` moves the router's biases."""
        self.model = model
        self.weight_decay, self.momentum, self.tau, self.bias_rate = (
            weight_decay,
            momentum,
            tau,
            bias_rate,
        )
        self.dtype = dtype
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.matrices = {n: p for n, p in trainable.items() if is_matrix(n, p)}
        self.others = {n: p for n, p in trainable.items() if n not in self.matrices}
        self.buffers = {n: torch.zeros_like(p) for n, p in self.matrices.items()}
        self.adamw = torch.optim.AdamW(
            self.others.values(), betas=BETAS, weight_decay=weight_decay, foreach=True
        )
        # Matrices of one shape are orthogonalized together, which is much faster than one by one.
        self._shapes: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, parameter in self.matrices.items():
            self._shapes[_as_matrices(name, parameter).shape[1:]].append(name)

    @torch.no_grad()
    def step(self, lr: float) -> dict[str, float]:
        """One update from the gradients in place; clips, balances, and returns what it saw.

        The figures are `max_logit` (largest over layers and heads), `clipped_heads`, and `max_violation`
        (load of the busiest expert over the mean, minus 1).
        """
        for names in self._shapes.values():
            self._muon(names, lr)
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        return {**clip_heads(self.model, self.tau), **balance_experts(self.model, self.bias_rate)}

    def _muon(self, names: list[str], lr: float) -> None:
        parameters = [self.matrices[name] for name in names]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        buffers = [self.buffers[name] for name in names]
        torch._foreach_mul_(buffers, self.momentum)
        torch._foreach_add_(buffers, gradients)
        stacks = [
            _as_matrices(name, gradient.add(buffer, alpha=self.momentum))
            for name, gradient, buffer in zip(names, gradients, buffers, strict=True)
        ]
        update = orthogonalize(torch.cat(stacks), self.dtype)
        scale = RMS_MATCH * max(update.shape[-2:]) ** 0.5
        parts = update.split([stack.shape[0] for stack in stacks])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.mul_(1 - lr * self.weight_decay)
            parameter.add_(part.reshape(parameter.shape), alpha=-lr * scale)

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Momentum by parameter name (classic form, not the average), and AdamW's moments."""
        moments = self.adamw.state  # a parameter has an entry from its first gradient on
        adamw = {name: dict(moments[p]) for name, p in self.others.items() if p in moments}
        return {"momentum": self.buffers, "adamw": adamw}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of the same model. Raises KeyError when a parameter is missing."""
        for name, buffer in self.buffers.items():
            buffer.copy_(state["momentum"][name])
        for name, parameter in self.others.items():
            if name in state["adamw"]:
                moments = state["adamw"][name]
                self.adamw.state[parameter] = {key: value.clone() for key, value in moments.items()}


def _as_matrices(name: str, tensor: Tensor) -> Tensor:
    """[k, n, m] view of a parameter or its gradient: the k matrices that it consists of."""
    if name.endswith("gate_up_proj"):
        return tensor.unflatten(-2, (2, -1)).flatten(0, -3)
    return tensor.reshape(-1, *tensor.shape[-2:])


@torch.no_grad()
def clip_heads(model: nn.Module, tau: float) -> dict[str, float]:
    """QK-Clip: scale every head whose largest logit of the last step passed `tau` back to it.

    With gamma = tau / max the head's non-rotary query and key rows take sqrt(gamma), its rotary query
    rows gamma; values and the shared rotary key stay. Resets the maxima. A head whose maximum is below
    tau, negative ones included, keeps its weights bit for bit.
    """
    largest, clipped = float("-inf"), 0
    for attention in _having(model, "max_logit"):
        if attention.max_logit is None:
            continue
        maxima: Tensor = attention.max_logit
        gamma = torch.where(maxima > tau, tau / maxima, torch.ones_like(maxima))
        largest, clipped = max(largest, float(maxima.max())), clipped + int((gamma < 1).sum())
        attention.max_logit = None
        if bool((gamma < 1).any()):
            _scale_heads(attention, gamma)
    return {"max_logit": largest, "clipped_heads": clipped}


def _scale_heads(attention: Any, gamma: Tensor) -> None:
    query = attention.q_proj if attention.q_lora_rank is None else attention.q_b_proj
    rows = query.weight.unflatten(0, (gamma.shape[0], -1))
    nope = attention.qk_nope_head_dim
    root = gamma.sqrt()[:, None, None].to(rows.dtype)
    rows[:, :nope] *= root
    rows[:, nope:] *= root.square()
    attention.kv_b_proj.weight.unflatten(0, (gamma.shape[0], -1))[:, :nope] *= root


@torch.no_grad()
def balance_experts(model: nn.Module, rate: float) -> dict[str, float]:
    """Auxiliary-loss-free balancing: each bias moves by `rate` towards its expert's fair share.

    b += u (sign(e) - mean sign(e)), e = mean load - load (arXiv 2408.15664; the centring is Moonlight's).
    Resets the loads.
    """
    worst = 0.0
    for router in _having(model, "load"):
        if router.load is None:
            continue
        load = router.load.float()
        router.load = None
        worst = max(worst, float(load.max() / load.mean().clamp_min(1e-9)) - 1)
        bias = router.e_score_correction_bias
        if bias is not None:
            direction = (load.mean() - load).sign()
            bias += rate * (direction - direction.mean())
    return {"max_violation": worst}


def _having(model: nn.Module, attribute: str) -> Iterable[Any]:
    return (module for module in model.modules() if hasattr(module, attribute))
