"""Products with packed matrices: right for every type and shape, the same bits on every instruction set."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from moonlet import kernels
from moonlet.kernels import reference
from tests.kernels.stored import ALL, FLOATS, QUANTIZED, random_floats, random_rows

ISAS = kernels.supported_isas()


def check(type_name: str, rows: int, cols: int, tokens: int) -> None:
    weights = random_rows(type_name, rows, cols, seed=rows + cols)
    matrix = weights.packed()
    x = random_floats(tokens, cols, seed=tokens)
    quantized = type_name not in FLOATS
    expected = reference.linear(weights.values, x, quantized)
    seen = reference.eight_bits(x) if quantized else x.astype(np.float64)
    size = np.abs(seen) @ np.abs(weights.values.astype(np.float64)).T
    baseline = matrix(x, isa="baseline")
    assert baseline.shape == (tokens, rows)
    assert (np.abs(baseline - expected) <= 2e-6 * size + 1e-30).all()
    for isa in ISAS:
        np.testing.assert_array_equal(matrix(x, isa=isa), baseline, err_msg=isa)


@pytest.mark.parametrize("type_name", ALL)
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (15, 2), (17, 13), (48, 25)])
def test_rows_and_tokens(type_name: str, rows: int, tokens: int) -> None:
    check(type_name, rows, 512, tokens)


@pytest.mark.parametrize("type_name", ALL)
def test_long_rows(type_name: str) -> None:
    check(type_name, 16, 7168, 12)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"])
@pytest.mark.parametrize("cols", [32, 96, 160])
def test_an_odd_number_of_groups(type_name: str, cols: int) -> None:
    check(type_name, 33, cols, 3)


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "INT4"])
@pytest.mark.parametrize("cols", [1, 7, 31, 33, 100])
def test_columns_that_end_inside_a_group(type_name: str, cols: int) -> None:
    check(type_name, 17, cols, 5)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q2_K", "Q6_K", "F32"])
def test_every_number_of_tokens(type_name: str) -> None:
    """Tiles of all sizes give each token the bits that it has alone."""
    matrix = random_rows(type_name, 32, 512).packed()
    x = random_floats(31, 512)
    for isa in ISAS:
        alone = np.concatenate([matrix(x[t : t + 1], isa=isa) for t in range(len(x))])
        for tokens in range(1, len(x) + 1):
            np.testing.assert_array_equal(matrix(x[:tokens], isa=isa), alone[:tokens])


@pytest.mark.parametrize("type_name", ALL)
def test_no_tokens(type_name: str) -> None:
    assert random_rows(type_name, 17, 256).packed()(np.zeros((0, 256), np.float32)).shape == (0, 17)


@pytest.mark.parametrize("isa", ISAS)
def test_integers_are_exact(isa: str) -> None:
    """Weights from -128 to 127 with scale 1, activations whose scale is 1: sums of integers."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (40, 8, 32)).astype(np.int8)
    codes[:, 0], codes[:, 1] = -128, 127
    one = np.broadcast_to(np.array([1], np.float16).view(np.uint8), (40, 8, 2))
    rows = np.concatenate([one, codes.view(np.uint8)], axis=2).reshape(40, -1)
    x = rng.integers(-127, 128, (14, 8, 32)).astype(np.float32)
    x[:, :, 0] = 127
    x[0], x[1] = 127, -127
    matrix = kernels.Matrix("Q8_0", 40, 256)
    matrix.pack("Q8_0", rows)
    expected = x.reshape(14, -1).astype(np.int64) @ codes.reshape(40, -1).astype(np.int64).T
    np.testing.assert_array_equal(matrix(x.reshape(14, -1), isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", ["Q8_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS", "Q6_K", "Q2_K"])
def test_largest_activations(type_name: str, isa: str) -> None:
    """Pairs of products of the largest codes with the largest activations do not saturate."""
    weights = random_rows(type_name, 64, 256)
    x = np.concatenate(
        [np.full((1, 256), 1.0), np.full((1, 256), -1.0), np.sign(weights.values[:2])]
    )
    x = x.astype(np.float32)
    expected = reference.linear(weights.values, x)
    found = weights.packed()(x, isa=isa)
    size = np.abs(x.astype(np.float64)) @ np.abs(weights.values.astype(np.float64)).T
    assert (np.abs(found - expected) <= 2e-6 * size + 1e-30).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", QUANTIZED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_token_alone(type_name: str, isa: str, bad: float) -> None:
    matrix = random_rows(type_name, 17, 512).packed()
    x = random_floats(14, 512)
    clean = matrix(x, isa=isa)
    x[5, 300] = bad
    found = matrix(x, isa=isa)
    assert np.isnan(found[5]).all()
    others = np.arange(14) != 5
    np.testing.assert_array_equal(found[others], clean[others])


@pytest.mark.parametrize("isa", ISAS)
def test_denormal_activations_count_as_zero(isa: str) -> None:
    matrix = random_rows("Q4_0", 16, 64).packed()
    x = np.full((1, 64), 1e-39, np.float32)
    np.testing.assert_array_equal(matrix(x, isa=isa), np.zeros((1, 16)))
    x[0, 40] = 1.0  # in another group
    assert np.abs(matrix(x, isa=isa)).max() > 0


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = kernels.num_threads()
    yield kernels.set_num_threads
    kernels.set_num_threads(before)


def test_the_number_of_threads_changes_nothing(threads: Callable[[int], None]) -> None:
    matrix = random_rows("Q4_K", 700, 512).packed()
    x = random_floats(40, 512)
    threads(1)
    expected = matrix(x)
    for count in (2, 5):
        threads(count)
        np.testing.assert_array_equal(matrix(x), expected)


def test_a_stack_multiplies_each_matrix_with_its_own_vector() -> None:
    stored = [random_rows("Q8_0", 24, 96, seed=seed) for seed in range(3)]
    stack = kernels.Matrix("Q8_0", 24, 96, count=3)
    for index, weights in enumerate(stored):
        stack.pack("Q8_0", weights.data, index=index)
    x = random_floats(5, 3, 96)
    expected = [weights.packed()(np.ascontiguousarray(x[:, i])) for i, weights in enumerate(stored)]
    np.testing.assert_array_equal(stack(x), np.stack(expected, axis=1))


def test_refuses_activations_that_do_not_fit() -> None:
    matrix = random_rows("Q4_0", 16, 64).packed()
    with pytest.raises(ValueError, match="64"):
        matrix(np.zeros((1, 63), np.float32))
    with pytest.raises(TypeError):
        matrix(np.zeros((1, 64), np.float64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="avx9"):
        matrix(np.zeros((1, 64), np.float32), isa="avx9")
