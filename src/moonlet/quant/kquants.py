"""The "K" block layouts: 256 values in sub-blocks that share one or two half-float scales.

Every sub-block has a small integer scale, and in the affine types a small integer minimum as well:

    type   values per sub-block   codes     value
    Q2_K   16                     0..3      d * scale * code - dmin * min    scale, min 0..15
    Q4_K   32                     0..15     the same                         scale, min 0..63
    Q5_K   32                     0..31     the same                         scale, min 0..63
    Q3_K   16                     -4..3     d * scale * code                 scale -32..31
    Q6_K   16                     -32..31   d * scale * code                 scale -128..127

Here a block is taken apart into those integers and put together again; how good integers are found is
in `kencode`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moonlet.quant.bits import from_half, pack, to_half, unpack

Blocks = NDArray[np.uint8]
Values = NDArray[np.float32]


class Affine(NamedTuple):
    """Blocks of Q2_K, Q4_K or Q5_K: codes uint8 [n, 256], scales and mins uint8 [n, subs], halves [n, 1]."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    mins: NDArray[np.uint8]
    d: Values
    dmin: Values


class Symmetric(NamedTuple):
    """Blocks of Q3_K or Q6_K: codes int8 [n, 256], scales int8 [n, 16], d [n, 1]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.int8]
    d: Values


class AffineLayout(NamedTuple):
    """How one affine type stores its integers, and their ranges (both start at 0)."""

    max_code: int
    max_scale: int
    subs: int
    unpack: Callable[[Blocks], Affine]
    pack: Callable[[Affine], Blocks]


class SymmetricLayout(NamedTuple):
    """How one symmetric type stores its integers, and their lowest values (-n for the range -n..n-1)."""

    min_code: int
    min_scale: int
    unpack: Callable[[Blocks], Symmetric]
    pack: Callable[[Symmetric], Blocks]


def decode(name: str, blocks: Blocks) -> Values:
    """Blocks uint8 [n, bytes] of the K type `name` to values float32 [n, 256]."""
    if name in AFFINE:
        return affine_values(AFFINE[name].unpack(blocks))
    return symmetric_values(SYMMETRIC[name].unpack(blocks))


def affine_values(blocks: Affine) -> Values:
    """The values float32 [n, 256]."""
    scale = blocks.d * blocks.scales.astype(np.float32)
    offset = blocks.dmin * blocks.mins.astype(np.float32)
    codes = blocks.codes.reshape(*scale.shape, -1).astype(np.float32)
    codes *= scale[:, :, None]
    codes -= offset[:, :, None]
    return codes.reshape(len(codes), -1)


def symmetric_values(blocks: Symmetric) -> Values:
    """The values float32 [n, 256]."""
    scale = blocks.d * blocks.scales.astype(np.float32)
    codes = blocks.codes.reshape(*scale.shape, -1).astype(np.float32)
    codes *= scale[:, :, None]
    return codes.reshape(len(codes), -1)


def _unpack_q2_k(blocks: Blocks) -> Affine:
    # 16 bytes of (scale, min << 4), 64 bytes of codes, d, dmin
    packed = blocks[:, :16]
    codes = unpack(blocks[:, 16:80], 2, 32)
    halves = from_half(blocks[:, 80:])
    return Affine(codes, packed & np.uint8(15), packed >> np.uint8(4), halves[:, :1], halves[:, 1:])


def _pack_q2_k(parts: Affine) -> Blocks:
    packed = parts.scales | parts.mins << np.uint8(4)
    return _joined(packed, pack(parts.codes, 2, 32), to_half(parts.d), to_half(parts.dmin))


def _unpack_q4_k(blocks: Blocks) -> Affine:
    # d, dmin, 12 bytes of scales and mins, 128 bytes of codes
    halves = from_half(blocks[:, :4])
    codes = unpack(blocks[:, 16:], 4, 32)
    return Affine(codes, *_unpack_6_bits(blocks[:, 4:16]), halves[:, :1], halves[:, 1:])


def _pack_q4_k(parts: Affine) -> Blocks:
    sixes = _pack_6_bits(parts.scales, parts.mins)
    return _joined(to_half(parts.d), to_half(parts.dmin), sixes, pack(parts.codes, 4, 32))


def _unpack_q5_k(blocks: Blocks) -> Affine:
    # d, dmin, 12 bytes of scales and mins, 32 bytes of fifth bits, 128 bytes of low nibbles
    halves = from_half(blocks[:, :4])
    codes = unpack(blocks[:, 48:], 4, 32) | unpack(blocks[:, 16:48], 1, 32) << np.uint8(4)
    return Affine(codes, *_unpack_6_bits(blocks[:, 4:16]), halves[:, :1], halves[:, 1:])


def _pack_q5_k(parts: Affine) -> Blocks:
    sixes = _pack_6_bits(parts.scales, parts.mins)
    high, low = pack(parts.codes >> 4, 1, 32), pack(parts.codes & 15, 4, 32)
    return _joined(to_half(parts.d), to_half(parts.dmin), sixes, high, low)


def _unpack_q3_k(blocks: Blocks) -> Symmetric:
    # 32 bytes of third bits, 64 bytes of low pairs, 8 + 4 bytes of 6-bit scales, d
    codes = unpack(blocks[:, 32:96], 2, 32) | unpack(blocks[:, :32], 1, 32) << 2
    scales = unpack(blocks[:, 96:104], 4, 8) | unpack(blocks[:, 104:108], 2, 4) << 4
    return Symmetric(
        codes.view(np.int8) - np.int8(4),
        scales.view(np.int8) - np.int8(32),
        from_half(blocks[:, 108:]),
    )


def _pack_q3_k(parts: Symmetric) -> Blocks:
    codes = (parts.codes + np.int8(4)).view(np.uint8)
    scales = (parts.scales + np.int8(32)).view(np.uint8)
    return _joined(
        pack(codes >> 2, 1, 32),
        pack(codes & 3, 2, 32),
        pack(scales & 15, 4, 8),
        pack(scales >> 4, 2, 4),
        to_half(parts.d),
    )


def _unpack_q6_k(blocks: Blocks) -> Symmetric:
    # 128 bytes of low nibbles, 64 bytes of high pairs, 16 scales, d
    codes = unpack(blocks[:, :128], 4, 64) | unpack(blocks[:, 128:192], 2, 32) << 4
    scales = blocks[:, 192:208].view(np.int8)
    return Symmetric(codes.view(np.int8) - np.int8(32), scales, from_half(blocks[:, 208:]))


def _pack_q6_k(parts: Symmetric) -> Blocks:
    codes = (parts.codes + np.int8(32)).view(np.uint8)
    low, high = pack(codes & 15, 4, 64), pack(codes >> 4, 2, 32)
    return _joined(low, high, parts.scales.view(np.uint8), to_half(parts.d))


def _unpack_6_bits(field: Blocks) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Eight scales and eight mins of 6 bits from 12 bytes.

    Bytes 0-3 and 4-7 hold scales 0-3 and mins 0-3 in their low 6 bits; bytes 8-11 hold the low nibbles of
    scales and of mins 4-7, whose top pairs are the top bits of bytes 0-3 and 4-7.
    """
    first, low = field[:, :8] & np.uint8(63), unpack(field[:, 8:], 4, 4)
    high = field[:, :8] >> np.uint8(6) << np.uint8(4)
    scales = np.concatenate([first[:, :4], low[:, :4] | high[:, :4]], axis=1)
    mins = np.concatenate([first[:, 4:], low[:, 4:] | high[:, 4:]], axis=1)
    return scales, mins


def _pack_6_bits(scales: NDArray[np.uint8], mins: NDArray[np.uint8]) -> Blocks:
    last = np.concatenate([scales[:, 4:], mins[:, 4:]], axis=1)
    first = np.concatenate([scales[:, :4], mins[:, :4]], axis=1)
    first |= last >> np.uint8(4) << np.uint8(6)
    return np.concatenate([first, pack(last & np.uint8(15), 4, 4)], axis=1)


def _joined(*fields: Blocks) -> Blocks:
    return np.concatenate(fields, axis=1)


AFFINE = {
    "Q2_K": AffineLayout(3, 15, 16, _unpack_q2_k, _pack_q2_k),
    "Q4_K": AffineLayout(15, 63, 8, _unpack_q4_k, _pack_q4_k),
    "Q5_K": AffineLayout(31, 63, 8, _unpack_q5_k, _pack_q5_k),
}
SYMMETRIC = {
    "Q3_K": SymmetricLayout(-4, -32, _unpack_q3_k, _pack_q3_k),
    "Q6_K": SymmetricLayout(-32, -128, _unpack_q6_k, _pack_q6_k),
}
