"""What moonlet keeps of stored weights, against the kernels' own panels."""

from dataclasses import replace
from itertools import pairwise

import pytest

from moonlet import kernels
from moonlet.config import preset
from moonlet.plan.resident import KEPT_BITS, computes_in_float32, resident
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import Weights
from moonlet.quant.types import TYPES

K25, MOONLIGHT = preset("kimi-k2.5"), preset("moonlight-16b-a3b")
TYPES_WITH_PANELS = [name for name in TYPES if name not in ("F32", "F16", "BF16")]


@pytest.mark.parametrize("name", TYPES_WITH_PANELS)
def test_experts_take_what_panels_take(name: str) -> None:
    rows, cols = 256, 2048
    stored = TYPES[name].bits_per_value / 8 * rows * cols
    weights = Weights(MOONLIGHT, "file", {"experts": {name: stored}})
    panels = kernels.Matrix(kernels.panel_type(name), rows, cols).nbytes
    assert resident(weights).total_bytes == pytest.approx(panels)
    assert (panels > stored) == (name in KEPT_BITS)


def test_floats_beside_quantized_matrices_become_8_bit() -> None:
    stored, kept = weights_as(K25, "native"), resident(weights_as(K25, "native"))
    for part in ("attention", "shared_experts", "dense", "head"):
        assert kept.bytes_of(part) == pytest.approx(stored.bytes_of(part) * 34 / 64, rel=1e-3)
    for part in ("experts", "router", "norm", "embedding"):
        assert kept.bytes_of(part) == stored.bytes_of(part)
    assert kept.bytes_of("vision") == 2 * stored.bytes_of("vision")


def test_float_models_stay_unless_they_are_small() -> None:
    stored = weights_as(MOONLIGHT, "bf16")
    assert resident(stored).stored == stored.stored
    assert not computes_in_float32(stored)
    tiny = weights_as(preset("tiny"), "bf16")
    as_floats = 4 * sum(tiny.bytes_of(part) for part in tiny.stored) / 2
    assert computes_in_float32(tiny)
    assert resident(tiny).total_bytes == pytest.approx(
        as_floats, rel=0.01
    )  # some are float32 already


def test_a_packed_folder_holds_what_is_kept() -> None:
    weights = replace(weights_as(K25, "tq1_0"), label="packed")
    assert resident(weights) == weights


def test_files_known_by_their_size_alone_are_judged_by_their_name() -> None:
    """Unsloth's 1-bit file has IQ1 and TQ1_0 experts, of which moonlet keeps more bits than the file."""
    small = resident(weights_as(K25, "ud-tq1_0"))
    assert small.total_bytes > 1.9 * weights_as(K25, "ud-tq1_0").total_bytes
    mixed = weights_as(K25, "ud-q2_k_xl")
    assert resident(mixed).bytes_of("experts") == mixed.bytes_of("experts")


def test_smaller_k_quants_take_less() -> None:
    sizes = [resident(weights_as(K25, name)).total_bytes for name in ("q8_0", "q4_k_m", "q2_k_xl")]
    assert all(large > small for large, small in pairwise(sizes))
