"""FP8 against the recorded table and matrix, and against torch's own float8_e4m3fn."""

import numpy as np
import pytest

from moonlet.quant import fp8
from tests.shared import golden


def test_the_value_of_every_code_is_as_recorded() -> None:
    table = np.array(
        [np.nan if v is None else v for v in golden("fp8_block.json")["e4m3fn_table"]], np.float32
    )
    np.testing.assert_array_equal(fp8.E4M3_VALUES, table)


def test_recorded_rows_of_a_matrix_with_partial_blocks_decode() -> None:
    example = golden("fp8_block.json")["example"]
    codes = np.zeros(example["shape"], np.uint8)
    for row, text in example["fp8_bytes_hex"].items():
        codes[int(row)] = np.frombuffer(bytes.fromhex(text), np.uint8)
    scale = np.array(example["weight_scale_inv"], np.float32)
    assert scale.shape == fp8.scale_shape(130, 200)
    value = fp8.decode(codes, scale)
    for row, expected in example["dequant"].items():
        np.testing.assert_array_equal(value[int(row)], np.array(expected, np.float32))


def test_rounding_agrees_with_torch_for_every_region() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    middles = np.add(fp8.E4M3_VALUES[:126], fp8.E4M3_VALUES[1:127]) / 2  # the ties
    values = np.concatenate(
        [fp8.E4M3_VALUES, middles, -middles, rng.normal(size=4000), rng.normal(size=4000) * 100]
    )
    values = values[np.isfinite(values)].clip(-448, 448).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(fp8.to_e4m3(values), expected)


def test_values_beyond_the_range_saturate() -> None:
    assert list(fp8.E4M3_VALUES[fp8.to_e4m3(np.array([1e9, -1e9], np.float32))]) == [448, -448]


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 127), (130, 300)])
def test_encode_then_decode_stays_within_half_a_step(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    codes, scale = fp8.encode(weight)
    assert scale.shape == fp8.scale_shape(*shape)
    value = fp8.decode(codes, scale)
    # 3 mantissa bits: half a step is 2^-4 of a normal number; below that, half of 2^-9 scales.
    assert (np.abs(value - weight) <= np.abs(weight) * 2**-4 + scale.max() * 2**-10).all()
    assert value[:128, :128].max() == pytest.approx(weight[:128, :128].max(), rel=2**-4)


def test_a_block_of_zeros_stays_zero() -> None:
    assert (fp8.decode(*fp8.encode(np.zeros((3, 200), np.float32))) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="cannot be stored as FP8"):
        fp8.encode(np.array([[bad]], np.float32))
