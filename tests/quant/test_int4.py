"""INT4 against compressed-tensors' recorded output, and against the rule written out in a loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moonlet.quant import bf16, int4
from tests.shared import golden

finite = st.floats(-1e4, 1e4, width=32)
matrices = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=finite
)


def words(hexes: list[str]) -> np.ndarray:
    return np.array([int(word, 16) for word in hexes], np.uint32).view(np.int32)[None]


def one(rows: int, cols: int) -> np.ndarray:
    """Scales that are all 1, so that decoded values are the codes themselves."""
    return np.ones(int4.scale_shape(rows, cols), np.float32)


@pytest.mark.parametrize("probe", ["nibble_order_probe", "padding_probe"])
def test_recorded_words_hold_the_recorded_codes(probe: str) -> None:
    case = golden("int4_pack_quantized.json")[probe]
    codes = np.array([case["q"]])
    packed = words(case["words_hex"])
    assert (int4.decode(packed, one(*codes.shape), codes.shape[1]) == codes).all()
    assert (int4._pack(codes.astype(np.int8)) == packed).all()


def test_recorded_layer_decodes_to_its_recorded_values() -> None:
    layer = golden("int4_pack_quantized.json")["layer"]
    packed = np.array(layer["weight_packed_int32"], np.int32)
    scale = np.array(layer["weight_scale_bf16"], np.float32)
    value = int4.decode(packed, scale, layer["weight_shape"][1])
    codes = np.array(layer["q"], np.float32)
    assert (value == codes * np.repeat(scale, 32, axis=1)).all()
    assert (bf16.rounded(value) == np.array(layer["dequant_bf16"])).all()


def test_encode_follows_the_rule_value_by_value() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 70)).astype(np.float32)
    value = int4.decode(*int4.encode(weight), cols=70)
    for row in range(3):
        for col in range(70):
            group = weight[row, col // 32 * 32 : col // 32 * 32 + 32]
            scale = bf16.rounded(np.abs(group).max(keepdims=True) / 7)[0]
            code = min(7, max(-7, round(float(weight[row, col] / scale))))
            assert value[row, col] == np.float32(code) * scale


@given(matrices)
def test_encoding_a_decoded_matrix_changes_nothing(weight: np.ndarray) -> None:
    packed, scale = int4.encode(weight)
    again = int4.encode(int4.decode(packed, scale, weight.shape[1]))
    assert (again[0] == packed).all()
    assert (again[1] == scale).all()
    assert (bf16.rounded(scale) == scale).all()


@given(matrices)
def test_error_is_at_most_half_a_step_and_no_code_is_minus_8(weight: np.ndarray) -> None:
    packed, scale = int4.encode(weight)
    step = np.repeat(scale, 32, axis=1)[:, : weight.shape[1]]
    error = np.abs(int4.decode(packed, scale, weight.shape[1]) - weight)
    # Rounding the scale to bf16 (8 bits) may pull the largest value in by 7 * 2^-8 of a step.
    assert (error <= step * (0.5 + 7 / 256)).all()
    assert int4.decode(packed, one(*weight.shape), weight.shape[1]).min() >= -7


def test_a_matrix_of_many_chunks_decodes_like_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(1).normal(size=(9, 64)).astype(np.float32)
    packed, scale = int4.encode(weight)
    whole = int4.decode(packed, scale, 64)
    monkeypatch.setattr(int4, "CHUNK_VALUES", 128)
    out = np.empty((9, 64), np.float32)
    assert int4.decode(packed, scale, 64, out=out) is out
    assert (out == whole).all()
    assert (int4.encode(weight)[0] == packed).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="cannot be stored as INT4"):
        int4.encode(np.array([[1.0, bad]], np.float32))


def test_bf16_rounds_to_nearest_even_and_keeps_specials() -> None:
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(2).integers(0, 2**32, 10000, np.uint32)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38], np.float32)
    values = np.concatenate([bits.view(np.float32), special])
    expected = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(bf16.rounded(values), expected.float().numpy())


def test_decoding_agrees_with_compressed_tensors() -> None:
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = np.random.default_rng(4).integers(-8, 8, (5, 64)).astype(np.int8)
    packed = theirs.pack_to_int32(torch.from_numpy(codes), 4).numpy()
    assert (int4.decode(packed, one(5, 64), 64) == codes).all()
    assert (int4._pack(codes) == packed).all()
