"""Questions and answers: what is refused before anything is placed, and what an answer is made of."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.config import preset
from moonlet.errors import ConfigError
from moonlet.plan.answer import CHUNK, Estimate, Question, answer, served_tok_s, tiers_of
from moonlet.plan.describe import describe_machine
from moonlet.plan.engines import engine, engines
from moonlet.plan.memory import buffers_bytes, vision_bytes
from moonlet.plan.resident import resident
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import Weights

K25, MOONLIGHT, TINY = preset("kimi-k2.5"), preset("moonlight-16b-a3b"), preset("tiny")
H200S, _ = describe_machine(["8xh200"])
HOME, _ = describe_machine(["1xrtx4090"], ram_gb=256, cpu_bandwidth=80, nvme=7)


@pytest.mark.parametrize(("context", "streams"), [(0, 1), (K25.max_position_embeddings + 1, 1), (4096, 0)])  # fmt: skip
def test_what_cannot_be_asked_is_told(context: int, streams: int) -> None:
    with pytest.raises(ConfigError):
        answer(Question(K25, "native", H200S, context, streams), engine("vllm"))


def test_an_engine_that_does_not_run_a_quantization_lacks_no_memory() -> None:
    found = answer(Question(K25, "q4_k_m", H200S, 4096), engine("vllm"))
    assert found.refusal is not None
    assert found.refusal.missing_bytes == 0
    assert "q4_k_m" in found.refusal.reason


def test_a_load_is_counted_by_hand() -> None:
    load = Question(K25, "native", H200S, 10_000, streams=3).load()
    assert load.cache_bytes == 3 * 10_000 * 70_272
    assert load.buffer_bytes == buffers_bytes(K25, CHUNK, 3)
    assert Question(K25, "native", H200S, 10_000, cache="fp8").load().cache_token_bytes == 35_136
    assert Question(K25, "native", H200S, 100).load().buffer_bytes == buffers_bytes(K25, 100, 1)


def test_images_take_room_where_there_are_more_of_them_than_text() -> None:
    patches = 200_000
    seen = Question(K25, "native", H200S, 10_000, patches=patches)
    assert seen.load().buffer_bytes == vision_bytes(K25, patches)
    assert replace(seen, patches=1).load().buffer_bytes == buffers_bytes(K25, CHUNK, 1)
    blind = Question(MOONLIGHT, "bf16", H200S, 4096, patches=patches)
    assert blind.load().buffer_bytes == buffers_bytes(MOONLIGHT, CHUNK, 1)


def test_moonlet_is_placed_by_what_it_keeps_not_by_the_file() -> None:
    """A file of 240 GB whose experts take 4.375 bits in memory does not run in 256 GB, but in 640."""
    question = Question(K25, "ud-tq1_0", HOME, 4096)
    small = answer(question, engine("moonlet"))
    assert small.weights.total_bytes < 245e9
    assert small.refusal is not None
    assert small.refusal.missing_bytes > 200e9
    assert "keeps these types in 56" in small.refusal.reason
    roomy, _ = describe_machine(ram_gb=640)
    large = answer(replace(question, machine=roomy), engine("moonlet"))
    assert large.placement is not None
    kept = resident(large.weights).total_bytes
    weights = [large.placement.parts("ram")[part] for part in ("routed experts", "other weights")]
    assert sum(weights) == pytest.approx(kept)


def test_moonlet_keeps_its_cache_in_one_type() -> None:
    """bf16, and float32 where it computes so; no other is to be had."""
    machine, _ = describe_machine(ram_gb=64)
    for cache in ("bf16", "fp8"):
        found = answer(Question(MOONLIGHT, "q8_0", machine, 4096, cache=cache), engine("moonlet"))
        assert found.placement is not None
        assert found.placement.load.cache_token_bytes == 27 * 576 * 2
    tiny = answer(Question(TINY, "bf16", machine, 64, prompt=8, answer=8), engine("moonlet"))
    assert tiny.placement is not None
    assert tiny.placement.load.cache_token_bytes == TINY.num_hidden_layers * TINY.latent_size * 4


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(engines())),
    st.sampled_from([(K25, "native"), (K25, "q2_k_xl"), (K25, "3.5bpw"), (MOONLIGHT, "bf16"), (TINY, "bf16")]),
    st.sampled_from(["8xh200", "2xrtx3090", "1xrtx4090", "1xm3-ultra-512", "4xm3-ultra-512", None]),
    st.integers(16, 2048),
    st.sampled_from([1, 2, 16, 256]),
    st.sampled_from(["bf16", "fp8"]),
)  # fmt: skip
def test_every_answer_is_whole(
    name: str, model: tuple, gpu: str | None, context: int, streams: int, cache: str
) -> None:
    machine, _ = describe_machine([gpu] if gpu else [], ram_gb=None if gpu else 512)
    config, quantization = model
    context = min(context, config.max_position_embeddings)
    question = Question(
        config, quantization, machine, context, streams, cache, context // 2, context // 4
    )
    found = answer(question, engine(name))
    assert found.fits == (found.refusal is None)
    if found.placement is None:
        assert found.each_tok_s is None
        return
    assert tiers_of(found.placement)
    for estimate in (found.first_token_s, found.prefill_tok_s, found.each_tok_s, found.all_tok_s, found.decode_tok_s):  # fmt: skip
        assert estimate is not None
        assert 0 < estimate.low <= estimate.value <= estimate.high < 1e9
    assert all(seconds >= 0 for seconds in found.step_parts.values())
    assert found.load_s is None or 0 <= found.load_s < 1e6
    assert found.decode_tok_s is not None
    assert found.all_tok_s is not None
    assert found.all_tok_s.value <= found.decode_tok_s.value * (1 + 1e-9)


def test_files_that_were_looked_at_are_taken_as_they_are() -> None:
    half = Weights(K25, "half", {"experts": {"Q4_0": 200e9}, "attention": {"Q8_0": 10e9}})
    found = answer(Question(K25, "gguf", HOME, 4096, weights=half), engine("llama.cpp"))
    assert found.placement is not None
    assert found.placement.expert_bytes == 200e9
    assert found.placement.rest_bytes == 10e9


def test_loading_reads_what_does_not_stay_on_the_drive() -> None:
    """7 GB/s: 375 GB of which the experts that stay on the drive are not read."""
    found = answer(Question(K25, "ud-q2_k_xl", HOME, 4096), engine("llama.cpp"))
    assert found.placement is not None
    stays = found.placement.experts["disk"] * found.placement.expert_bytes
    assert found.load_s == pytest.approx((weights_as(K25, "ud-q2_k_xl").total_bytes - stays) / 7e9)


def test_an_inverse_turns_its_interval_around() -> None:
    assert Estimate(10.0, 5.0, 20.0).inverse(100.0) == Estimate(10.0, 5.0, 20.0)
    assert Estimate(4.0, 2.0, 8.0).inverse() == Estimate(0.25, 0.125, 0.5)


def test_serving_is_steps_and_prompts_in_turn() -> None:
    class Told:
        def step_parts(self, streams: float, context: float) -> dict[str, float]:
            assert (streams, context) == (4, 1000 + 50)
            return {"a": 0.3, "b": 0.2}

        def prefill_parts(self, tokens: float) -> dict[str, float]:
            return {"c": tokens / 100}

    # 100 steps of half a second and 4 prompts of ten seconds make 400 tokens in 90 seconds.
    assert served_tok_s(Told(), 4, 1000, 100) == pytest.approx(400 / 90)
