"""The numpy references compute what the network's torch modules compute."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moonlet.config import ModelConfig, preset
from moonlet.kernels import reference
from moonlet.kernels.selftest import random_rows, relative_error
from moonlet.model.layers import RMSNorm
from moonlet.model.moe import Router
from moonlet.model.rotary import rotate
from moonlet.quant.codec import ENCODERS
from moonlet.quant.types import TYPES


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def test_eight_bits_are_half_a_step_away_at_most() -> None:
    x = normal(3, 70)
    x[1] = 0
    rounded = reference.eight_bits(x)
    for start in (0, 32, 64):
        group = x[:, start : start + 32]
        step = np.abs(group).max(-1, keepdims=True) / 127
        assert (np.abs(rounded[:, start : start + 32] - group) <= step * 0.5001).all()
    assert np.abs(rounded).max() == pytest.approx(np.abs(x).max(), rel=1e-6)


def test_linear_and_swiglu() -> None:
    weight, x = normal(7, 64), normal(3, 64)
    expected = F.linear(torch.from_numpy(x), torch.from_numpy(weight)).numpy()
    assert relative_error(reference.linear(weight, x, quantized=False), expected) < 1e-6
    rough = relative_error(reference.linear(weight, x), expected)
    assert 1e-4 < rough < 2e-2
    gate, up = x.astype(np.float64), 2 * x.astype(np.float64)
    wanted = (F.silu(torch.from_numpy(gate)) * torch.from_numpy(up)).numpy()
    assert relative_error(reference.swiglu(gate, up), wanted) < 1e-12


def test_routed_ffn_is_the_weighted_sum() -> None:
    x = normal(4, 64)
    experts = [(normal(32, 64) / 8, normal(32, 64) / 8, normal(64, 32) / 6 + e) for e in range(3)]
    ids, weights = np.array([[0, 2]] * 4, np.int32), np.full((4, 2), 0.5, np.float32)
    found = reference.routed_ffn(x, experts, ids, weights)
    both = reference.ffn(x, *experts[0]) + reference.ffn(x, *experts[2])
    assert relative_error(found, 0.5 * both) < 1e-2  # groups of one token have other scales


def test_norm() -> None:
    x = normal(3, 24)
    module = RMSNorm(20, 1e-5)
    module.weight.data = torch.arange(20) / 7.0
    found = reference.rms_norm(x, module.weight.detach().numpy(), 1e-5)
    expected = module(torch.from_numpy(x[:, :20])).detach().numpy()
    assert relative_error(found[:, :20], expected) < 1e-6
    assert np.array_equal(found[:, 20:], x[:, 20:])


def test_rotation_turns_the_last_columns() -> None:
    x, angles = normal(4, 2, 12), normal(4, 3)
    found = reference.rotate(x, np.cos(angles), np.sin(angles))
    turned = torch.from_numpy(angles)[:, None]
    expected = rotate(torch.from_numpy(x[..., 6:]), turned.cos(), turned.sin()).numpy()
    assert relative_error(found[..., 6:], expected) < 1e-6
    assert np.array_equal(found[..., :6], x[..., :6])


@pytest.mark.parametrize("name", ["kimi-k2.5", "deepseek-v3", "deepseek-v2-lite"])
def test_route(name: str) -> None:
    config: ModelConfig = preset(name)
    router = Router(config).eval()
    bias = None
    if config.has_correction_bias:
        bias = normal(1, config.n_routed_experts)[0] / 4
        router.e_score_correction_bias = torch.from_numpy(bias)
    # Logits that need no product: the router's weight is the identity of the experts.
    router.weight = torch.nn.Parameter(torch.eye(config.n_routed_experts))
    logits = normal(5, config.n_routed_experts)
    ids, weights = router(torch.from_numpy(logits))
    order = ids.argsort(dim=-1)
    found = reference.route(
        logits, bias, config.num_experts_per_tok, config.scoring_func == "sigmoid", config.norm_topk_prob,
        config.routed_scaling_factor, config.n_group, config.topk_group,
        2 if config.topk_method == "noaux_tc" else 1,
    )  # fmt: skip
    mine = found[0].argsort(axis=-1)
    assert np.array_equal(np.sort(found[0]), ids.gather(-1, order).numpy())
    expected = weights.gather(-1, order).detach().numpy()
    assert relative_error(np.take_along_axis(found[1], mine, -1), expected) < 1e-5


def test_attention_sees_its_own_sequence_up_to_its_position() -> None:
    q, rows = normal(3, 2, 16), normal(2, 6, 16)
    sequence, position = np.array([1, 0, 1], np.int32), np.array([3, 0, 5], np.int32)
    found = reference.latent_attention(q, rows, sequence, position, 8, 0.3)
    bf16 = [torch.from_numpy(a).bfloat16().double() for a in (q, rows)]
    for t in range(3):
        seen = bf16[1][sequence[t], : position[t] + 1][None]
        expected = F.scaled_dot_product_attention(bf16[0][t][None], seen, seen[..., :8], scale=0.3)
        assert relative_error(found[t], expected[0].numpy()) < 1e-12


@pytest.mark.parametrize("name", [*TYPES, "INT4"])
def test_random_rows_are_finite_and_not_zero(name: str) -> None:
    rows = random_rows(name, 3, 512, seed=0)
    assert rows.values.shape == (3, 512)
    assert np.isfinite(rows.values).all()
    assert rows.values.std() > 0
    if name in ENCODERS:
        assert rows.values.std() == pytest.approx(1, abs=0.3)
