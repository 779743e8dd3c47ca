"""Serving at cluster scale against published measurements, and laws of the requests that are played."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.config import preset
from moonlet.errors import ConfigError
from moonlet.plan.cluster_serving import (
    ServingCluster,
    ServingEfficiency,
    _Group,
    _write,
    assumptions,
    saturated,
    simulate_serving,
)
from moonlet.plan.describe import describe_machine
from moonlet.plan.machine import Machine


def nodes(gpu: str, count: int) -> Machine:
    """Eight GPUs and eight 400 Gb/s adapters each, as both LMSYS posts and DeepSeek's have them."""
    return describe_machine([f"8x{gpu}"], nodes=count, network_gbit=3200)[0]


K2 = ServingCluster(preset("kimi-k2"), nodes("H200", 4), nodes("H200", 12))
R1 = ServingCluster(
    preset("deepseek-r1"), nodes("H100", 4), nodes("H100", 9), batch=256, redundant=32
)


@pytest.mark.parametrize(
    ("cluster", "prefill", "decode"),
    [
        # LMSYS, 2025-07-20: 4 nodes 224k tokens/s, 12 nodes 288k at 480 requests a GPU; not fitted.
        pytest.param(K2, 224e3, 288e3, id="K2 on 128 H200"),
        # LMSYS, 2025-05-05: per node 54,543 (4 nodes, prompts of 2000) and 22,282 (9 nodes, 256 a GPU); the
        # efficiencies were chosen on this one.
        pytest.param(R1, 4 * 54543, 9 * 22282, id="R1 on H100s"),
        # Same post: prompts of 1000 and 4000, held out.
        pytest.param(replace(R1, prompt=1000), 4 * 57674, None, id="R1, prompts of 1000"),
        pytest.param(replace(R1, prompt=4000), 4 * 50302, None, id="R1, prompts of 4000"),
        # Same post, "DeepSeek profile": 18,598 per node of 16, 128 requests of 4096 a GPU, on H800s; held out.
        pytest.param(replace(R1, prompt=4096, batch=128, decode=nodes("H800", 16)), None, 16 * 18598,
                     id="R1, DeepSeek's own"),
    ],
)  # fmt: skip
def test_published_throughput(
    cluster: ServingCluster, prefill: float | None, decode: float | None
) -> None:
    found = saturated(cluster)
    if prefill:
        assert found.prefill_tok_s == pytest.approx(prefill, rel=0.15)
    if decode:
        assert found.decode_tok_s == pytest.approx(decode, rel=0.15)


def test_a_decoding_step_by_hand() -> None:
    """K2, 96 GPUs: 480 tokens with 8 copies of 7168 x (1.03 + 2) bytes, at 0.8 of 50 GB/s, in 60 layers."""
    step = K2.side("decode").decode_step(480, 2050)
    copies = 480 * 8 * 95 / 96 * 7168 * (1 + 1 / 32 + 2)
    assert step.exchange == pytest.approx(60 * copies / 40e9)
    both = step.compute + step.exchange - 0.5 * min(step.compute, step.exchange)
    assert step.seconds == pytest.approx(both + 61 * 1e-4)


def test_more_requests_share_the_reading_of_weights() -> None:
    side = K2.side("decode")
    alone, many = side.decode_step(1, 1000), side.decode_step(64, 1000)
    assert many.seconds < 8 * alone.seconds
    assert side.decode_step(64, 4000).compute > many.compute


def test_experts_are_shared_and_the_rest_is_not() -> None:
    """FP8: 1014.7 GB of experts over 32 GPUs, 5 of 480 copies on each of 96, and some 12 GB of the rest."""
    read, write = K2.side("prefill").resident_bytes, K2.side("decode").resident_bytes
    rest = read - 1014.7e9 / 32
    assert 9e9 < rest < 15e9
    assert write == pytest.approx(1014.7e9 * 480 / 384 / 96 + rest, rel=0.01)
    need, have = K2.fits
    assert need == pytest.approx(write + 480 * 2100 * 70272)
    assert need < have


def test_answers_of_100_tokens_leave_decoding_idle() -> None:
    """2000 tokens in, 100 out: what 32 GPUs read gives 96 GPUs 5 % as many tokens to write."""
    per_s = 0.9 * saturated(K2).prefill_tok_s / 2000
    run = simulate_serving(K2, per_s)
    assert run.prefill_tok_s == pytest.approx(per_s * 2000, rel=0.03)
    assert run.decode_tok_s == pytest.approx(per_s * 99, rel=0.03)
    assert run.batch < 5


def test_more_than_prefill_can_read_queues_up() -> None:
    limit = saturated(K2).prefill_tok_s
    calm, rush = (simulate_serving(K2, by * limit / 2000) for by in (0.5, 2.0))
    assert rush.prefill_tok_s == pytest.approx(limit, rel=0.05)
    assert rush.ttft_s > 10 * calm.ttft_s


def test_more_than_decode_can_write_waits_for_a_place() -> None:
    small = replace(K2, decode=nodes("H200", 1), batch=8, output=400, redundant=0)
    run = simulate_serving(small, 50.0, requests=2000)
    assert run.batch == pytest.approx(8, rel=0.1)
    assert run.decode_tok_s == pytest.approx(saturated(small).decode_tok_s, rel=0.1)


@settings(deadline=None, max_examples=40)
@given(
    prompt=st.integers(1, 4000), output=st.integers(1, 300), batch=st.integers(1, 600),
    requests=st.integers(1, 500), per_s=st.floats(0.01, 1e4),
)  # fmt: skip
def test_no_token_is_lost(
    prompt: int, output: int, batch: int, requests: int, per_s: float
) -> None:
    cluster = replace(K2, prompt=prompt, output=output, batch=batch)
    run = simulate_serving(cluster, per_s, requests)
    assert run.prefill_tokens == requests * prompt
    assert run.decode_tokens == requests * (output - 1)  # the first one comes from prefill
    assert run.batch <= batch + 1e-9
    assert run.ttft_s > 0
    assert 0 <= run.prefill_busy <= 1 + 1e-9
    assert 0 <= run.decode_busy <= 1 + 1e-9


def test_one_request_by_hand() -> None:
    """Its prompt is read, its cache handed over, then each token sees one position more than the one before."""
    run = simulate_serving(replace(K2, output=50), 1.0, requests=1)
    handover = 2000 * 70272 / 40e9
    ready = K2.side("prefill").prefill_step(2000 / 32).seconds + handover
    assert run.ttft_s == pytest.approx(ready)
    side = K2.side("decode")
    written = [side.decode_step(1 / 96, 2001 + i).seconds for i in range(49)]
    assert run.seconds == pytest.approx(ready + sum(written))
    assert run.tpot_s == pytest.approx(sum(written) / 49)


def test_steps_are_those_of_a_list_of_requests() -> None:
    """Against a slow version that keeps every request by itself."""
    cluster = replace(K2, decode=nodes("H200", 1), batch=4, output=30, redundant=0)
    groups = [_Group(5, 0.0, 0.0), _Group(40, 0.0, 0.1), _Group(3, 0.0, 0.35), _Group(2, 0.0, 9.0)]
    side, most = cluster.side("decode"), 32
    waiting = [group.ready for group in groups for _ in range(group.count)]
    running: list[int] = []  # tokens written so far
    now, wanted = 0.0, []
    while waiting or running:
        if not running:
            now = max(now, waiting[0])
        while waiting and waiting[0] <= now and len(running) < most:
            waiting.pop(0)
            running.append(0)
        context = 2001 + sum(running) / len(running)
        seconds = side.decode_step(len(running) / 8, context).seconds
        wanted.append((now, seconds, len(running)))
        now += seconds
        running = [written + 1 for written in running if written + 1 < 29]
    found = list(_write(cluster, groups))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other)


def test_a_rate_that_does_not_divide_comes_to_its_end() -> None:
    """i / rate * rate may be a hair below i: found by chance, as a loop without end."""
    for per_s in (0.1, 1 / 3, 49.0, 0.07):
        assert simulate_serving(replace(K2, output=2), per_s, 200).prefill_tokens == 400_000


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds no prompt of 20000"):
        replace(K2, prompt=20000)
    with pytest.raises(ConfigError, match="batch is 0"):
        replace(K2, batch=0)
    with pytest.raises(ConfigError, match="prefill side has no accelerators"):
        replace(K2, prefill=describe_machine(ram_gb=64)[0])
    with pytest.raises(ConfigError, match="cannot be played"):
        simulate_serving(K2, 0.0)
    with pytest.raises(ConfigError, match="efficiency of network is 2"):
        ServingEfficiency(network=2)


def test_assumptions_name_what_they_are_about() -> None:
    said = " ".join(assumptions(K2))
    assert "32 GPUs read prompts and 96 write answers" in said
    assert "98 GB of weights and cache of its 151 GB" in said
