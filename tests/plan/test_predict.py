"""The formulas of prediction, by hand."""

import math
from dataclasses import replace

import pytest

from moonlet.config import preset
from moonlet.errors import ConfigError
from moonlet.plan.answer import Question, answer
from moonlet.plan.describe import describe_machine
from moonlet.plan.drafts import Drafted, gained
from moonlet.plan.engines import engine
from moonlet.plan.placement import Load, Placement, place
from moonlet.plan.predict import Factors, Predictor
from moonlet.plan.stored import weights_as

IDEAL = Factors(
    weight_share=1, layer_s=0, sync_s=0, node_s=0, hop_s=0, link_share=1, cache_share=1, compute_share=1,
    first_s=0, ram_share=1, host_layer_s=0, core_flops=1e12, stream_share=1,
)  # fmt: skip
K25 = preset("kimi-k2.5")


def on(name: str, quantization: str = "native", **machine: object) -> Predictor:
    where, _ = describe_machine(**machine)  # type: ignore[arg-type]
    weights = weights_as(K25, quantization)
    placed = place(engine(name), weights, where, Load(8192, 1, 70_272))
    assert isinstance(placed, Placement)
    return Predictor(weights, where, placed, IDEAL, quantization)


def test_a_token_on_ideal_gpus_reads_33_gigabytes() -> None:
    """K2.5 as published: 21.10 GB bf16 and 11.89 GB of experts for each token (8 of 384)."""
    parts = on("vllm", gpu=["8xh200"]).step_parts(1, 0)
    speed = 8 * 4.8e12
    assert parts["rest"] * speed == pytest.approx(21.10e9, rel=0.002)
    assert parts["experts in VRAM"] * speed == pytest.approx(11.89e9, rel=0.002)
    assert parts["cache"] == parts["layers"] == 0
    # Two sums a layer of 7,168 numbers in bf16, each passing 2 x 7/8 of them over 450 GB/s.
    assert parts["links"] == pytest.approx(2 * 61 * 7168 * 2 * 2 * 7 / 8 / 450e9, rel=0.01)


def test_the_cache_is_on_every_rank() -> None:
    parts = on("vllm", gpu=["8xh200"]).step_parts(1, 100_000)
    assert parts["cache"] == pytest.approx(100_000 * 70_272 / 4.8e12, rel=0.001)


def test_streams_share_experts() -> None:
    predictor = on("vllm", gpu=["8xh200"])
    assert predictor.weights.distinct_experts(1) == pytest.approx(8)
    assert predictor.weights.distinct_experts(64) == pytest.approx(284.2, abs=0.1)
    one, many = predictor.decode_tok_s(1, 0), predictor.decode_tok_s(64, 0)
    assert one < many < 64 * one


def test_a_processor_reads_or_computes() -> None:
    predictor = on("moonlet", cpu="epyc-9354", ram_gb=768, cpu_bandwidth=400)
    slow = replace(predictor, factors=replace(IDEAL, core_flops=1e9))
    assert predictor.step_parts(1, 0)["experts in RAM"] == pytest.approx(11.89e9 / 400e9, rel=0.01)
    assert slow.step_parts(1, 0)["experts in RAM"] == pytest.approx(
        2 * 21.139e9 / (1e9 * predictor.machine.host.cores), rel=0.01
    )


def test_attention_on_a_processor_is_work() -> None:
    """Absorbed: 64 heads x (2 x 512 + 64) x 2 operations a position and layer."""
    predictor = on("moonlet", cpu="epyc-9354", ram_gb=768)
    work = 1000 * 61 * 64 * (2 * 512 + 64) * 2
    assert predictor.step_parts(1, 1000)["cache"] == pytest.approx(work / (32 * 1e12))


def test_a_prompt_takes_two_operations_a_weight() -> None:
    parts = on("vllm", gpu=["8xh200"]).prefill_parts(1000)
    scores = 61 * 64 * (192 + 128) * 2 * 1000 * 1001 / 2
    assert parts["compute"] == pytest.approx(
        (2 * 1000 * 31.687e9 + scores) / (8 * 989e12), rel=0.01
    )


def test_what_lies_on_the_disk_is_read_from_it() -> None:
    predictor = on("llama.cpp", "q4_k_m", gpu=["rtx4090"], ram_gb=256, nvme=5)
    share = predictor.placement.experts["disk"]
    assert 0.4 < share < 0.8
    read = predictor.weights.bytes_read(1)["experts"] * share
    assert predictor.step_parts(1, 0)["experts on disk"] == pytest.approx(read / 5e9)


def test_an_answer_adds_up() -> None:
    machine, _ = describe_machine(gpu=["8xh200"])
    found = answer(Question(K25, "native", machine, 32_768, streams=4), engine("vllm"))
    assert found.each_tok_s is not None
    assert found.all_tok_s is not None
    assert found.decode_tok_s is not None
    assert found.each_tok_s.value == pytest.approx(1 / sum(found.step_parts.values()))
    assert found.all_tok_s.value < found.decode_tok_s.value < 4 * found.each_tok_s.value
    assert found.each_tok_s.low < found.each_tok_s.value < found.each_tok_s.high
    assert found.load_s == pytest.approx(595.15e9 / 7e9, rel=0.01)
    first = found.first_token_s
    assert first is not None
    assert math.isclose(first.value * found.prefill_tok_s.value, 2048)  # type: ignore[union-attr]


def test_drafts() -> None:
    """Three drafts, each accepted with 0.55: 1 + 0.55 + 0.3025 + 0.166 = 2.02 tokens a step."""
    assert gained(3, 0.55) == pytest.approx(2.019, abs=0.001)
    assert gained(0, 0.9) == gained(5, 0.0) == 1
    assert gained(4, 1.0) == 5
    for drafted, accepted in ((-1, 0.5), (65, 0.5), (3, 1.5), (3, math.nan)):
        with pytest.raises(ConfigError, match="not from 0 to"):
            gained(drafted, accepted)
    predictor = on("vllm", gpu=["8xh200"])
    with_drafts = Drafted(predictor, 3, 0.55).step_parts(2, 4000)
    wide = predictor.step_parts(8, 1000)
    assert with_drafts == {
        name: pytest.approx(value / gained(3, 0.55)) for name, value in wide.items()
    }
    assert predictor.step_parts(8, 1000)["cache"] == pytest.approx(
        predictor.step_parts(2, 4000)["cache"]
    )


def test_popular_experts_are_not_read_from_the_disk() -> None:
    predictor = on("llama.cpp", "q4_k_m", gpu=["rtx4090"], ram_gb=256, nvme=5)
    cold, warm = predictor.step_parts(1, 0), replace(predictor, hits=0.75).step_parts(1, 0)
    assert warm["experts on disk"] == pytest.approx(cold["experts on disk"] / 4)
    assert warm["experts in RAM"] > cold["experts in RAM"]
    assert "experts on disk" not in replace(predictor, hits=1.0).step_parts(1, 0)


def test_an_answer_takes_drafts_and_hits_into_account() -> None:
    machine, _ = describe_machine(gpu=["rtx4090"], ram_gb=256, nvme=5)
    question = Question(K25, "q4_k_m", machine, 32_768)
    plain = answer(question, engine("llama.cpp")).each_tok_s
    hits = answer(replace(question, hits=0.9), engine("llama.cpp")).each_tok_s
    drafted = answer(replace(question, drafted=3, accepted=0.0), engine("llama.cpp")).each_tok_s
    assert plain is not None
    assert hits is not None
    assert drafted is not None
    assert drafted.value < plain.value < hits.value
