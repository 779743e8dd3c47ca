"""How much each column of each matrix matters: the mean square of what it is multiplied with, over a text.

Collected by hooks on the float model, for all matrices of the text network but the key half of kv_b, which no
mix quantizes hard. Experts count only the tokens that they were asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.model.moe import Experts, grouped_linear
from moonlet.model.network import Model


class Squares:
    """Sums of squares by matrix: `sums` [cols], or [experts, cols], and over how many tokens each.

    Keys are canonical tensor names and, for the stacks of experts, a block: "gate", "up" or None.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, str | None], tuple[Tensor, Tensor]] = {}

    def add(self, name: str, block: str | None, sums: Tensor, counts: Tensor) -> None:
        sums, counts = sums.double(), counts.double()
        if (name, block) in self.found:
            before = self.found[name, block]
            sums, counts = before[0] + sums, before[1] + counts
        self.found[name, block] = (sums, counts)


@torch.inference_mode()
def collect(model: Model, token_ids: Sequence[int], squares: Squares) -> None:
    """Runs the model over `token_ids` and adds to `squares`."""
    with _watched(model, squares):
        model.hidden(torch.tensor([list(token_ids)]), absorbed=False)  # so that kv_b is applied


@contextmanager
def _watched(model: Model, squares: Squares) -> Iterator[None]:
    hooks = []
    for name, module in model.language_model.named_modules(prefix="language_model"):
        if isinstance(module, nn.Linear):
            note = partial(_note_linear, squares, name + ".weight")
            hooks.append(module.register_forward_pre_hook(note))
        elif isinstance(module, Experts):
            hooks.append(module.register_forward_pre_hook(partial(_note_experts, squares, name)))
    head = partial(_note_output, squares, "language_model.lm_head.weight")
    hooks.append(model.language_model.model.norm.register_forward_hook(head))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _note_linear(squares: Squares, name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
    x = inputs[0].float().flatten(0, -2)
    squares.add(name, None, x.square().sum(0), torch.tensor([len(x)]))


def _note_output(
    squares: Squares, name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> None:
    _note_linear(squares, name, module, (output,))


def _note_experts(squares: Squares, name: str, module: Experts, inputs: tuple[Tensor, ...]) -> None:
    """Inputs of gate and up, and, computed once more, those of down."""
    x_TD, topk_ids, _ = inputs
    chosen = topk_ids.flatten()
    order = chosen.argsort(stable=True)
    counts_E = chosen.bincount(minlength=module.gate_up_proj.shape[0])
    rows = x_TD[order // topk_ids.shape[1]]
    gate, up = grouped_linear(rows, module.gate_up_proj, counts_E).chunk(2, dim=-1)
    by_expert = partial(_sum_by_expert, experts=chosen[order], count=len(counts_E))
    for block in ("gate", "up"):
        squares.add(name + ".gate_up_proj", block, by_expert(rows), counts_E)
    squares.add(name + ".down_proj", None, by_expert(F.silu(gate) * up), counts_E)


def _sum_by_expert(x: Tensor, experts: Tensor, count: int) -> Tensor:
    out = x.new_zeros(count, x.shape[-1], dtype=torch.float32)
    return out.index_add(0, experts, x.float().square())
