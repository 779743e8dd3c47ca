"""Measuring, on models so small that it takes no time: what comes out fits together, and a file is kept or none."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moonlet import kernels
from moonlet.cli import measure, measure_disk
from moonlet.config import preset
from moonlet.kernels.limits import Arithmetic
from moonlet.model import operations
from moonlet.model.profile import Step, bytes_read, is_packed, profile, stored_bytes
from moonlet.model.slices import Pool, float_slice, packed_slice
from moonlet.model.speed import Decode
from moonlet.plan.calibration import fingerprint, load_calibration
from moonlet.plan.detect import detect_machine
from moonlet.plan.local import decode_seconds, prefill_seconds

TINY = replace(
    preset("tiny"), model_type="deepseek_v3", vision=None, media_placeholder_token_id=None, n_shared_experts=2,
    qk_nope_head_dim=32, v_head_dim=32,
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything tiny and once."""
    for name in ("LIKE_MOONLIGHT", "SMALL", "LIKE_NANO"):
        monkeypatch.setattr(measure, name, TINY)
    monkeypatch.setattr(measure, "LENGTHS", (16, 32))
    monkeypatch.setattr(measure, "IN_TURN_S", 0.0)
    for name, value in (("TOKENS", (1, 4)), ("MATRIX_BYTES", 1 << 16), ("BUDGET_S", 0.0), ("LEAST", 1),
                        ("COLUMNS", 256), ("HEADS", (4, 16)), ("PROMPT", 32)):  # fmt: skip
        monkeypatch.setattr(operations, name, value)
    monkeypatch.setattr(measure_disk, "DISK_BYTES", 1 << 26)
    return iter(())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "INT4", "IQ3_S", "TQ1_0"])
@pytest.mark.parametrize("rank", [None, 256])
def test_a_slice_runs_on_the_kernels(kind: str, rank: int | None) -> None:
    config = replace(
        TINY, hidden_size=256, moe_intermediate_size=256, intermediate_size=256, q_lora_rank=rank
    )
    model = packed_slice(Pool(), config, kind)
    assert is_packed(model)
    ids = torch.arange(12).view(1, -1)
    with torch.inference_mode():
        logits = model.logits(model.hidden(ids, cache=model.new_cache(1, 12)))
    assert logits.shape == (1, 12, config.vocab_size)
    assert torch.isfinite(logits).all()


def test_experts_of_a_slice_are_asked_evenly() -> None:
    """As predictions count them: 8 tokens that each ask 6 of 64 reach 64 (1 - (58/64)^8) = 35 of them."""
    config = replace(TINY, hidden_size=256, moe_intermediate_size=256, intermediate_size=256, num_hidden_layers=3,
                     n_routed_experts=64, num_experts_per_tok=6)  # fmt: skip
    model = packed_slice(Pool(), config, "Q8_0")
    what, run = Step(8, 1, 0), Decode(model, 0, 8, 1).step
    parts = profile(model, what, run, 1e9, Arithmetic(1e12, 1e12, 1e12))
    read = next(part.bytes for part in parts if part.part == "experts")
    assert 0.9 < read / bytes_read(model, what)["experts"] < 1.1


def test_a_form_knows_what_it_builds() -> None:
    """The bytes that a prediction counts are those of the model that is timed."""
    form = measure.Form(
        lambda config: packed_slice(Pool(), config, "Q8_0", "Q8_0"), "Q8_0", {"router": "F32"}
    )
    config = replace(TINY, hidden_size=256, moe_intermediate_size=256, intermediate_size=256)
    layers = form.build(config).language_model.model.layers
    experts = form.weights(config).bytes_of("experts")
    built = sum(stored_bytes(layer.mlp.experts) for layer in list(layers)[1:])
    assert built == pytest.approx(experts, rel=0.02)  # panels and pages are filled up


def test_types_with_the_same_panels_are_measured_once() -> None:
    types = operations.kernel_types()
    assert "IQ3_S" in types["IQ2_XXS"]
    assert types["TQ1_0"] == ["TQ1_0", "TQ2_0"]
    assert types["INT4"] == ["INT4"]
    assert len({kernels.panel_type(first) for first in types}) == len(types)


@pytest.mark.usefixtures("quick")
def test_what_is_measured_is_what_is_predicted(tmp_path: Path) -> None:
    """For the models that were timed, the calibration gives back their times: there it is exact."""
    told: list[str] = []
    calibration = measure.measure(tmp_path, told.append)
    assert len(told) == measure.num_steps()
    assert calibration.host == fingerprint(detect_machine(tmp_path))
    assert set(calibration.packed.matrix) >= {"Q4_0", "IQ1_S", "INT4", "F32"}
    assert all(y >= 0 for curve in calibration.packed.matrix.values() for _, y in curve)
    assert calibration.torch.dense_layer + calibration.torch.moe_layer > 0
    form = measure.Form(float_slice, "F32", {})
    weights = form.weights(TINY)
    assert 1e-5 < decode_seconds(weights, calibration, 0) < 1
    assert prefill_seconds(weights, calibration, 32) > 0


@pytest.mark.usefixtures("quick")
def test_the_result_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measure.run_measure(tmp_path / "new" / "calibration.json")
    calibration, sentence = load_calibration(fingerprint(detect_machine()), path)
    assert (calibration is not None, sentence) == (True, None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "two minutes" in captured.err


def test_an_interrupted_measurement_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, tell: measure.Tell) -> None:
        tell("something")
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure.run_measure(tmp_path / "calibration.json")
    assert list(tmp_path.iterdir()) == []


def test_the_drive_is_read_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_disk, "DISK_BYTES", 1 << 26)
    rate = measure_disk.disk_rate(tmp_path)
    assert rate is None or rate > 1e6
    assert list(tmp_path.iterdir()) == []
    assert measure_disk.disk_rate(tmp_path / "absent") is None
