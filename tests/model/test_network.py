"""What the network promises by itself: names, sizes, statistics, refusals."""

import resource
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.config import PRESETS, preset, tensor_specs
from moonlet.errors import EngineError
from moonlet.model import LatentCache, Media, Model, build_on_meta
from moonlet.model.attention import LatentAttention
from moonlet.model.moe import Experts, MoE, grouped_linear

TINY = preset("tiny")


@pytest.mark.parametrize("name", PRESETS)
def test_every_tensor_is_the_one_that_the_config_lists(name: str) -> None:
    model = build_on_meta(preset(name))
    ours = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert ours == {spec.name: spec.shape for spec in tensor_specs(preset(name))}
    assert all(tensor.device.type == "meta" for tensor in model.state_dict().values())


def test_a_trillion_parameters_fit_on_the_meta_device() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build_on_meta(preset("kimi-k2.5"))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(p.numel() for p in model.parameters()) > 1.02e12
    assert grown_kib < 500_000


def test_initial_weights_depend_on_the_seed_only() -> None:
    first, second = Model(TINY), Model(TINY)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    second.init_weights(seed=1)
    assert not torch.equal(
        first.language_model.lm_head.weight, second.language_model.lm_head.weight
    )
    std = float(first.language_model.lm_head.weight.detach().std())
    assert std == pytest.approx(TINY.initializer_range, rel=0.05)


def naive_moe(moe: MoE, x: Tensor) -> Tensor:
    """Token by token, expert by expert."""
    ids, weights = moe.gate(x)
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for expert, weight in zip(ids[row], weights[row], strict=True):
            gate, up = (moe.experts.gate_up_proj[expert] @ x[row]).chunk(2)
            out[row] += weight * (moe.experts.down_proj[expert] @ (F.silu(gate) * up))
    return out if moe.shared_experts is None else out + moe.shared_experts(x)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe_intermediate_size": 7, "hidden_size": 10},  # sizes that the grouped kernel refuses
        {"n_shared_experts": 0, "num_experts_per_tok": 8},
        {"num_experts_per_tok": 1, "norm_topk_prob": False},
    ],
)
def test_grouped_experts_equal_a_loop(changes: dict[str, int]) -> None:
    torch.manual_seed(0)
    config = replace(TINY, **changes)
    model = Model(config)
    moe = model.language_model.model.layers[1].mlp
    assert isinstance(moe, MoE)
    for tokens in (1, 2, 33):
        x = torch.randn(tokens, config.hidden_size)
        torch.testing.assert_close(moe(x), naive_moe(moe, x), rtol=1e-5, atol=1e-6)


def test_one_expert_takes_all() -> None:
    torch.manual_seed(0)
    # Without normalisation, or a single weight would be 1 whatever the scores are.
    config = replace(TINY, num_experts_per_tok=1, norm_topk_prob=False)
    moe = Model(config).language_model.model.layers[1].mlp
    assert isinstance(moe, MoE)
    assert moe.gate.e_score_correction_bias is not None
    moe.gate.e_score_correction_bias[3] = 100.0
    x = torch.randn(9, TINY.hidden_size)
    ids, weights = moe.gate.train()(x)
    assert ids.unique().tolist() == [3]
    # The bias steers the choice and never the weight.
    score = (x @ moe.gate.weight[3]).sigmoid()[:, None]
    torch.testing.assert_close(weights, score * TINY.routed_scaling_factor)
    assert moe.gate.load is not None
    assert moe.gate.load.tolist() == [0, 0, 0, 9, 0, 0, 0, 0]
    torch.testing.assert_close(moe(x), naive_moe(moe, x), rtol=1e-5, atol=1e-6)


def test_no_tokens_at_all() -> None:
    experts = Experts(TINY)
    x = torch.zeros(0, TINY.hidden_size)
    assert experts(x, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2)).shape == x.shape


def test_grouped_linear_of_both_kinds_agree() -> None:
    torch.manual_seed(0)
    x, weight, counts = torch.randn(6, 8), torch.randn(3, 4, 8), torch.tensor([4, 0, 2])
    narrow = grouped_linear(x[:, :7], weight[..., :7], counts)
    wide = grouped_linear(F.pad(x[:, :7], (0, 1)), F.pad(weight[..., :7], (0, 1)), counts)
    torch.testing.assert_close(narrow, wide)


def test_maximum_logits_per_head_are_exact() -> None:
    torch.manual_seed(0)
    model = Model(TINY)
    model.init_weights()
    layer = model.language_model.model.layers[0].self_attn
    assert isinstance(layer, LatentAttention)
    layer.track_max_logit = True
    largest = torch.full((TINY.num_attention_heads,), -torch.inf)

    def attend(q: Tensor, k: Tensor) -> Tensor:
        logits = (q @ k.mT) * TINY.softmax_scale
        return logits.masked_fill(~torch.ones_like(logits, dtype=torch.bool).tril(), -torch.inf)

    captured: list[tuple[Tensor, Tensor]] = []
    original = layer._record_max_logit
    layer._record_max_logit = lambda q, k, mask: (captured.append((q, k)), original(q, k, mask))[1]
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        model.train()(torch.randint(0, 250, (3, 600), generator=generator))
    for q, k in captured:
        largest = torch.maximum(largest, attend(q, k).amax((0, 2, 3)))
    assert layer.max_logit is not None
    torch.testing.assert_close(layer.max_logit, largest)


def test_room_in_the_cache_takes_no_memory_until_it_is_used() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = LatentCache(TINY, 1, 5_000_000, torch.bfloat16)  # 1.2 GB
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert cache.rows.nbytes > 1e9
    assert grown_kib < 200_000


def test_a_full_cache_refuses() -> None:
    model = Model(TINY).eval()
    cache = LatentCache(TINY, 1, 4)
    model(torch.zeros(1, 4, dtype=torch.long), cache=cache)
    with pytest.raises(EngineError, match="position 4 does not fit a cache of 4"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    with pytest.raises(EngineError, match="batch of 2"):
        model(torch.zeros(2, 1, dtype=torch.long), cache=LatentCache(TINY, 1, 4))


@pytest.mark.parametrize(
    ("grids", "patches", "message"),
    [
        ([(1, 2, 2)], 5, "5 patches do not fill"),
        ([(1, 3, 2)], 6, "multiples of 2"),
        ([(5, 2, 2)], 20, "at most 4 frames"),
        ([(1, 4, 4)], 16, "1 media placeholders"),
    ],
)
def test_media_that_do_not_fit(
    grids: list[tuple[int, int, int]], patches: int, message: str
) -> None:
    model = Model(TINY).eval()
    ids = torch.tensor([[1, TINY.media_placeholder_token_id, 2]])
    with pytest.raises(EngineError, match=message):
        model(ids, media=Media(torch.zeros(patches, 3, 14, 14), grids))


def test_a_text_model_takes_no_media() -> None:
    model = Model(replace(TINY, vision=None, model_type="deepseek_v3")).eval()
    with pytest.raises(EngineError, match="no vision tower"):
        model(torch.tensor([[277]]), media=Media(torch.zeros(4, 3, 14, 14), [(1, 2, 2)]))


def test_bfloat16_runs_and_stays_near_float32() -> None:
    torch.manual_seed(0)
    wide = Model(TINY).eval()
    narrow = Model(TINY).eval()
    narrow.load_state_dict(wide.state_dict())
    narrow.bfloat16()
    ids = torch.randint(0, 250, (2, 20))
    with torch.inference_mode():
        difference = (narrow(ids).float() - wide(ids)).norm() / wide(ids).norm()
    assert 0 < float(difference) < 0.05
