"""Decoding against gguf-py and recorded blocks, exact encoding against recorded bytes, and every edge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.quant import codec, decode, encode, grids
from moonlet.quant.rounding import round_half_away
from moonlet.quant.types import TYPES, BlockType, type_of, type_of_id
from tests.shared import golden

every_type = pytest.mark.parametrize("kind", TYPES.values(), ids=list(TYPES))
written = pytest.mark.parametrize("name", codec.ENCODERS)
EXACT = ("F32", "F16", "BF16")
BY_LARGEST = ("Q4_0", "Q5_0", "Q8_0", "TQ1_0", "TQ2_0")  # scale set by the largest value of a block


def random_blocks(kind: BlockType, seed: int, rows: int, per_row: int) -> np.ndarray:
    shape = (rows, per_row * kind.bytes)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_same_bits(value: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(value.view(np.uint32), expected.view(np.uint32))


@every_type
def test_10000_random_blocks_decode_like_gguf_bit_by_bit(kind: BlockType) -> None:
    gguf = pytest.importorskip("gguf")
    blocks = random_blocks(kind, kind.id, rows=1250, per_row=8)
    with np.errstate(all="ignore"):  # random scales are infinite or NaN here and there
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.name])
    value = decode(kind.name, blocks)
    assert value.shape == (1250, 8 * kind.values)
    # The bits of a NaN depend on the processor; where they are is held all the same.
    np.testing.assert_array_equal(np.isnan(value), np.isnan(expected))
    number = ~np.isnan(expected)
    assert number.any()
    assert_same_bits(value[number], expected[number])


@every_type
def test_the_table_agrees_with_gguf(kind: BlockType) -> None:
    gguf = pytest.importorskip("gguf")
    number = gguf.GGMLQuantizationType[kind.name]
    assert (kind.id, (kind.values, kind.bytes)) == (number, gguf.GGML_QUANT_SIZES[number])
    assert type_of_id(kind.id) is kind is type_of(kind.name)


def test_recorded_blocks_decode_to_their_recorded_values() -> None:
    recorded = golden("gguf_blocks.json")["types"]
    assert len(recorded) == 16
    for name, case in recorded.items():
        for example in case["examples"]:
            block = np.frombuffer(bytes.fromhex(example["hex"]), np.uint8)
            assert_same_bits(decode(name, block), np.array(example["values"], np.float32))


def test_encoding_gives_the_recorded_bytes() -> None:
    case = golden("gguf_quantize.json")
    values = np.frombuffer(bytes.fromhex(case["x_f32_hex"]), np.float32)
    assert len(case["quantized_hex"]) == 8
    for name, expected in case["quantized_hex"].items():
        assert encode(name, values[None]).tobytes().hex() == expected, name


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "BF16"])
def test_encoding_without_importance_is_that_of_gguf(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(5)
    values = (rng.normal(size=(64, 512)) * 10.0 ** rng.integers(-5, 3, (64, 1))).astype(np.float32)
    values[3], values[4, :40] = 0, -0.0
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(encode(name, values), expected)


def test_recorded_grids_are_the_shipped_ones() -> None:
    tables = golden("gguf_iq_tables.json")
    for ours, theirs in (
        ("iq1", "iq1_grid"),
        ("iq2_xxs", "iq2xxs_grid"),
        ("iq3_xxs", "iq3xxs_grid"),
    ):
        digits = np.array([[int(digit) for digit in row] for row in tables[theirs]])
        assert (grids.grid(ours) == np.array(grids.LEVELS[ours])[digits]).all()


@every_type
def test_chunks_do_not_show(kind: BlockType, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks(kind, 1, rows=3, per_row=5)
    whole = decode(kind.name, blocks)
    monkeypatch.setattr(codec, "CHUNK_VALUES", 512)
    np.testing.assert_array_equal(decode(kind.name, blocks), whole)


@written
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_encoded_one_by_one(
    name: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(5, 768)).astype(np.float32)
    importance = rng.gamma(1, size=768).astype(np.float32) if weighted else None
    whole = encode(name, values, importance)
    monkeypatch.setattr(codec, "CHUNK_VALUES", 512)
    np.testing.assert_array_equal(encode(name, values, importance), whole)
    np.testing.assert_array_equal(encode(name, values[2:3], importance), whole[2:3])


@every_type
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_nothing_decodes_to_nothing(kind: BlockType, shape: tuple[int, ...]) -> None:
    *lead, count = shape
    value = decode(kind.name, np.zeros((*lead, count * kind.bytes), np.uint8))
    assert value.shape == (*lead, count * kind.values)
    assert value.dtype == np.float32


@written
def test_nothing_encodes_to_nothing(name: str) -> None:
    kind = TYPES[name]
    assert encode(name, np.zeros((0, 512), np.float32)).shape == (0, kind.row_bytes(512))
    assert encode(name, np.zeros((3, 0), np.float32), np.zeros(0, np.float32)).shape == (3, 0)


def test_decoding_reads_slices_and_read_only_memory() -> None:
    blocks = random_blocks(TYPES["Q6_K"], 3, rows=6, per_row=4)
    blocks.flags.writeable = False
    np.testing.assert_array_equal(
        decode("Q6_K", blocks[::2, 210:420]), decode("Q6_K", blocks)[::2, 256:512]
    )


@written
def test_zeros_stay_zeros(name: str) -> None:
    for zeros in (np.zeros((2, 512), np.float32), np.full((2, 512), -0.0, np.float32)):
        assert not decode(name, encode(name, zeros)).any()
        assert not decode(name, encode(name, zeros, np.zeros(512, np.float32))).any()


@written
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e-8, 1e-4, 1e4])
def test_any_magnitude_gives_finite_values_of_that_magnitude(
    name: str, weighted: bool, size: float
) -> None:
    values = (np.random.default_rng(4).normal(size=(2, 512)) * size).astype(np.float32)
    values[0, 5:] = 0
    value = decode(name, encode(name, values, np.ones(512, np.float32) if weighted else None))
    assert np.isfinite(value).all()
    # Below the smallest half float (6e-8) a scale may vanish, or be rounded up to it.
    assert np.abs(value).max() <= 2 * np.abs(values).max() + 1e-5


# What a block of mostly this value can hold: the half-float scale times the largest integers.
REACH = {
    **{"F32": 3.4e38, "BF16": 3.3e38, "F16": 65504, "MXFP4": 3.4e38},
    **{
        "Q4_0": 65504 * 8,
        "Q4_1": 65504 * 15,
        "Q5_0": 65504 * 16,
        "Q5_1": 65504 * 31,
        "Q8_0": 65504 * 127,
    },
    **{"Q2_K": 65504 * 15 * 3, "Q3_K": 65504 * 32 * 4, "Q4_K": 65504 * 63 * 15},
    **{"Q5_K": 65504 * 63 * 31, "Q6_K": 65504 * 128 * 32, "TQ1_0": 65504, "TQ2_0": 65504},
    **{"IQ4_NL": 65504 * 127, "IQ4_XS": 65504 * 32 * 127},
}


@written
def test_values_within_reach_are_kept_and_beyond_it_refused(name: str) -> None:
    values = np.zeros((1, 512), np.float32)
    values[0, ::3] = 0.2 * REACH[name]
    kept = decode(name, encode(name, values))
    np.testing.assert_allclose(kept, values, rtol=0.1, atol=0.01 * values.max())
    if name not in ("F32", "MXFP4"):
        values[0, 100] = min(5 * REACH[name], 3.4e38)
        with pytest.raises(ValueError, match="store"):
            encode(name, values)
    if name not in ("F32", "BF16", "MXFP4"):
        values[0, 100] = 3e38
        with pytest.raises(ValueError, match=f"3e.38 is beyond what {name} can hold"):
            encode(name, values)


def test_halves_round_away_from_zero() -> None:
    halves = np.array([0.5, -0.5, 1.5, -1.5, 2.5, 0.49999997, -0.49999997, 126.5, 3], np.float32)
    expected = [1, -1, 2, -2, 3, 0, 0, 127, 3]
    np.testing.assert_array_equal(round_half_away(halves), expected)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_every_group_of_trits_survives(name: str) -> None:
    trits = np.random.default_rng(6).integers(-1, 2, (200, 512)).astype(np.float32)
    for importance in (None, np.ones(512, np.float32)):
        np.testing.assert_array_equal(decode(name, encode(name, trits, importance)), trits)


def test_bf16_refuses_to_round_to_infinity() -> None:
    with pytest.raises(ValueError, match="does not fit BF16"):
        encode("BF16", np.array([[3.4e38]], np.float32))


def test_the_lowest_codes_survive() -> None:
    assert decode("Q8_0", np.array([0, 0x3C, *[0x80] * 32], np.uint8))[0] == -128
    block = np.zeros(210, np.uint8)
    block[192:208], block[208:] = 0x80, (0, 0x3C)  # scales -128, d = 1, all codes -32
    assert (decode("Q6_K", block) == 4096).all()


@written
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    values = np.ones((1, 512), np.float32)
    values[0, 300] = bad
    with pytest.raises(ValueError, match=f"cannot be stored as {name}"):
        encode(name, values)


@pytest.mark.parametrize(
    ("name", "cols"), [("Q4_K", 128), ("Q8_0", 33), ("TQ1_0", 100), ("MXFP4", 1)]
)
def test_rows_that_do_not_fill_blocks_are_refused(name: str, cols: int) -> None:
    with pytest.raises(ValueError, match=f"{cols} values does not fill {name}"):
        encode(name, np.zeros((2, cols), np.float32))


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(31, np.float32), "needs"),
        (np.ones((2, 32), np.float32), "needs"),
        (np.full(32, -1, np.float32), "not negative"),
        (np.full(32, np.nan, np.float32), "finite"),
    ],
)
def test_importance_that_makes_no_sense_is_refused(importance: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode("Q4_0", np.ones((2, 32), np.float32), importance)


def test_other_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'Q9_K' is not a block type"):
        decode("Q9_K", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="tensor type 77"):
        type_of_id(77)
    with pytest.raises(ValueError, match="reads IQ1_S but writes only"):
        encode("IQ1_S", np.zeros((1, 256), np.float32))
    with pytest.raises(ValueError, match="whole blocks of 18"):
        decode("Q4_0", np.zeros(35, np.uint8))
    with pytest.raises(ValueError, match="whole blocks of 18"):
        decode("Q4_0", np.zeros(36, np.float32))
    with pytest.raises(ValueError, match="whole blocks of 4"):
        decode("F32", np.zeros((), np.uint8))
    with pytest.raises(ValueError, match="a matrix"):
        encode("F32", np.zeros(4, np.float32))


@st.composite
def draw_matrix(draw: st.DrawFn) -> np.ndarray:
    """Normal values [2, 256] of some magnitude, with a share of zeros and a few outliers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.normal(size=(2, 256)) * draw(st.sampled_from([1e-3, 1.0, 50.0]))
    values += draw(st.sampled_from([0.0, 0.0, 1.0]))
    values[rng.random(values.shape) < draw(st.sampled_from([0, 0, 0.5, 0.95]))] = 0
    places = st.tuples(st.integers(0, 1), st.integers(0, 255))
    for place, value in draw(st.dictionaries(places, st.floats(-200, 200), max_size=4)).items():
        values[place] = value
    return values.astype(np.float32)


matrices = draw_matrix()


@given(matrices)
@pytest.mark.parametrize("name", [*EXACT, *BY_LARGEST, "MXFP4"])
def test_encoding_a_decoded_matrix_changes_nothing(name: str, values: np.ndarray) -> None:
    value = decode(name, encode(name, values))
    np.testing.assert_array_equal(decode(name, encode(name, value)), value)


# type: the largest error as a share of the span (affine types) or of twice the largest magnitude of a block
STEPS = {"Q4_0": 1 / 16, "Q4_1": 0.5 / 15, "Q5_0": 1 / 32, "Q5_1": 0.5 / 31, "Q8_0": 0.25 / 127}


@given(matrices)
@pytest.mark.parametrize("name", STEPS)
def test_error_is_within_the_step_of_the_type(name: str, values: np.ndarray) -> None:
    error = np.abs(decode(name, encode(name, values)) - values).reshape(-1, 32)
    blocks = values.reshape(-1, 32)
    reach = (
        np.ptp(blocks, axis=1) if name.endswith("_1") else 2 * np.abs(blocks).max(axis=1)
    ) + 1e-6
    # Half floats are off by up to 2^-11 of themselves and 2^-25, d as often as the code says.
    slack = np.abs(blocks).max(axis=1) * 2**-9 + 128 * 2**-25
    assert (error.max(axis=1) <= reach * STEPS[name] + slack).all()


@given(matrices)
@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_searched_types_never_lose_more_than_zeros_would(name: str, values: np.ndarray) -> None:
    error = decode(name, encode(name, values)).astype(np.float64) - values
    assert (error**2).sum() <= (values.astype(np.float64) ** 2).sum() + 1e-9
