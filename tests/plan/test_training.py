"""Memory of training runs against Kimi K2's published figures, and laws of the splits."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.config import ModelConfig, preset
from moonlet.config.tensors import tensor_specs
from moonlet.errors import ConfigError
from moonlet.plan.split import Split, chunks, is_trained, specs_of_rank
from moonlet.plan.training import (
    TrainingRun,
    held,
    in_flight,
    k2_run,
    moonlet_run,
    training_memory,
)

K2 = preset("kimi-k2")


def test_k2_weights_and_gradients_are_about_6_tb() -> None:
    """arXiv 2507.20534, section 2.4.2: BF16 weights and FP32 gradients of the model are about 6 TB."""
    one = training_memory(TrainingRun(K2)).worst
    assert one.bytes["parameters"] + one.bytes["gradients"] == pytest.approx(6e12, rel=0.03)


def test_k2_states_are_about_30_gb_per_gpu() -> None:
    """The same section: about 30 GB for all states, the optimizer's share negligible in a large cluster.

    By hand: of a layer's 384 experts each of 16 ranks has 24, of 44.04 M parameters: 3.96 B over 60 layers
    and 16 stages; attention, shared expert and the rest, 11.7 B, are on every rank of a stage: 0.73 B. Times
    6 bytes: 28.2 GB. Eight bytes of optimizer, shared by 8192 / 256 = 32 copies of each expert: about 1 GB.
    """
    large = training_memory(k2_run(K2, gpus=8192))
    assert large.mean_state_bytes == pytest.approx(28.2e9 + 3.96e9 * 8 / 32, rel=0.01)
    assert large.mean_state_bytes == pytest.approx(30e9, rel=0.05)
    assert max(rank.state_bytes for rank in large.ranks) == pytest.approx(30e9, rel=0.05)


def test_k2_fits_80_gb_only_with_its_measures() -> None:
    """The paper's reason for them: what 30 GB of states leave does not hold all activations."""
    run = k2_run(K2)
    assert training_memory(run).worst.total_bytes < 80e9
    bare = replace(run, recompute="none", fp8=False, offload=False)
    assert training_memory(bare).worst.total_bytes > 80e9
    totals = [
        training_memory(one).worst.total_bytes
        for one in (bare, replace(bare, recompute="selective"),
                    replace(bare, recompute="selective", fp8=True), run, replace(run, recompute="full"))
    ]  # fmt: skip
    assert totals == sorted(totals, reverse=True)


def test_activations_of_a_dense_layer_by_hand() -> None:
    """One dense layer of width 8, 2 heads, MLP 16; fused, bf16, nothing recomputed, two tokens."""
    config = replace(
        preset("tiny"), hidden_size=8, num_attention_heads=2, q_lora_rank=4, kv_lora_rank=6,
        qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4, intermediate_size=16, vocab_size=10,
        num_hidden_layers=1, first_k_dense_replace=1, vision=None, media_placeholder_token_id=None,
        bos_token_id=None, eos_token_ids=(), pad_token_id=None,
    )  # fmt: skip
    layer = 2 * (4 * 8 + 2 * 4 + 2 * 8 + 12 + 12 + 8 + 8 + 2 * 16 + 16) + 4 * 2
    ends = 2 * (8 + 8) + 4 * 10 + 8 + 8 + 4 * 2
    memory = training_memory(TrainingRun(config, sequence=2)).worst
    assert memory.bytes["activations"] == 2 * (layer + ends)


def test_activations_of_a_k2_rank_by_hand() -> None:
    """One token in one MoE layer. Kept: two residuals, both latents, attention's output in bf16; its log-sum-exp,
    the router's scores and weights; inputs and halves of SwiGLU in FP8 with a scale for each 128. Computed
    again: three norms, queries, keys, values, SwiGLU, what the experts give."""
    kept = 2 * (2 * 7168 + 1536 + 576 + 8192) + 4 * (64 + 384 + 8) + 8 * 8
    kept += (8 * 7168 + 8 * 4096 + 4096) * (1 + 4 / 128)
    again = 2 * (2 * 7168 + 1536 + 576 + 2 * 64 * 192 + 64 * 128 + 9 * 2048 + 8 * 7168)
    rank = training_memory(k2_run(K2)).ranks[1]
    assert rank.bytes["activations"] == pytest.approx(4096 * (3 * 2 * kept + again))
    in_all = (2 * 14 + 16 + 1 + 1) * 2 * kept * 4096  # run ahead, K2's further one, the one at work
    assert rank.host_bytes == pytest.approx(in_all - 4096 * 3 * 2 * kept)


def test_optimizer_state_by_hand() -> None:
    """Master weight and momentum for matrices, master weight and two moments for the rest, a count for each of it."""
    config = preset("moonlight-16b-a3b")
    specs = [spec for spec in tensor_specs(config) if is_trained(spec)]
    rest = [spec for spec in specs if spec.part in ("embedding", "head", "norm")]
    others = sum(spec.numel for spec in rest)
    matrices = sum(spec.numel for spec in specs) - others
    wanted = 8 * matrices + 12 * others + 4 * len(rest)
    assert training_memory(TrainingRun(config)).worst.bytes["optimizer"] == wanted


@settings(deadline=None, max_examples=60)
@given(
    pipeline=st.integers(1, 4), virtual=st.integers(1, 3), expert=st.sampled_from([1, 2, 4]),
    copies=st.sampled_from([1, 3]), tensor=st.sampled_from([1, 2]), zero=st.sampled_from([0, 1, 2, 3]),
)  # fmt: skip
def test_a_split_loses_and_invents_nothing(
    pipeline: int, virtual: int, expert: int, copies: int, tensor: int, zero: int
) -> None:
    """Over all ranks every tensor is there once for each copy that is kept of it."""
    config = replace(preset("nano"), num_hidden_layers=12)
    virtual = virtual if pipeline > 1 else 1
    split = Split(pipeline, virtual, expert, tensor, expert * copies, zero=zero)  # type: ignore[arg-type]
    run = TrainingRun(config, split, global_batch=12 * split.data)
    cut = chunks(config, split)
    assert [layer for chunk in cut for layer in chunk.layers] == list(range(12))
    assert [chunk.embedding for chunk in cut] == [True] + [False] * (len(cut) - 1)
    assert [chunk.head for chunk in cut] == [False] * (len(cut) - 1) + [True]
    sums: dict[str, float] = {}
    for stage in range(pipeline):
        for spec in specs_of_rank(config, split, stage):
            on_all = held(run, spec, 1) * split.tensor * split.data
            sums[spec.name] = sums.get(spec.name, 0.0) + on_all
    for spec in tensor_specs(config):
        stages = pipeline if spec.part in ("vision", "projector") else 1
        copies = split.tensor * split.data / split.pieces(spec)
        if zero >= 1:
            copies /= split.copies(spec)
        assert sums[spec.name] == pytest.approx(spec.numel * copies * stages)


@pytest.mark.parametrize(("zero", "shared"), [(0, ()), (1, ("optimizer",)), (2, ("optimizer", "gradients")),
                                              (3, ("optimizer", "gradients", "parameters"))])  # fmt: skip
def test_zero_shares_out_what_it_says(zero: int, shared: tuple[str, ...]) -> None:
    config = preset("moonlight-16b-a3b")
    alone = training_memory(TrainingRun(config)).worst
    run = TrainingRun(config, Split(data=8, zero=zero), global_batch=8)  # type: ignore[arg-type]
    spread = training_memory(run).worst
    for kind in ("parameters", "gradients", "optimizer"):
        wanted = alone.bytes[kind] / (8 if kind in shared else 1)
        assert spread.bytes[kind] == pytest.approx(wanted, rel=1e-6)


def test_in_flight_without_virtual_chunks_falls_by_one_a_stage() -> None:
    run = TrainingRun(K2, Split(8), global_batch=32)
    assert [in_flight(run, stage) for stage in range(8)] == [8, 7, 6, 5, 4, 3, 2, 1]
    interleaved = TrainingRun(K2, Split(4, virtual=2), global_batch=32)
    assert [in_flight(interleaved, stage) for stage in range(4)] == [11, 9, 7, 5]


def _nano(**changes: object) -> ModelConfig:
    return replace(preset("nano"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Split(0), "pipeline is 0"),
        (lambda: Split(virtual=2), "only 1 pipeline rank"),
        (lambda: Split(expert=3, data=4), "must divide the 4 data-parallel"),
        (lambda: Split(zero=4), "zero is 4"),  # type: ignore[arg-type]
        (lambda: TrainingRun(_nano(), Split(expert=3, data=3), global_batch=3), "16 experts cannot"),
        (lambda: TrainingRun(_nano(), Split(tensor=3)), "4 attention heads cannot"),
        (lambda: TrainingRun(_nano(), Split(8)), "more than the 7 layers"),
        (lambda: TrainingRun(_nano(), Split(data=2), global_batch=3), "3 sequences is no multiple of the 2"),
        (lambda: TrainingRun(_nano(), Split(2, 2), global_batch=3), "3 micro-batches"),
        (lambda: TrainingRun(_nano(), sequence=0), "sequence is 0"),
        (lambda: k2_run(K2, gpus=100), "100 GPUs are no multiple of 256"),
    ],
)  # fmt: skip
def test_impossible_runs_are_refused(make: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()  # type: ignore[operator]


def test_the_bias_of_the_router_is_no_parameter_that_is_trained() -> None:
    specs = tensor_specs(preset("nano"))
    idle = [spec for spec in specs if not is_trained(spec)]
    assert len(idle) == 4
    buffers = training_memory(moonlet_run(preset("nano"), 1, 8)).worst.bytes["buffers"]
    assert buffers >= 4 * sum(spec.numel for spec in idle)
