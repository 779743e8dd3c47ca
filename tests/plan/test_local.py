"""Seconds of a step on a measured machine, against sums done by hand."""

from dataclasses import replace

import pytest

from moonlet.config import ModelConfig, preset
from moonlet.config.sizes import model_sizes
from moonlet.plan.calibration import Calibration, Costs
from moonlet.plan.local import decode_seconds, is_packed, prefill_seconds
from moonlet.plan.weights import Weights
from moonlet.quant.types import TYPES
from tests.plan.test_calibration import CALIBRATION

# 2 layers, 1 of them dense; hidden 64, 4 heads, latent 32 + 8, 8 experts of width 32, 2 asked, 1 shared.
TINY = replace(
    preset("tiny"), model_type="deepseek_v3", vision=None, media_placeholder_token_id=None, q_lora_rank=None,
    num_hidden_layers=2,
)  # fmt: skip
ATTENTION = 4 * 24 * 64 + 40 * 64 + 4 * 32 * 32 + 64 * 64  # q, kv_a, kv_b, output
DENSE, SHARED, ROUTER, HEAD, EXPERTS = (
    3 * 64 * 96,
    3 * 64 * 32,
    8 * 64 + 8,
    512 * 64,
    8 * 3 * 64 * 32,
)
NOTHING = Costs({}, {}, ((1.0, 0.0),), 0.0, 0.0, 0.0, 0.0, ((1.0, 0.0),), ((1.0, 1.0),))


def weights(config: ModelConfig, kind: str, router: str = "F32") -> Weights:
    stored = {
        part: {(router if part == "router" else kind): size.parameters * 4.0}
        for part, size in model_sizes(config).parts.items()
    }
    return Weights(config, kind, stored)


def measured(**costs: object) -> Calibration:
    packed = replace(NOTHING, matrix={"Q4_0": ((1.0, 0.0),)})
    return replace(CALIBRATION, packed=replace(packed, **costs), torch=replace(packed, **costs))  # type: ignore[arg-type]


def test_matrices_cost_by_the_tokens_they_meet() -> None:
    """Q4_0 at 1 ns for one token and 3 for three; F32, the router, at 10 whatever the tokens."""
    calibration = measured(matrix={"Q4_0": ((1.0, 1e-9), (3.0, 3e-9)), "F32": ((1.0, 10e-9),)})
    model = weights(TINY, "Q4_0")
    fixed = 2 * ATTENTION + DENSE + SHARED + HEAD
    one = fixed + 10 * ROUTER + EXPERTS * 2 / 8  # one token asks 2 of 8 experts, each alone
    assert decode_seconds(model, calibration, 0) == pytest.approx(one * 1e-9)
    # Two tokens ask 8 (1 - (3/4)^2) = 3.5 experts, each for 4 / 3.5 tokens.
    two = 2 * fixed + 10 * ROUTER + EXPERTS * 3.5 / 8 * (4 / 3.5)
    assert decode_seconds(model, calibration, 0, batch=2) == pytest.approx(two * 1e-9)
    # A prompt of two: the head only for its last token.
    assert prefill_seconds(model, calibration, 2) == pytest.approx((two - HEAD) * 1e-9)


def test_more_tokens_ask_more_experts() -> None:
    """Where a weight costs the same for one token and for ten, two tokens read 3.5 experts in place of 2."""
    model = weights(TINY, "Q4_0")
    stored = dict(model.stored) | {part: {"F32": 1.0} for part in ("router",)}
    calibration = measured(matrix={"Q4_0": ((1.0, 1e-9),), "F32": ((1.0, 0.0),)})
    one, two = (
        decode_seconds(replace(model, stored=stored), calibration, 0, batch) for batch in (1, 2)
    )
    assert two - one == pytest.approx(EXPERTS * 1.5 / 8 * 1e-9)


def test_attention_of_a_decoded_token_reads_and_that_of_a_prompt_multiplies() -> None:
    model = weights(TINY, "Q4_0")
    calibration = measured(attend=((2.0, 1e-9), (6.0, 5e-9)), score=1e-9)
    # 101 positions of 40 numbers in 2 layers, at 3 ns with 4 heads.
    assert decode_seconds(model, calibration, 100) == pytest.approx(2 * 101 * 40 * 3e-9)
    assert decode_seconds(model, calibration, 100, 5) == pytest.approx(5 * 2 * 101 * 40 * 3e-9)
    # 3 tokens after 10: 11 + 12 + 13 pairs, 4 heads of 40 + 32 multiplications.
    assert prefill_seconds(model, calibration, 3, depth=10) == pytest.approx(2 * 36 * 4 * 72e-9)


def test_torch_takes_the_cheaper_form() -> None:
    """Long prompts expand keys and values: 24 + 24 multiplications a pair, v padded from 16."""
    model = weights(TINY, "float32")
    calibration = measured(score=1e-9)
    assert prefill_seconds(model, calibration, 100) == pytest.approx(2 * 5050 * 4 * 48e-9)
    # Two tokens after 100 do not pay for expanding 100: absorbed, 72 a pair.
    assert prefill_seconds(model, calibration, 2, 100) == pytest.approx(2 * 203 * 4 * 72e-9)


def test_what_is_fixed_and_what_grows() -> None:
    model = weights(TINY, "Q4_0")
    calibration = measured(
        step=1.0, dense_layer=10.0, moe_layer=100.0, growth=((1.0, 0.0), (3.0, 2.0))
    )
    assert decode_seconds(model, calibration, 0) == pytest.approx(111)
    assert prefill_seconds(model, calibration, 2) == pytest.approx(111 + 2 * 64 * 1.0)


def test_a_whole_model_takes_more_than_its_products() -> None:
    """A fifth more for one token, a half for three and for all that are longer; attention as it is."""
    model = weights(TINY, "Q4_0")
    curves = {"Q4_0": ((1.0, 0.0),), "F32": ((1.0, 1e-9),)}  # so only the router costs
    calibration = measured(
        matrix=curves, attend=((1.0, 1e-9),), step=1.0, whole=((1.0, 1.2), (3.0, 1.5))
    )
    attention = 2 * 101 * 40e-9
    assert decode_seconds(model, calibration, 100) == pytest.approx(
        1 + attention + 1.2 * ROUTER * 1e-9
    )
    assert prefill_seconds(model, calibration, 9) == pytest.approx(1 + 1.5 * ROUTER * 1e-9)


def test_floats_beside_quantized_weights_become_eight_bits() -> None:
    model = weights(TINY, "Q4_0")
    mixed = replace(model, stored=dict(model.stored) | {"head": {"BF16": 2.0 * HEAD}})
    calibration = measured(
        matrix={"Q4_0": ((1.0, 0.0),), "Q8_0": ((1.0, 1e-9),), "F32": ((1.0, 0.0),)}
    )
    assert decode_seconds(mixed, calibration, 0) == pytest.approx(HEAD * 1e-9)


def test_types_share_a_part_by_their_weights() -> None:
    """Half of the head's weights in each of two types, whose bytes differ."""
    model = weights(TINY, "Q4_0")
    half = {kind: HEAD / 2 * TYPES[kind].bits_per_value / 8 for kind in ("Q4_0", "Q8_0")}
    mixed = replace(model, stored=dict(model.stored) | {"head": half})
    calibration = measured(
        matrix={"Q4_0": ((1.0, 0.0),), "Q8_0": ((1.0, 1e-9),), "F32": ((1.0, 0.0),)}
    )
    assert decode_seconds(mixed, calibration, 0) == pytest.approx(HEAD / 2 * 1e-9)


def test_a_size_alone_counts_as_the_nearest_type() -> None:
    model = weights(TINY, "Q4_0")
    known = replace(model, stored=dict(model.stored) | {"head": {"2.1 bits": HEAD * 2.1 / 8}})
    curves = {"Q4_0": ((1.0, 0.0),), "F32": ((1.0, 0.0),), "TQ2_0": ((1.0, 1e-9),)}
    assert decode_seconds(known, measured(matrix=curves), 0) == pytest.approx(HEAD * 1e-9)


@pytest.mark.parametrize(
    ("kind", "packed"),
    [("bfloat16", False), ("F16", False), ("fp8", True), ("int4", True), ("2.85 bits", True)],
)
def test_only_floats_run_in_torch(kind: str, packed: bool) -> None:
    assert is_packed(weights(TINY, kind)) == packed
