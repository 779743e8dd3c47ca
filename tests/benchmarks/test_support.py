"""What the benchmarks stand on: the bars, and random models that both sides can run. Never a speed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.support import peer
from benchmarks.support.bars import Bars, Measured, markdown
from benchmarks.support.random_gguf import write_random
from moonlet.checkpoint import open_checkpoint
from moonlet.config import ModelConfig, preset
from moonlet.model import load_packed
from moonlet.model.speed import Prefill
from moonlet.quant import decode


def measured(**changes: object) -> Measured:
    one = Measured(
        "file", "decode at depth 0", 1.05, ours=[30.0, 20.0, 22.0], theirs=[20.0, 10.0, 30.0]
    )
    return replace(one, **changes)


def test_the_ratio_is_of_medians() -> None:
    assert measured().ratio == 22 / 20
    assert measured(theirs=[]).ratio is None
    assert measured(is_time=True).ratio == 20 / 22


@pytest.mark.parametrize(("bar", "met"), [(1.1, True), (1.11, False)])
def test_a_bar_is_met_or_not(bar: float, met: bool) -> None:
    (verdict,) = measured(bar=bar).verdicts()
    assert verdict == {"what": "times llama.cpp", "figure": 1.1, "bar": bar, "met": met}
    assert ("NOT MET" in markdown([measured(bar=bar)])) != met


def test_without_a_peer_nothing_is_met_and_nothing_missed() -> None:
    (verdict,) = measured(theirs=[]).verdicts()
    assert verdict["met"] is None
    assert "wanted 1.05x" in markdown([measured(theirs=[])])


@pytest.mark.parametrize(
    ("bandwidth", "share", "bar"), [(36e9, 33e9 / 36e9, 0.92), (64e9, 33e9 / 64e9, 0.80)]
)
def test_the_share_of_the_bandwidth_depends_on_the_state(
    bandwidth: float, share: float, bar: float
) -> None:
    one = measured(bytes_per_token=1.5e9, bandwidths=[bandwidth] * 3, one_thread=[32e9])
    verdict = one.verdicts()[1]
    assert verdict["figure"] == pytest.approx(share)
    assert verdict["bar"] == bar
    assert verdict["met"] == (share >= bar)


def test_the_bars_of_the_project() -> None:
    assert (Bars(2.5).decode, Bars(2.5).deep, Bars(2.5).deepest, Bars(2.5).batch) == (1.05, 1.5, 3.0, 1.5)  # fmt: skip


def small() -> ModelConfig:
    return replace(
        preset("moonlight-16b-a3b"), vocab_size=512, hidden_size=256, intermediate_size=256,
        moe_intermediate_size=96, num_hidden_layers=2, n_routed_experts=8, kv_lora_rank=64,
        num_attention_heads=2, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32,
        bos_token_id=1, eos_token_ids=(2,),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q2_K", "TQ1_0"])
def test_random_files_open_with_the_types_that_were_asked_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    write_random(path, small(), kind, lambda text: None)
    checkpoint = open_checkpoint(path)
    checkpoint.validate()
    layer = "language_model.model.layers.1."
    experts = layer + "mlp.experts."
    types = {
        layer + "self_attn.o_proj.weight": (None, None, "Q8_0"),
        layer + "mlp.gate.weight": (None, None, "F32"),
        experts + "gate_up_proj": (3, "up", kind),
        experts + "down_proj": (3, None, "Q4_0"),  # 96 columns fill no block of 256
    }
    for name, (expert, block, wanted) in types.items():
        found = checkpoint.matrix(name, expert, block)
        assert found.type == wanted
        values = decode(found.type, found.data)
        assert np.isfinite(values).all()
        assert values.std() * found.cols**0.5 == pytest.approx(1, abs=0.35)


def test_a_random_model_runs(tmp_path: Path) -> None:
    write_random(tmp_path / "random.gguf", small(), "Q4_0", lambda text: None)
    model = load_packed(tmp_path / "random.gguf")
    with torch.inference_mode():
        hidden = model.hidden(torch.arange(9)[None])
    assert bool(hidden.isfinite().all())
    assert 0 <= Prefill(model, 5).next_token() < 512


def test_where_the_peer_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(peer.VARIABLE, raising=False)
    assert peer.find(None, 2) is None
    with pytest.raises(SystemExit, match="holds no llama-bench"):
        peer.find(tmp_path, 2)
    (tmp_path / "build" / "bin").mkdir(parents=True)
    (tmp_path / "build" / "bin" / "llama-bench").touch()
    assert peer.find(tmp_path, 2) is not None
    monkeypatch.setenv(peer.VARIABLE, str(tmp_path))
    assert peer.find(None, 2) is not None


def a_program(folder: Path, text: str) -> peer.Peer:
    for name in ("llama-bench", "llama-batched-bench"):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return peer.Peer(folder, 2)


def test_what_the_peer_says(tmp_path: Path) -> None:
    lines = '{"samples_ts": [3.0, 5.0, 4.0], "pl": 8, "speed_tg": 7.0}'
    side = a_program(tmp_path, f"echo noise\necho '{lines}'")
    assert side.prefill(Path("m"), 8, all_logits=True) == 4
    assert side.decode(Path("m"), 0, 4) == 4
    assert side.decode_batch(Path("m"), 8, 4, 4) == 7
    assert side.first_token(Path("m"), 8) > 0


def test_a_peer_that_fails_says_why(tmp_path: Path) -> None:
    side = a_program(tmp_path, "echo out of memory >&2; exit 1")
    with pytest.raises(RuntimeError, match="llama-bench gave no result for m: out of memory"):
        side.decode(Path("m"), 0, 4)
    with pytest.raises(RuntimeError, match="gave no result"):
        side.first_token(Path("m"), 8)
