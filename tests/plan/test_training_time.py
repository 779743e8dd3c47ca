"""Operations and seconds of training against published runs and hand arithmetic."""

from dataclasses import replace

import pytest

from moonlet.config import preset
from moonlet.config.sizes import model_sizes
from moonlet.errors import ConfigError
from moonlet.plan.machine import Accelerator, Host, Machine
from moonlet.plan.split import Split
from moonlet.plan.training import TrainingRun, k2_run, moonlet_run
from moonlet.plan.training_time import (
    Efficiency,
    Rates,
    model_flops,
    newton_schulz_flops,
    optimizer_seconds,
    step_seconds,
)

K2, V3 = preset("kimi-k2"), preset("deepseek-v3")
HOST = Host("two sockets", 64, 2e12, 400e9, {"fp32": 4e12})
# H800: the numbers of arXiv 2505.09343, section 2.2 and figure 2: NVLink 200 GB/s in one direction, eight 400 Gb/s NICs.
H800 = Accelerator("H800", 80e9, 3.35e12, {"bf16": 989e12}, 200e9, 64e9)


def cluster(gpus: int) -> Machine:
    return Machine("H800s", HOST, (H800,) * 8, nodes=gpus // 8, network_bytes_s=400e9)


def deepseek_v3() -> TrainingRun:
    """arXiv 2412.19437, sections 3.2 and 4.2: 2048 GPUs, 16-way pipeline, 64-way experts, ZeRO-1, 15360
    sequences of 4096. Its DualPipe is played as plain 1F1B, its small recomputation left out."""
    return TrainingRun(V3, Split(16, expert=64, data=128, zero=1), 15360)


def test_operations_per_token_of_deepseek_v3() -> None:
    """arXiv 2505.09343, table 4: 385 TFLOPS per GPU (attention causal), 432 (not), 2048 GPUs, 19.926 s."""
    per_token = 2048 * 19.926 / (15360 * 4096)
    assert model_flops(V3, 4096) == pytest.approx(385e12 * per_token, rel=0.01)
    whole = 3 * 61 * 128 * (192 + 128) * 4096  # not causal: twice the attention
    assert model_flops(V3, 4096) + whole == pytest.approx(432e12 * per_token, rel=0.01)


def test_operations_are_six_per_active_parameter_and_attention() -> None:
    attention = 3 * 61 * 64 * (192 + 128) * 4096
    active = model_sizes(K2).parameters_active
    assert model_flops(K2, 4096) == pytest.approx(6 * active + attention, rel=1e-4)


def test_step_of_deepseek_v3_as_published() -> None:
    """Same table: 19.926 s a step, of which bubble 2.06 and optimizer 0.29; 38.94 % of the peak.

    `Efficiency.compute` was chosen for the total; the bubble and the optimizer were not.
    """
    step = step_seconds(deepseek_v3(), cluster(2048))
    assert step.seconds == pytest.approx(19.926, rel=0.03)
    assert step.mfu == pytest.approx(0.3894, rel=0.03)
    assert step.parts["bubble"] == pytest.approx(2.06, rel=0.1)
    late = ("gradients", "muon", "optimizer", "parameters")
    assert 0.1 < sum(step.parts[name] for name in late) < 0.6


def test_days_and_gpu_hours_of_deepseek_v3() -> None:
    """arXiv 2412.19437, table 1: 2.664 M H800 hours for 14.8 T tokens, 3.7 days for each of them on 2048."""
    step = step_seconds(deepseek_v3(), cluster(2048))
    assert step.gpu_hours(14.8e12) == pytest.approx(2.664e6, rel=0.1)
    assert step.days(1e12) == pytest.approx(3.7, rel=0.05)


def test_newton_schulz_of_an_expert_is_half_a_percent() -> None:
    """5 steps of X X^T (n n m), A A (n n n) and B X (n n m), two operations each, against 6 n m T of the 67 M
    tokens that reach one in 48 experts: (20 n + 10 n^2 / m) / (6 T)."""
    n, m, tokens = 2048, 7168, 16384 * 4096 * 8 / 384
    assert newton_schulz_flops(n, m) == newton_schulz_flops(m, n) == 20 * n * n * m + 10 * n**3
    share = newton_schulz_flops(n, m) / (6 * n * m * tokens)
    assert share == pytest.approx((20 * n + 10 * n * n / m) / (6 * tokens))
    assert 0.005 < share < 0.006


def test_muon_is_shared_out_by_zero() -> None:
    config = preset("moonlight-16b-a3b")
    machine = Machine("node", HOST, (H800,) * 8)

    def muon(zero: int) -> float:
        run = TrainingRun(config, Split(data=8, zero=zero), 8)  # type: ignore[arg-type]
        return optimizer_seconds(run, Rates.of(run, machine, Efficiency()), alone=True)[0]["muon"]

    assert muon(0) == pytest.approx(8 * muon(1))


@pytest.mark.parametrize(
    ("zero", "reduced", "gathered"), [(0, 8, 0), (1, 4, 2), (2, 4 * 3, 2), (3, 4 * 3, 2 * 2 * 3)]
)
def test_gradients_and_parameters_over_the_wire_by_hand(
    zero: int, reduced: int, gathered: int
) -> None:
    """Bytes per parameter of a step of 3 micro-batches, 7/8 of which leave a rank: an all-reduce without ZeRO, a
    reduce-scatter with it (of every micro-batch from stage 2 on); bf16 parameters gathered once, from stage 3
    on twice a micro-batch. Muon of a sharded momentum gathers that as well, in bf16."""
    config = preset("moonlight-16b-a3b")
    run = TrainingRun(config, Split(data=8, zero=zero), 24)  # type: ignore[arg-type]
    machine = Machine("node", HOST, (H800,) * 8)
    (late,) = optimizer_seconds(run, Rates.of(run, machine, Efficiency()), alone=True)
    sizes = model_sizes(config)
    others = sizes.parameters("embedding", "head", "norm")
    biases = 26 * 64
    matrices = sizes.parameters(*sizes.parts) - others - biases
    muon = 2 * matrices if zero else 0
    wire = 7 / 8 / 160e9
    assert late["gradients"] == pytest.approx(((matrices + others) * reduced + muon) * wire)
    assert late["parameters"] == pytest.approx((matrices + others) * gathered * wire)


def test_updates_read_and_write_the_state() -> None:
    """Gradient read, momentum or two moments, master weight read and written, bf16 weight written."""
    config = preset("moonlight-16b-a3b")
    run, sizes = TrainingRun(config), model_sizes(config)
    (late,) = optimizer_seconds(run, Rates.of(run, cluster(8), Efficiency()), alone=True)
    others = sizes.parameters("embedding", "head", "norm")
    matrices = sizes.parameters(*sizes.parts) - others - 26 * 64
    touched = matrices * (4 + 8 + 8 + 2) + others * (4 + 16 + 8 + 2)
    assert late["optimizer"] == pytest.approx(touched / (3.35e12 * 0.8))


def test_exchange_of_experts_by_hand() -> None:
    """K2, 16 ranks on two nodes: a token's 8 experts reach 15 (1 - (15/16)^8) = 6.05 other ranks over NVLink at
    0.8 of 200 GB/s, and nearly always the other node, over the network at 0.8 of 50 GB/s. 14336 bytes, both
    ways, both passes, four MoE layers in the slowest of 16 stages; none of it hidden."""
    run, once = k2_run(K2), 4096 * 7168 * 2
    bare = step_seconds(run, cluster(2048), Efficiency(overlap=0.0))
    nvlink = 15 * (1 - (15 / 16) ** 8) * once / 160e9
    assert bare.parts["exchange"] == pytest.approx(128 * 4 * 2 * 2 * nvlink)
    slow = replace(cluster(2048), network_bytes_s=200e9)
    network = (1 - 0.5**8) * once / 20e9
    bare = step_seconds(run, slow, Efficiency(overlap=0.0))
    assert bare.parts["exchange"] == pytest.approx(128 * 4 * 2 * 2 * network)
    assert step_seconds(run, cluster(2048)).parts["exchange"] == 0


def test_tensor_parallel_ranks_pay_for_their_gathers() -> None:
    """Four collectives a layer and pass move 7/8 of a micro-batch; 27 layers, 4 micro-batches."""
    run = TrainingRun(preset("moonlight-16b-a3b"), Split(tensor=8), 4)
    step = step_seconds(run, Machine("node", HOST, (H800,) * 8))
    once = 7 / 8 * 4096 * 2048 * 2 / 160e9
    assert step.parts["tensor"] == pytest.approx(4 * 27 * 2 * 4 * once)


def test_recomputation_and_bubbles_cost_what_they_should() -> None:
    run = k2_run(K2)
    step = step_seconds(run, cluster(2048))
    assert step.parts["backward"] == pytest.approx(2 * step.parts["forward"])
    full = step_seconds(replace(run, recompute="full"), cluster(2048))
    assert 0.85 < full.parts["recompute"] / full.parts["forward"] < 1  # all but the head
    assert step.parts["recompute"] < 0.3 * full.parts["recompute"]
    deeper = step_seconds(k2_run(K2, virtual=1), cluster(2048))
    assert deeper.parts["bubble"] > 1.8 * step.parts["bubble"]


def test_parts_add_up_and_more_gpus_are_faster() -> None:
    small, large = (step_seconds(k2_run(K2, gpus), cluster(gpus)) for gpus in (1024, 4096))
    assert small.seconds == sum(small.parts.values())
    assert small.seconds > large.seconds
    assert small.gpu_hours(1e12) < large.gpu_hours(1e12)
    assert all(seconds >= 0 for seconds in (*small.parts.values(), *large.parts.values()))


def test_a_processor_trains_too() -> None:
    run = moonlet_run(preset("nano"), 16, 128)
    step = step_seconds(run, Machine("laptop", HOST))
    assert step.parts["forward"] == pytest.approx(
        model_flops(run.config, 128) / 3 * 2048 / (4e12 * 0.47)
    )
    assert step.parts["bubble"] == step.parts["exchange"] == step.parts["gradients"] == 0


def test_machines_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2048 ranks, but H800s has 1024"):
        step_seconds(k2_run(K2), cluster(1024))
    with pytest.raises(ConfigError, match="no accelerators"):
        step_seconds(k2_run(K2), Machine("laptop", HOST))
    with pytest.raises(ConfigError, match="nobody says how many bf16"):
        step_seconds(TrainingRun(preset("nano")), Machine("laptop", HOST))
    with pytest.raises(ConfigError, match="efficiency of compute"):
        Efficiency(compute=0)
