"""Pretraining played at paper scale: it agrees with the closed formula, and says what it assumes."""

from dataclasses import replace

import pytest

from moonlet.config import preset
from moonlet.errors import ConfigError
from moonlet.plan.cluster import (
    STAGES,
    Stage,
    assumptions,
    simulate_pretraining,
    simulate_step,
    stage_run,
    unpublished,
)
from moonlet.plan.describe import describe_machine
from moonlet.plan.training import TrainingRun, k2_run
from moonlet.plan.training_time import Efficiency

K2, K25 = preset("kimi-k2"), preset("kimi-k2.5")
H800S, _ = describe_machine(["8xH800"], ram_gb=2048, nodes=256, network_gbit=3200)
LATE = ("gradients", "muon", "optimizer", "parameters")


def test_one_rank_takes_as_long_as_the_formula_says() -> None:
    node, _ = describe_machine(["1xH200"])
    run = TrainingRun(preset("moonlight-16b-a3b"), global_batch=4)
    step = simulate_step(run, node)
    assert step.seconds == pytest.approx(step.formula.seconds, rel=1e-9)
    assert step.mfu == pytest.approx(step.formula.mfu, rel=1e-9)


def test_k2_played_is_near_the_closed_formula() -> None:
    """Played it is a little longer: exchanges and transfers delay the first and last micro-batches."""
    step = simulate_step(k2_run(K2), H800S)
    assert 1.0 < step.seconds / step.formula.seconds < 1.1
    assert 0.3 < step.mfu < 0.45
    computed = sum(step.formula.parts[name] for name in ("forward", "backward", "recompute"))
    mean = sum(step.played.busy(rank) for rank in range(16)) / 16
    assert mean == pytest.approx(computed, rel=0.01)  # no work lost; Muon is 0.3 %


def test_the_last_rank_to_finish_ends_the_step() -> None:
    step = simulate_step(k2_run(K2), H800S)
    last = [task for task in step.played.tasks if task.name == "parameters"]
    assert len(last) == 16
    assert step.seconds == max(task.end for task in last)


def test_hidden_exchange_is_faster_than_exposed() -> None:
    hidden = simulate_step(k2_run(K2), H800S)
    exposed = simulate_step(k2_run(K2), H800S, Efficiency(overlap=0.0))
    assert exposed.seconds > 1.15 * hidden.seconds
    assert exposed.exchange_share < 0.1 < hidden.exchange_share


def test_a_slow_way_to_the_host_holds_computation_up() -> None:
    slow = replace(H800S.accelerators[0], pcie_bytes_s=4e9)
    machine = replace(H800S, accelerators=(slow,) * 8)
    step, usual = (simulate_step(k2_run(K2), one) for one in (machine, H800S))
    assert usual.formula.parts["offload"] == 0
    assert step.seconds > 1.5 * usual.seconds
    assert step.seconds == pytest.approx(step.formula.seconds, rel=0.1)


def test_stages_have_the_published_tokens() -> None:
    """arXiv 2507.20534, section 2.5: 15.5 T, 400 B and 60 B; arXiv 2602.02276, table 3: 15 T, 500 to 200 B."""
    assert [stage.tokens for stage in STAGES["kimi-k2"]] == [15.5e12, 400e9, 60e9]
    assert [stage.tokens for stage in STAGES["kimi-k2.5"]] == [15e12, 500e9, 200e9]
    assert stage_run(K2, STAGES["kimi-k2"][0], 2048).tokens_per_step == 67_108_864


def test_pretraining_of_k25() -> None:
    """K2.5 trains at 0.9 of the speed on text; days have an interval around them, and scale with tokens."""
    text = simulate_pretraining(K25, (Stage("text", 1e12, 4096),), H800S)[0]
    images = simulate_pretraining(K25, (Stage("images", 2e12, 4096, images=True),), H800S)[0]
    assert images.days == pytest.approx(2 * text.days / 0.9)
    assert images.days_low < images.days < images.days_high
    assert images.gpu_hours == pytest.approx(images.days * 24 * 2048)
    long = simulate_pretraining(K25, (Stage("long", 1e12, 262144),), H800S)[0]
    assert long.days > 3 * text.days  # attention over 262144 tokens
    assert long.step.memory.total_bytes == pytest.approx(text.step.memory.total_bytes)


def test_a_long_sequence_is_shared_by_ranks() -> None:
    run = stage_run(K25, STAGES["kimi-k2.5"][2], 2048)
    assert (run.split.context, run.micro_batch_tokens, run.micro_batches) == (64, 4096, 128)
    with pytest.raises(ConfigError, match="do not divide"):
        stage_run(K25, STAGES["kimi-k2.5"][2], 256)


def test_assumptions_name_what_they_are_about() -> None:
    run = k2_run(K2, 1024, virtual=3)
    assert "(here 1024)" in unpublished(run)
    said = " ".join(assumptions(run, Efficiency(compute=0.4)))
    assert "40% of the peak" in said
    assert "of the 64 chunks" in said  # 2 * 15 + 2 * 16 run ahead, one more as K2 does, one at work
    shared = assumptions(stage_run(K25, STAGES["kimi-k2.5"][1], 2048), Efficiency())
    assert any("8 ranks share a sequence" in sentence for sentence in shared)
    alone = assumptions(TrainingRun(preset("nano")), Efficiency())
    assert len(alone) == 1
