"""Attention over the paged cache and rotary positions, against torch and against their own laws."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moonlet import kernels
from moonlet.model.attention import attend
from moonlet.model.rotary import rotate

ISAS = kernels.supported_isas()
SIZES = ((512, 64), (64, 16), (32, 8), (24, 6))  # kv_lora_rank, qk_rope_head_dim
NAN_BITS = 0xFFFF


def rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """To bfloat16 and back."""
    return torch.from_numpy(x).bfloat16().float().numpy()


@dataclass
class Cached:
    """Sequences of random latents in scattered pages; what nobody wrote is NaN."""

    latents: list[NDArray[np.float32]]  # of each sequence [length, L]
    pages: NDArray[np.generic]
    table: NDArray[np.int32]
    values: int

    @classmethod
    def random(
        cls, lengths: list[int], size: tuple[int, int], page: int, seed: int = 0, bits: int = 16
    ) -> "Cached":
        rng = np.random.default_rng(seed)
        width, per = sum(size), max(1, math.ceil(max(lengths) / page))
        table = rng.permutation(len(lengths) * per + 3)[: len(lengths) * per]
        table = table.astype(np.int32).reshape(len(lengths), per)
        shape = (len(lengths) * per + 3, page)
        if bits == 16:
            pages = np.full((*shape, width), NAN_BITS, np.uint16)
        else:
            pages = np.full((*shape, kernels.code_row_bytes(width)), 0xFF, np.uint8)
        latents = [rng.standard_normal((n, width), np.float32) for n in lengths]
        cached = cls(latents, pages, table, size[0])
        for s, latent in enumerate(latents):
            cached.append(s, latent)
        return cached

    def append(self, sequence: int, latent: NDArray[np.float32], start: int = 0) -> None:
        where = np.arange(start, start + len(latent), dtype=np.int32)
        kernels.append_latent(self.pages, self.table, latent, np.full_like(where, sequence), where)

    def attend(
        self,
        q: NDArray[np.float32],
        tokens: list[tuple[int, int]],
        isa: str | None = None,
        scale: float = 0.1,
    ) -> NDArray[np.float32]:
        sequence, position = np.array(tokens, np.int32).reshape(-1, 2).T.copy()
        return kernels.latent_attention(
            q, self.pages, self.table, sequence, position, self.values, scale, isa
        )

    def expected(
        self, q: NDArray[np.float32], tokens: list[tuple[int, int]], scale: float = 0.1
    ) -> NDArray[np.float64]:
        out = np.zeros((len(q), q.shape[1], self.values))
        for t, (s, p) in enumerate(tokens):
            rows = torch.from_numpy(rounded(self.latents[s][: p + 1])).double()[None, None]
            query = torch.from_numpy(rounded(q[t])).double()[None, None]
            out[t] = attend(query, rows, rows, None, scale, causal=False)[0, 0, :, : self.values]
        return out


def queries(tokens: int, heads: int, size: tuple[int, int], seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((tokens, heads, sum(size)), np.float32)


def mixture(lengths: list[int], new: list[int]) -> list[tuple[int, int]]:
    """The last new[s] positions of each sequence s."""
    return [
        (s, p)
        for s, (length, count) in enumerate(zip(lengths, new, strict=True))
        for p in range(length - count, length)
    ]


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("heads", [1, 3, 16, 64, 65])
@pytest.mark.parametrize("size", SIZES)
def test_equals_torch(size: tuple[int, int], heads: int, page: int) -> None:
    lengths, new = [1, 17, 130, 64, 65, 200], [1, 17, 1, 2, 1, 5]
    cached = Cached.random(lengths, size, page)
    tokens = mixture(lengths, new)
    q = queries(len(tokens), heads, size)
    expected, out = cached.expected(q, tokens), cached.attend(q, tokens)
    # The weights are rounded to 8 bits, their errors independent of each other.
    assert np.abs(out - expected).max() < 6e-3 * np.abs(expected).max()
    assert np.sqrt(np.mean((out - expected) ** 2)) < 1.5e-3 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("size", SIZES)
def test_all_sets_give_the_same_bits(size: tuple[int, int]) -> None:
    lengths, new = [200, 70, 1], [2, 17, 1]
    cached = Cached.random(lengths, size, page=16)
    tokens = mixture(lengths, new)
    for heads in (1, 5, 6, 7, 16):
        q = queries(len(tokens), heads, size)
        baseline = cached.attend(q, tokens, "baseline")
        for isa in ISAS:
            np.testing.assert_array_equal(cached.attend(q, tokens, isa), baseline, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_weights_that_are_powers_of_two_are_exact(isa: str) -> None:
    """Nothing is rounded to 8 bits then, so the sums of any number of blocks and chunks are close."""
    size, length = (64, 16), 700
    cached = Cached.random([length], size, page=16)
    latent = rounded(cached.latents[0])
    latent[:, -1] = np.random.default_rng(3).integers(0, 12, length)
    cached.append(0, latent)
    tokens = [(0, p) for p in (0, 1, 62, 63, 64, 65, 127, 128, 129, 255, 256, 383, 699)]
    q = np.zeros((len(tokens), 2, sum(size)), np.float32)
    q[:, 1, -1] = 1.0  # head 0 averages, head 1 weighs with 2^latent[-1]
    out = cached.attend(q, tokens, isa, scale=math.log(2))
    for t, (_, p) in enumerate(tokens):
        rows = latent[: p + 1].astype(np.float64)
        weight = 2.0 ** rows[:, -1]
        expected = np.stack([rows.mean(0), weight @ rows / weight.sum()])[:, :64]
        np.testing.assert_allclose(out[t], expected, rtol=0, atol=2e-6)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = kernels.num_threads()
    yield kernels.set_num_threads
    kernels.set_num_threads(before)


@pytest.mark.parametrize("heads", [3, 64, 65])
def test_neither_threads_nor_other_tokens_change_the_bits(
    threads: Callable[[int], None], heads: int
) -> None:
    size, lengths, new = (32, 8), [400, 90, 1], [40, 90, 1]
    cached = Cached.random(lengths, size, page=16)
    tokens = mixture(lengths, new)
    q = queries(len(tokens), heads, size)
    threads(1)
    together = cached.attend(q, tokens)
    for count in (2, 5, 16):
        threads(count)
        np.testing.assert_array_equal(cached.attend(q, tokens), together)
    for t in range(0, len(tokens), 7):
        np.testing.assert_array_equal(
            cached.attend(q[t : t + 1], tokens[t : t + 1])[0], together[t]
        )
    order = np.random.default_rng(0).permutation(len(tokens))
    shuffled = cached.attend(q[order], [tokens[t] for t in order])
    np.testing.assert_array_equal(shuffled, together[order])


def test_far_positions_take_longer_chunks() -> None:
    size, length = (32, 8), 17000
    cached = Cached.random([length], size, page=64)
    tokens = [(0, p) for p in (8191, 8192, 16383, 16384, 16999)]
    q = queries(len(tokens), 2, size)
    expected = cached.expected(q, tokens, scale=0.5)
    assert (
        np.abs(cached.attend(q, tokens, scale=0.5) - expected).max() < 5e-3 * np.abs(expected).max()
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_only_who_looks_at_it(isa: str, bits: int, bad: float) -> None:
    size = (64, 16)
    clean = Cached.random([140, 140], size, page=16, bits=bits)
    spoiled = Cached.random([140, 140], size, page=16, bits=bits)
    at = 133
    row = spoiled.latents[0][at : at + 1].copy()
    row[0, 5] = bad
    spoiled.append(0, row, at)
    tokens = [(s, p) for s in (0, 1) for p in range(130, 140)]
    q = queries(len(tokens), 3, size)
    out, good = spoiled.attend(q, tokens, isa), clean.attend(q, tokens, isa)
    for t, (s, p) in enumerate(tokens):
        if s == 0 and p >= at:
            assert not np.isfinite(out[t, :, 5]).any()
        else:
            np.testing.assert_array_equal(out[t], good[t])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_spoils_itself_alone(isa: str, bad: float) -> None:
    size = (64, 16)
    cached = Cached.random([200], size, page=16)
    tokens = [(0, 150), (0, 151)]
    q = queries(2, 7, size)
    good = cached.attend(q, tokens, isa)
    q[1, 3, 2] = bad
    out = cached.attend(q, tokens, isa)
    assert np.isnan(out[1, 3]).all()
    good[1, 3] = out[1, 3]
    np.testing.assert_array_equal(out, good)


@pytest.mark.parametrize("isa", ISAS)
def test_denormals(isa: str) -> None:
    size = (64, 16)
    cached = Cached.random([70], size, page=16)
    cached.append(0, cached.latents[0] * np.float32(1e-39))
    q = queries(1, 4, size)
    for scaled in (q, q * np.float32(1e-39), q * np.float32(1e38)):
        out = cached.attend(scaled, [(0, 69)], isa)
        assert np.abs(out).max() < 1e-37


@pytest.mark.parametrize("isa", ISAS)
def test_large_scores_do_not_overflow(isa: str) -> None:
    size = (64, 16)
    cached = Cached.random([300], size, page=16)
    out = cached.attend(queries(1, 4, size) * np.float32(1e30), [(0, 299)], isa)
    rows = rounded(cached.latents[0])[:, :64]
    for head in out[0]:  # one row takes all the weight
        assert (head == rows).all(1).any()


def test_no_tokens() -> None:
    cached = Cached.random([3], (32, 8), page=16)
    assert cached.attend(queries(0, 16, (32, 8)), []).shape == (0, 16, 32)
    cached.append(0, np.zeros((0, 40), np.float32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("isa", ISAS)
def test_eight_bits(isa: str, size: tuple[int, int]) -> None:
    lengths, width = [130, 17], sum(size)
    eight = Cached.random(lengths, size, page=16, bits=8)
    sixteen = Cached.random(lengths, size, page=16)
    for s, latent in enumerate(eight.latents):
        flat = eight.pages[eight.table[s]].reshape(-1, eight.pages.shape[2])[: lengths[s]]
        codes = flat[:, :width].view(np.int8).astype(np.float32)
        scale = np.ascontiguousarray(flat[:, width:]).view(np.float32)
        scale = np.repeat(scale, 64, axis=1)[:, :width]
        assert (np.abs(codes * scale - latent) <= 0.5001 * scale).all()
        assert np.abs(codes).max() == 127
        sixteen.append(s, codes * scale)
    tokens = mixture(lengths, [3, 17])
    q = queries(len(tokens), 5, size)
    np.testing.assert_array_equal(eight.attend(q, tokens, isa), sixteen.attend(q, tokens, isa))


def test_zero_and_tiny_rows_in_eight_bits() -> None:
    cached = Cached.random([2], (64, 16), page=16, bits=8)
    cached.append(0, np.zeros((1, 80), np.float32))
    cached.append(0, np.full((1, 80), 1e-44, np.float32), 1)
    assert np.abs(cached.attend(queries(1, 2, (64, 16)), [(0, 1)])).max() < 1e-37


def call(**change: object) -> None:
    arguments = {
        "q": np.zeros((2, 4, 40), np.float32),
        "pages": np.zeros((3, 16, 40), np.uint16),
        "table": np.zeros((2, 2), np.int32),
        "sequence": np.zeros(2, np.int32),
        "position": np.zeros(2, np.int32),
        "values": 32,
        "scale": 1.0,
    }
    kernels.latent_attention(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pages": np.zeros((3, 16, 41), np.uint16)}, "41 elements, wanted 40"),
        ({"pages": np.zeros((3, 16, 40), np.uint8)}, "40 elements, wanted 44"),
        ({"pages": np.zeros((3, 0, 40), np.uint16)}, "empty pages"),
        ({"pages": np.zeros((3, 16, 40), np.float16)}, "uint16"),
        ({"sequence": np.zeros(3, np.int32)}, "3 and 2 elements, wanted 2"),
        ({"sequence": np.array([0, 2], np.int32)}, "sequence 2 of a table of 2"),
        ({"sequence": np.array([0, -1], np.int32)}, "sequence -1"),
        ({"position": np.array([0, 32], np.int32)}, "position 32 of a table of 2 pages of 16"),
        ({"position": np.array([-1, 0], np.int32)}, "position -1"),
        (
            {"table": np.array([[0, 0], [3, 0]], np.int32), "sequence": np.ones(2, np.int32)},
            "page 3 of 3",
        ),
        (
            {"table": np.array([[0, -1], [0, 0]], np.int32), "position": np.full(2, 16, np.int32)},
            "page -1 of 3",
        ),
        (
            {"table": np.array([[7, 0], [0, 0]], np.int32), "position": np.full(2, 16, np.int32)},
            "page 7 of 3, at place 0",
        ),
        ({"values": 41}, "41 columns in rows of 40"),
        ({"values": 0}, "values of 0"),
        ({"isa": "sse9"}, "sse9"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    call()
    with pytest.raises(ValueError, match=message):
        call(**change)


def test_takes_no_other_types() -> None:
    with pytest.raises(TypeError):
        call(q=np.zeros((2, 4, 40)))
    with pytest.raises(TypeError):
        call(table=np.zeros((2, 2), np.int64))
    with pytest.raises(TypeError):
        call(pages=np.zeros((3, 16, 80), np.uint16)[:, :, ::2])


def test_rotates_the_last_columns() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((700, 3, 24), np.float32)
    angles = rng.standard_normal((700, 8), np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    expected = rotate(
        torch.from_numpy(x[:, :, 8:]),
        torch.from_numpy(cos)[:, None],
        torch.from_numpy(sin)[:, None],
    )
    out = np.full((700, 3, 20), 7, np.float32)
    kernels.rotate(x, cos, sin, out)
    np.testing.assert_allclose(out[:, :, 4:], expected, rtol=0, atol=1e-6)
    assert (out[:, :, :4] == 7).all()
    before = x.copy()
    kernels.rotate(x, cos, sin)
    np.testing.assert_array_equal(x[:, :, 8:], out[:, :, 4:])
    np.testing.assert_array_equal(x[:, :, :8], before[:, :, :8])
    kernels.rotate(x[:0], cos[:0], sin[:0])


def test_rotation_refuses_what_does_not_fit() -> None:
    x, angles = np.zeros((2, 3, 8), np.float32), np.zeros((2, 4), np.float32)
    kernels.rotate(x, angles, angles)
    with pytest.raises(ValueError, match="8 columns do not hold 5 pairs"):
        kernels.rotate(x, np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="one row for each of 2 tokens"):
        kernels.rotate(x, angles, angles[:1])
    with pytest.raises(ValueError, match="1 x 3 rows, wanted 2 x 3"):
        kernels.rotate(x, angles, angles, x[:1])
