"""Packing: what types become, what is refused, and that nothing is lost on the way."""

import numpy as np
import pytest

from moonlet import kernels
from moonlet.kernels import reference
from moonlet.quant import bf16, decode, encode
from tests.kernels.stored import ALL, random_floats, random_rows

LEVELS16 = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def test_what_types_are_kept_as() -> None:
    changed = {name: kernels.panel_type(name) for name in ALL if kernels.panel_type(name) != name}
    assert changed == {"TQ1_0": "TQ2_0", **dict.fromkeys(LEVELS16, "LEVELS16")}
    with pytest.raises(ValueError, match="Q9_9"):
        kernels.panel_type("Q9_9")


@pytest.mark.parametrize("type_name", [name for name in ALL if name not in LEVELS16])
def test_panels_are_as_large_as_the_file(type_name: str) -> None:
    rows, cols = 32, 1024
    weights = random_rows(type_name, rows, cols)
    stored = weights.data.nbytes + (0 if weights.scale is None else weights.scale.nbytes)
    extra = {"TQ1_0": 66 / 54, "MXFP4": 18 / 17}.get(
        type_name, 1
    )  # trits in two bits, wider scales
    assert stored * extra <= weights.packed().nbytes <= stored * extra + 64 * rows / 16 + 4096


def test_the_same_trits_give_the_same_panels() -> None:
    values = random_floats(20, 512)
    one, two = (kernels.Matrix("TQ2_0", 20, 512) for _ in range(2))
    one.pack("TQ1_0", encode("TQ1_0", values))
    two.pack("TQ2_0", encode("TQ2_0", values))
    np.testing.assert_array_equal(one.bytes, two.bytes)


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("cols", [1, 40, 64, 512])
def test_floats_rounded_to_eight_bits(type_name: str, cols: int) -> None:
    weights = random_rows(type_name, 19, cols)
    x = random_floats(3, cols)
    found = weights.packed(keep="Q8_0")(x)
    padded = np.zeros((19, -(-cols // 32) * 32), np.float32)
    padded[:, :cols] = weights.values
    rounded = decode("Q8_0", encode("Q8_0", padded))[:, :cols]
    exact = reference.linear(weights.values, x)
    assert np.linalg.norm(found - exact) <= 0.02 * np.linalg.norm(exact)
    # The encoder rounds by the exact scale, packing by the stored one: codes differ where halves are.
    assert np.linalg.norm(found - reference.linear(rounded, x)) <= 2e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (1e-30, 0),
        (-1e-4, -1e-4),
        (1.5, 1.5),
        (8e6, 8e6),
        (1e9, np.nan),
        (np.nan, np.nan),
        (-np.inf, np.nan),
    ],
)
def test_extreme_floats_in_eight_bits(value: float, kept: float) -> None:
    """Scales are half floats: too small is zero, too large or not finite is NaN and shows."""
    values = np.zeros((3, 64), np.float32)
    values[1, 40] = value
    matrix = kernels.Matrix("Q8_0", 3, 64)
    matrix.pack("F32", values.view(np.uint8))
    found = matrix(np.ones((1, 64), np.float32))
    np.testing.assert_allclose(found, [[0, kept, 0]], rtol=0.02)


def test_panels_can_lie_in_memory_of_others() -> None:
    weights = random_rows("Q4_K", 33, 256)
    packed = weights.packed()
    again = kernels.Matrix("Q4_K", 33, 256, data=packed.bytes)
    x = random_floats(4, 256)
    np.testing.assert_array_equal(again(x), packed(x))
    with pytest.raises(ValueError, match="belong to a file"):
        again.pack("Q4_K", weights.data)
    with pytest.raises(ValueError, match=f"{packed.nbytes - 64} bytes, wanted {packed.nbytes}"):
        kernels.Matrix("Q4_K", 33, 256, data=packed.bytes[:-64])


def test_packing_twice_leaves_nothing_behind() -> None:
    first, second = (random_rows("Q5_1", 5, 96, seed=seed) for seed in (1, 2))
    matrix = first.packed()
    matrix.pack("Q5_1", second.data)
    np.testing.assert_array_equal(matrix.bytes, second.packed().bytes)


@pytest.mark.parametrize(
    ("keep", "from_type", "shape", "message"),
    [
        ("Q4_0", "Q8_0", (16, 64), "Q8_0 rows cannot be packed into a matrix of Q4_0"),
        ("Q4_0", "F32", (16, 64), "F32 rows cannot be packed into a matrix of Q4_0"),
        ("Q8_0", "Q4_0", (16, 64), "Q4_0 rows cannot be packed into a matrix of Q8_0"),
        (
            "Q4_K",
            "Q4_K",
            (16, 128),
            "rows of 128 columns do not fill blocks of Q4_K, which hold 256",
        ),
        ("Q4_0", "Q4_0", (17, 64), "Q4_0 rows are 16 x 36 bytes, wanted 17 x 36"),
        ("Q4_0", "Q4_0", (16, 96), "Q4_0 rows are 16 x 36 bytes, wanted 16 x 54"),
        ("INT4", "INT4", (16, 72), "INT4 comes with scales, other types without"),
        ("Q4_0", "Q7_7", (16, 64), "there is no kernel for the type Q7_7"),
        ("Q7_7", "Q4_0", (16, 64), "there is no kernel for the type Q7_7"),
        ("Q4_0", "Q4_0", (0, 64), "0 x 64"),
    ],
)
def test_refuses(keep: str, from_type: str, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.Matrix(keep, *shape).pack(from_type, np.zeros((16, 36), np.uint8))


def test_refuses_scales_that_do_not_fit() -> None:
    rows, scale = np.zeros((16, 32), np.uint8), bf16.from_float32(np.ones((16, 3), np.float32))
    with pytest.raises(ValueError, match="INT4 scales are 16 x 3, wanted 16 x 2"):
        kernels.Matrix("INT4", 16, 64).pack("INT4", rows, scale)
    with pytest.raises(ValueError, match="matrix 2 of 2"):
        kernels.Matrix("INT4", 16, 64, count=2).pack("INT4", rows, scale[:, :2].copy(), index=2)


def test_refuses_sizes_whose_bytes_wrap_around() -> None:
    """2^14 * 2^14 * 2 bytes for each of 2^35 matrices are 2^64, which is 0; so are these experts'."""
    nothing = np.zeros(0, np.uint8)
    with pytest.raises(ValueError, match=f"{2**35} times {2**29} bytes cannot be packed"):
        kernels.Matrix("F16", 1 << 14, 1 << 14, count=1 << 35, data=nothing)
    types = "Q4_0", "Q4_1", "Q5_0"  # 9, 10 and 11 sixteenths of a byte a value, 30 together
    with pytest.raises(ValueError, match="bytes cannot be packed"):
        kernels.Experts((1 << 20) - 1, 1 << 23, 1 << 23, *types)
