"""One stored type to another: INT4 and Q4_0 keep their codes, everything else goes through floats."""

import numpy as np
import pytest

from moonlet.checkpoint.stored import StoredMatrix
from moonlet.checkpoint.transcode import from_values, rows_of, transcode, values_of
from moonlet.quant import decode

RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((6, 96), np.float32) * np.float32(0.02)


def test_int4_becomes_q4_0_and_comes_back_bit_by_bit() -> None:
    packed = from_values(VALUES, "INT4")
    blocks = transcode(packed, "Q4_0")
    assert blocks.rounded == 0
    assert np.array_equal(values_of(blocks.matrix), values_of(packed))
    again = transcode(blocks.matrix, "INT4")
    assert again.rounded == 0
    assert again.matrix.scale is not None
    assert packed.scale is not None
    assert np.array_equal(again.matrix.data, packed.data)
    assert np.array_equal(again.matrix.scale, packed.scale)


def test_every_code_and_both_signs_of_the_scale_survive() -> None:
    """Q4_0 as llama.cpp makes it: the code -8 stands for the largest value, so the scale may be negative."""
    values = np.tile(np.arange(-8, 8, dtype=np.float32), (2, 2)) * np.float32([[0.5], [-0.5]])
    blocks = from_values(values, "Q4_0")
    assert np.array_equal(values_of(blocks), values)
    packed = transcode(blocks, "INT4")
    assert packed.rounded == 0
    assert np.array_equal(values_of(packed.matrix), values)


def test_scales_that_are_rounded_are_counted() -> None:
    blocks = from_values(VALUES, "Q4_0")  # float16 scales, of which few fit bfloat16
    packed = transcode(blocks, "INT4")
    scales = np.ascontiguousarray(blocks.data.reshape(6, 3, 18)[..., :2]).view(np.float16)
    fit = (scales.view(np.uint16) & 7) == 0
    assert packed.rounded == (~fit).sum() > 0
    assert np.allclose(values_of(packed.matrix), values_of(blocks), rtol=2**-8)
    tiny = StoredMatrix(
        "INT4", 1, 32, RNG.integers(0, 256, (1, 16), np.uint8), np.uint16([[0x3001]])
    )
    assert transcode(tiny, "Q4_0").rounded == 1


@pytest.mark.parametrize("bits", [0x7F80, 0x7FC0, 0x4F00])
def test_scales_that_float16_cannot_hold_are_refused(bits: int) -> None:
    large = StoredMatrix("INT4", 1, 32, np.zeros((1, 16), np.uint8), np.uint16([[bits]]))
    with pytest.raises(ValueError, match="beyond what Q4_0 can hold"):
        transcode(large, "Q4_0")


def test_a_q4_0_scale_that_is_no_number_is_refused() -> None:
    blocks = StoredMatrix("Q4_0", 1, 32, np.full((1, 18), 0xFF, np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        transcode(blocks, "INT4")


def test_other_types_go_through_their_values() -> None:
    packed = from_values(VALUES, "INT4")
    for kind in ("F32", "Q8_0", "BF16"):
        coded = transcode(packed, kind)
        assert np.allclose(decode(kind, coded.matrix.data), values_of(packed), atol=2e-4, rtol=8e-3)
    same = transcode(packed, "INT4")
    assert same.matrix is packed


def test_rows_are_views() -> None:
    packed = from_values(VALUES, "INT4")
    part = rows_of(packed, slice(2, 4))
    assert part.rows == 2
    assert np.shares_memory(part.data, packed.data)
    assert np.array_equal(values_of(part), values_of(packed)[2:4])


def test_importance_reaches_the_encoder() -> None:
    values = RNG.standard_normal((4, 256), np.float32)
    source = from_values(values, "F32")
    weights = np.where(np.arange(256) % 4 == 0, 100, 0.01).astype(np.float32)
    errors = []
    for importance in (None, weights):
        found = values_of(transcode(source, "Q2_K", importance).matrix)
        errors.append(((found - values) ** 2 * weights).sum())
    assert errors[1] < 0.97 * errors[0]
