"""The router's choice and weights, against the network's own."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moonlet import kernels
from moonlet.model.moe import Router


def expected(
    logits: NDArray[np.float32], bias: NDArray[np.float32] | None, **how: object
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What model.moe.Router does with these logits, without a config that allows all the cases."""
    router = Router.__new__(Router)
    torch.nn.Module.__init__(router)
    router.eval()
    router.top_k, router.norm_topk_prob = how["top_k"], how["normalize"]
    router.n_group, router.topk_group = how["groups"], how["top_groups"]
    router.scoring_func = "sigmoid" if how["sigmoid"] else "softmax"
    router.group_score_size = how["group_best"]
    router.routed_scaling_factor = how["scaling"]
    router.weight = torch.nn.Parameter(torch.eye(logits.shape[1]))
    router.e_score_correction_bias = None if bias is None else torch.from_numpy(bias)
    with torch.no_grad():
        ids, weights = router(torch.from_numpy(logits))
    return ids.numpy(), weights.numpy()


@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize(
    ("experts", "top_k", "groups", "top_groups", "group_best"),
    [
        (384, 8, 1, 1, 2),
        (64, 6, 8, 3, 1),
        (256, 8, 8, 4, 2),
        (7, 7, 1, 1, 2),
        (6, 2, 6, 3, 2),
        (1, 1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_network(
    tokens: int,
    biased: bool,
    sigmoid: bool,
    experts: int,
    top_k: int,
    groups: int,
    top_groups: int,
    group_best: int,
    normalize: bool,
) -> None:
    rng = np.random.default_rng(experts + tokens)
    logits = (3 * rng.standard_normal((tokens, experts))).astype(np.float32)
    bias = rng.standard_normal(experts, np.float32) / 4 if biased else None
    how = {
        "top_k": top_k,
        "sigmoid": sigmoid,
        "normalize": normalize,
        "scaling": 2.5,
        "groups": groups,
        "top_groups": top_groups,
        "group_best": group_best,
    }
    ids, weights = kernels.route(logits, bias, **how)
    torch_ids, torch_weights = expected(logits, bias, **how)
    order, torch_order = ids.argsort(1), torch_ids.argsort(1)
    np.testing.assert_array_equal(
        np.take_along_axis(ids, order, 1), np.take_along_axis(torch_ids, torch_order, 1)
    )
    np.testing.assert_allclose(
        np.take_along_axis(weights, order, 1),
        np.take_along_axis(torch_weights, torch_order, 1),
        rtol=2e-6,
    )


def route(logits: list[float], bias: list[float] | None = None, **how: object) -> tuple:
    given = None if bias is None else np.array(bias, np.float32)
    options = {"top_k": 2, "sigmoid": True, "normalize": True, "scaling": 1.0} | how
    ids, weights = kernels.route(np.array([logits], np.float32), given, **options)
    return ids[0].tolist(), weights[0].tolist()


def test_equal_scores_go_to_the_lower_index() -> None:
    assert route([0, 1, 1, 0, 1])[0] == [1, 2]
    assert route([1] * 8, groups=4, top_groups=1, group_best=2)[0] == [0, 1]
    assert route([0, 0, 1, 1, 1, 1, 0, 0], groups=4, top_groups=2, top_k=4)[0] == [2, 3, 4, 5]


def test_best_comes_first_and_the_bias_steers_the_choice_only() -> None:
    ids, weights = route([0.0, 2.0, 1.0], bias=[9.0, 0.0, 0.0], normalize=False)
    assert ids == [0, 1]
    np.testing.assert_allclose(weights, [0.5, 1 / (1 + np.exp(-2))], rtol=1e-6)


def test_extremes() -> None:
    ids, weights = route([np.inf, -np.inf, 0.0], top_k=3, normalize=False)
    assert (ids, weights) == ([0, 2, 1], [1.0, 0.5, 0.0])
    ids, weights = route([-200.0, -200.0, -300.0])
    assert ids == [0, 1]
    assert np.isfinite(weights).all()
    ids, weights = route([0.0, np.nan, 1.0])  # shows
    assert ids == [1, 2]
    assert np.isnan(weights).all()
    ids, weights = route([np.nan] * 4, sigmoid=False)
    assert ids == [0, 1]
    assert np.isnan(weights).all()


def test_no_tokens() -> None:
    ids, weights = kernels.route(np.zeros((0, 8), np.float32), None, 2, True, True, 1.0)
    assert ids.shape == weights.shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": [0.0, 0.0, 0.0]}, "3 experts, wanted 4"),
        ({"top_k": 5}, "5 of 4 experts"),
        ({"top_k": 0}, "0 of 4 experts"),
        ({"groups": 3}, "4 experts do not form 3 groups"),
        ({"groups": 0}, "0 groups"),
        ({"groups": 2, "top_groups": 3}, "3 of 2 groups"),
        ({"group_best": 0}, "at least one"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    route([0.0] * 4)
    with pytest.raises(ValueError, match=message):
        route([0.0] * 4, **change)
