"""Sums of squares of what each matrix sees, against plain sums over what the layers were given."""

from dataclasses import replace

import torch

from moonlet.config import preset
from moonlet.model import Model
from moonlet.model.importance import Squares, collect

CONFIG = replace(preset("tiny"), n_routed_experts=8, initializer_range=0.2)
LAYER = "language_model.model.layers.1."


@torch.inference_mode()
def test_sums_are_those_of_the_inputs() -> None:
    model = Model(CONFIG).eval()
    ids = list(range(5, 45))
    squares = Squares()
    collect(model, ids[:25], squares)
    collect(model, ids[25:], squares)
    text = model.language_model.model
    seen: dict[str, list[torch.Tensor]] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(
            lambda _m, inputs, output: seen.setdefault(name, []).append((inputs, output))  # type: ignore[arg-type]
        )

    layer = text.layers[1]
    watch("moe", layer.mlp.gate)
    watch("norm", text.norm)
    watch("q_a", layer.self_attn.q_a_proj)
    for part in (ids[:25], ids[25:]):
        model.hidden(torch.tensor([part]), absorbed=False)
    x = torch.cat([inputs[0][0] for inputs, _ in seen["q_a"]])  # type: ignore[index]
    sums, counts = squares.found[LAYER + "self_attn.q_a_proj.weight", None]
    assert torch.allclose(sums, x.double().square().sum(0), rtol=1e-5)
    assert counts.tolist() == [40]
    x = torch.cat([output[0] for _, output in seen["norm"]])
    sums, _ = squares.found["language_model.lm_head.weight", None]
    assert torch.allclose(sums, x.double().square().sum(0), rtol=1e-5)
    x = torch.cat([inputs[0] for inputs, _ in seen["moe"]])
    asked = torch.cat([output[0] for _, output in seen["moe"]])
    experts = layer.mlp.experts
    for expert in range(8):
        rows = x[(asked == expert).any(1)]
        gate, up = (rows @ experts.gate_up_proj[expert].T).chunk(2, dim=1)
        hidden = torch.nn.functional.silu(gate) * up
        for block, stack, wanted in (
            ("gate", "gate_up_proj", rows),
            ("up", "gate_up_proj", rows),
            (None, "down_proj", hidden),
        ):
            sums, counts = squares.found[LAYER + "mlp.experts." + stack, block]
            assert counts[expert] == len(rows)
            exact = wanted.double().square().sum(0)
            assert torch.allclose(sums[expert], exact, rtol=1e-4, atol=1e-9)


def test_hooks_are_gone_afterwards() -> None:
    model = Model(CONFIG).eval()
    collect(model, [1, 2, 3], Squares())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
