"""Feed-forward networks: experts grouped by their tokens, in any distribution, equal a sum token by token."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from moonlet import kernels
from moonlet.kernels import reference
from moonlet.quant import decode, encode
from tests.kernels.stored import Stored, random_floats, random_rows

ISAS = kernels.supported_isas()
HIDDEN, WIDTH, COUNT = 256, 512, 9
PARTS = (("gate", WIDTH, HIDDEN), ("up", WIDTH, HIDDEN), ("down", HIDDEN, WIDTH))


def network(types: tuple[str, str, str], seed: int) -> list[Stored]:
    return [
        encoded(type_name, random_floats(rows, cols, seed=10 * seed + i) * np.float32(cols**-0.5))
        for i, (type_name, (_, rows, cols)) in enumerate(zip(types, PARTS, strict=True))
    ]


def encoded(type_name: str, values: NDArray[np.float32]) -> Stored:
    data = encode(type_name, values)
    return Stored(type_name, data, None, decode(type_name, data))


class Layer:
    """Random experts and a shared network, packed and as values."""

    def __init__(
        self, gate: str = "Q4_0", up: str = "Q4_0", down: str = "Q4_0", count: int = COUNT
    ):
        types = (gate, up, down)
        kept = [kernels.panel_type(name) for name in types]
        self.experts = kernels.Experts(count, HIDDEN, WIDTH, kept[0], kept[1], kept[2])
        self.values = []
        for expert in range(count):
            parts = network(types, expert)
            for (which, _, _), stored in zip(PARTS, parts, strict=True):
                self.experts.pack(expert, which, stored.type, stored.data, stored.scale)
            self.values.append(tuple(stored.values for stored in parts))
        parts = network(types, count)
        self.shared = kernels.Ffn(*(stored.packed() for stored in parts))
        self.shared_values = tuple(stored.values for stored in parts)


@pytest.fixture(scope="module")
def layer() -> Layer:
    return Layer()


def choices(
    tokens: int, top_k: int, seed: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(COUNT)[:top_k] for _ in range(tokens)]).astype(np.int32)
    return ids, rng.random((tokens, top_k), np.float32)


def near(found: NDArray[np.float32], expected: NDArray[np.float64]) -> bool:
    """Hidden values near the middle of two codes may fall to either."""
    return bool(np.linalg.norm(found - expected) <= 2e-3 * np.linalg.norm(expected))


@pytest.mark.parametrize(("tokens", "top_k"), [(1, 8), (2, 1), (12, 3), (13, 2), (40, 5)])
def test_is_the_weighted_sum_of_the_experts(layer: Layer, tokens: int, top_k: int) -> None:
    x = random_floats(tokens, HIDDEN)
    ids, weights = choices(tokens, top_k)
    expected = reference.routed_ffn(x, layer.values, ids, weights)
    found = kernels.ffn(layer.experts, None, x, ids, weights)
    assert near(found, expected)
    with_shared = kernels.ffn(layer.experts, layer.shared, x, ids, weights)
    assert near(with_shared, expected + reference.ffn(x, *layer.shared_values))
    for isa in ISAS:
        np.testing.assert_array_equal(kernels.ffn(layer.experts, None, x, ids, weights, isa), found)


@pytest.mark.parametrize(
    "types", [("Q2_K", "Q2_K", "Q3_K"), ("TQ1_0", "TQ2_0", "IQ4_XS"), ("Q5_K", "Q4_K", "Q6_K")]
)
def test_each_matrix_has_its_type(types: tuple[str, str, str]) -> None:
    layer = Layer(*types, count=2)
    x = random_floats(5, HIDDEN)
    ids = np.array([[0, 1]] * 5, np.int32)
    weights = np.full((5, 2), 0.5, np.float32)
    expected = reference.routed_ffn(x, layer.values, ids, weights)
    assert near(kernels.ffn(layer.experts, None, x, ids, weights), expected)


def test_the_shared_network_alone(layer: Layer) -> None:
    x = random_floats(7, HIDDEN)
    assert near(kernels.ffn(None, layer.shared, x), reference.ffn(x, *layer.shared_values))


def test_one_expert_takes_all(layer: Layer) -> None:
    x = random_floats(50, HIDDEN)
    ids, weights = np.full((50, 1), 3, np.int32), np.ones((50, 1), np.float32)
    found = kernels.ffn(layer.experts, None, x, ids, weights)
    assert near(found, reference.ffn(x, *layer.values[3]))


@pytest.mark.parametrize("tokens", [1, 3])
def test_an_expert_may_be_chosen_twice(layer: Layer, tokens: int) -> None:
    x = random_floats(tokens, HIDDEN)
    ids, weights = np.full((tokens, 2), 1, np.int32), np.full((tokens, 2), 0.25, np.float32)
    twice = kernels.ffn(layer.experts, None, x, ids, weights)
    once = kernels.ffn(layer.experts, None, x, ids[:, :1].copy(), 2 * weights[:, :1])
    np.testing.assert_allclose(twice, once, rtol=1e-6)


def test_no_tokens(layer: Layer) -> None:
    x, ids = np.zeros((0, HIDDEN), np.float32), np.zeros((0, 4), np.int32)
    found = kernels.ffn(layer.experts, layer.shared, x, ids, np.zeros((0, 4), np.float32))
    assert found.shape == (0, HIDDEN)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = kernels.num_threads()
    yield kernels.set_num_threads
    kernels.set_num_threads(before)


def test_neither_threads_nor_other_tokens_change_the_bits(
    layer: Layer, threads: Callable[[int], None]
) -> None:
    x = random_floats(30, HIDDEN)
    ids, weights = choices(30, 4)
    threads(1)
    expected = kernels.ffn(layer.experts, layer.shared, x, ids, weights)
    for count in (2, 5):
        threads(count)
        np.testing.assert_array_equal(
            kernels.ffn(layer.experts, layer.shared, x, ids, weights), expected
        )
    part = slice(11, 14)
    alone = kernels.ffn(layer.experts, layer.shared, x[part], ids[part], weights[part])
    np.testing.assert_array_equal(alone, expected[part])


@pytest.mark.slow
def test_small_calls_one_after_the_other_all_end(threads: Callable[[int], None]) -> None:
    """Each is several short jobs of other lengths: a thread that comes late to one must not touch the next."""
    threads(2)
    experts = kernels.Experts(COUNT, 64, 32, "Q4_0", "Q4_0", "Q4_0")
    calls = [(random_floats(n, 64), *choices(n, k)) for n, k in ((2, 1), (5, 3), (16, 2), (9, 1))]

    def run() -> None:
        for _ in range(100_000):
            for call in calls:
                kernels.ffn(experts, None, *call)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(timeout=120)
    assert not worker.is_alive()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spoils_its_token_alone(layer: Layer, isa: str, bad: float) -> None:
    x = random_floats(20, HIDDEN)
    ids, weights = choices(20, 3)
    clean = kernels.ffn(layer.experts, layer.shared, x, ids, weights, isa)
    x[4, 17] = bad
    found = kernels.ffn(layer.experts, layer.shared, x, ids, weights, isa)
    assert np.isnan(found[4]).all()
    others = np.arange(20) != 4
    np.testing.assert_array_equal(found[others], clean[others])


def test_a_narrow_network() -> None:
    """Widths that are no multiple of 16 or 32."""
    hidden, width = 96, 40
    parts = [
        random_rows("INT4", *shape, seed=i)
        for i, shape in enumerate([(width, hidden), (width, hidden), (hidden, width)])
    ]
    found = kernels.ffn(
        None, kernels.Ffn(*(part.packed() for part in parts)), random_floats(13, hidden)
    )
    assert near(found, reference.ffn(random_floats(13, hidden), *(part.values for part in parts)))


def test_refuses_what_does_not_fit(layer: Layer) -> None:
    x = random_floats(2, HIDDEN)
    ids, weights = choices(2, 3)
    for wrong in (-1, COUNT):
        with pytest.raises(ValueError, match=f"expert {wrong} of {COUNT}"):
            kernels.ffn(layer.experts, None, x, np.full((2, 3), wrong, np.int32), weights)
    with pytest.raises(ValueError, match=f"{HIDDEN - 1} columns, wanted {HIDDEN}"):
        kernels.ffn(layer.experts, None, x[:, 1:].copy(), ids, weights)
    with pytest.raises(ValueError, match="ids and weights"):
        kernels.ffn(layer.experts, None, x, ids, weights[:, 1:].copy())
    with pytest.raises(ValueError, match="neither"):
        kernels.ffn(None, None, x)
    floats = [random_rows("F32", *shape).packed() for shape in [(32, 64), (32, 64), (64, 32)]]
    with pytest.raises(ValueError, match="quantized matrices only"):
        kernels.Ffn(*floats)
    with pytest.raises(ValueError, match="do not fit together"):
        kernels.Ffn(floats[0], floats[2], floats[1])
    with pytest.raises(ValueError, match=f"expert {COUNT} of {COUNT}"):
        layer.experts.pack(COUNT, "gate", "Q4_0", np.zeros((WIDTH, 144), np.uint8))
    with pytest.raises(ValueError, match="not side"):
        layer.experts.pack(0, "side", "Q4_0", np.zeros((WIDTH, 144), np.uint8))
