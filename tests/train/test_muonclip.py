"""The optimizer against torch's Muon, against one matrix at a time, and QK-Clip against the logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moonlet.config import ModelConfig, preset
from moonlet.model import Model
from moonlet.model.attention import Past
from moonlet.train.muonclip import MuonClip, balance_experts, clip_heads, is_matrix, orthogonalize


def layer_of(model: Model, index: int) -> Any:
    return model.language_model.model.layers[index]


def tiny(q_lora: bool = True) -> ModelConfig:
    config = preset("tiny")
    return config if q_lora else replace(config, q_lora_rank=None)


def with_gradients(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_orthogonalize_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24), (3, 16, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_orthogonalize_leaves_its_input_and_survives_zero() -> None:
    x = torch.randn(4, 8, 6)
    before = x.clone()
    orthogonalize(x)
    assert torch.equal(x, before)
    assert torch.equal(orthogonalize(torch.zeros(2, 5, 3)), torch.zeros(2, 5, 3))
    assert torch.equal(orthogonalize(torch.zeros(1, 7), torch.bfloat16), torch.zeros(1, 7))


def test_equals_the_muon_of_torch_over_several_steps() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(48, 32)
    theirs = nn.Linear(48, 32)
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    mine = MuonClip(ours, weight_decay=0.1, dtype=torch.bfloat16)
    reference = torch.optim.Muon(
        [theirs.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(5):
        with_gradients(ours, seed)
        with_gradients(theirs, seed)
        mine.step(0.02)
        reference.step()
    moved = (theirs.weight - start).norm()
    # torch iterates in bfloat16 on a momentum scaled by 1 - mu, which rounds differently.
    assert (ours.weight - theirs.weight).norm() / moved < 0.05


def test_stacks_are_separate_matrices() -> None:
    """Every expert's gate, up and down moves as if it were alone."""
    model = Model(tiny())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with_gradients(model)
    MuonClip(model, weight_decay=0.0).step(0.01)
    for name in ("gate_up_proj", "down_proj"):
        full = f"language_model.model.layers.1.mlp.experts.{name}"
        parameter = model.get_parameter(full)
        assert parameter.grad is not None
        for expert in range(parameter.shape[0]):
            blocks = 2 if name == "gate_up_proj" else 1
            pieces = zip(
                before[full][expert].chunk(blocks),
                parameter.grad[expert].chunk(blocks),
                parameter[expert].chunk(blocks),
                strict=True,
            )
            for old, gradient, new in pieces:
                update = orthogonalize(gradient * 1.95)  # Nesterov at the first step
                wanted = old - 0.01 * 0.2 * max(old.shape) ** 0.5 * update
                torch.testing.assert_close(new, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("q_lora", [True, False])
def test_every_parameter_is_in_exactly_one_group(q_lora: bool) -> None:
    model = Model(tiny(q_lora))
    optimizer = MuonClip(model)
    names = {name for name, _ in model.named_parameters()}
    assert set(optimizer.matrices) | set(optimizer.others) == names
    assert not set(optimizer.matrices) & set(optimizer.others)
    adamw = {id(p) for group in optimizer.adamw.param_groups for p in group["params"]}
    assert adamw == {id(p) for p in optimizer.others.values()}
    layer = "language_model.model.layers.1."
    assert is_matrix(layer + "mlp.gate.weight", model.get_parameter(layer + "mlp.gate.weight"))
    for name in optimizer.others:
        parameter = model.get_parameter(name)
        assert parameter.ndim != 2 or name.endswith(("embed_tokens.weight", "lm_head.weight"))
    for table in ("patch_embed.pos_emb.weight", "patch_embed.proj.weight"):
        assert f"vision_tower.{table}" in optimizer.others


def test_zero_gradient_moves_nothing_and_makes_no_nan() -> None:
    model = Model(tiny())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    MuonClip(model, weight_decay=0.0).step(0.1)
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def logits_of_heads(attention: Any, x: Tensor) -> Tensor:
    """The maxima that a forward pass of `attention` on x [B, T, D] records, without moving them."""
    attention.train()
    attention.track_max_logit = True
    attention.max_logit = None
    batch, length, _ = x.shape
    angle = torch.arange(length)[None, :, None].expand(batch, -1, attention.qk_rope_head_dim // 2)
    past = Past(None, torch.arange(length).expand(batch, -1))
    attention(x, (angle.cos(), angle.sin()), past)
    assert attention.max_logit is not None
    return attention.max_logit.clone()


@pytest.mark.parametrize("q_lora", [True, False])
def test_clip_brings_heads_to_tau_and_leaves_the_others(q_lora: bool) -> None:
    torch.manual_seed(1)
    model = Model(tiny(q_lora)).double()
    attention = layer_of(model, 0).self_attn
    for parameter in attention.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.4)
    x = torch.randn(2, 9, model.config.hidden_size, dtype=torch.float64)
    before = logits_of_heads(attention, x)
    tau = float(before.sort().values[1:3].mean())  # two heads above, two below
    query = attention.q_b_proj if q_lora else attention.q_proj
    old_q, old_kv = query.weight.detach().clone(), attention.kv_b_proj.weight.detach().clone()
    seen = clip_heads(model, tau)
    assert seen["max_logit"] == pytest.approx(float(before.max()))
    assert seen["clipped_heads"] == 2
    assert attention.max_logit is None
    after = logits_of_heads(attention, x)
    torch.testing.assert_close(after, before.clamp_max(tau), rtol=1e-5, atol=0)
    kept = before <= tau
    heads = len(before)
    assert torch.equal(
        query.weight.unflatten(0, (heads, -1))[kept], old_q.unflatten(0, (heads, -1))[kept]
    )
    new_kv = attention.kv_b_proj.weight.unflatten(0, (heads, -1))
    assert torch.equal(new_kv[kept], old_kv.unflatten(0, (heads, -1))[kept])
    values = slice(attention.qk_nope_head_dim, None)
    assert torch.equal(new_kv[:, values], old_kv.unflatten(0, (heads, -1))[:, values])


def test_negative_maxima_do_not_become_nan() -> None:
    model = Model(tiny())
    attention = layer_of(model, 0).self_attn
    attention.max_logit = torch.tensor([-5.0, 200.0, 0.0, 100.0])
    old = attention.kv_b_proj.weight.detach().clone().unflatten(0, (4, -1))
    assert clip_heads(model, 100.0)["clipped_heads"] == 1
    new = attention.kv_b_proj.weight.unflatten(0, (4, -1))
    assert torch.isfinite(new).all()
    assert torch.equal(new[[0, 2, 3]], old[[0, 2, 3]])
    assert not torch.equal(new[1], old[1])


def test_bias_moves_towards_the_idle_experts_and_stays_centred() -> None:
    model = Model(tiny())
    router = layer_of(model, 1).mlp.gate
    router.load = torch.tensor([9, 1, 1, 1, 1, 1, 1, 1])
    assert balance_experts(model, 0.01)["max_violation"] == pytest.approx(3.5)
    assert router.load is None
    bias = router.e_score_correction_bias
    assert bias is not None
    assert bias[0] < 0 < bias[1]
    assert float(bias[1] - bias[0]) == pytest.approx(0.02)
    assert float(bias.sum()) == pytest.approx(0.0, abs=1e-6)


def test_state_survives_a_round_trip() -> None:
    torch.manual_seed(0)
    one, two = Model(tiny()), Model(tiny())
    first, second = MuonClip(one), MuonClip(two)
    for seed in range(2):
        with_gradients(one, seed)
        first.step(0.01)
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    for model, optimizer in ((one, first), (two, second)):
        with_gradients(model, 9)
        optimizer.step(0.01)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_are_saved_under_their_own_names() -> None:
    """Also when a parameter got its first gradient after the others."""
    model = Model(tiny())
    optimizer = MuonClip(model)
    late, *_ = optimizer.others
    for seed in range(2):
        with_gradients(model, seed)
        if seed == 0:
            optimizer.others[late].grad = None
        optimizer.step(0.01)
        saved = optimizer.state_dict()["adamw"]
        assert (late in saved) == (seed == 1)
        for name, moments in saved.items():
            own = optimizer.adamw.state[optimizer.others[name]]
            assert moments["exp_avg"] is own["exp_avg"], name
