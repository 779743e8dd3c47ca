"""TQ1_0 and TQ2_0: 256 values of -1, 0 or 1 times one scale.

TQ2_0 spends two bits a value: uint8 [64] of four planes of 32, then d. TQ1_0 packs five trits into a
byte: v = 81 a + 27 b + 9 c + 3 d + e (0..242) is stored as the byte ceil(256 v / 243), a fixed-point
fraction whose trits come off the top by multiplying with 3 (Compilade, llama.cpp pull request 8151):

    48 bytes   32 for values 0-159 (byte i has values i, 32 + i, ... 128 + i), 16 for 160-239 likewise
     4 bytes   values 240-255, four trits each, in the places of a to d
     2 bytes   d, a half float

Weights trained for these formats are such multiples already, so that without importance the largest
magnitude is the scale, as in ggml. Any other weights lose most of themselves that way; with importance,
the scale of the smallest weighted error is searched instead.
"""

import numpy as np
from numpy.typing import NDArray

from moonlet.quant.bits import as_half, from_half, pack, to_half, unpack
from moonlet.quant.rounding import inverse, round_half_away
from moonlet.quant.search import Values, fit_scale, integers

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
# (bytes, trits per byte) of the three parts of a TQ1_0 block, in the order of the values
_PARTS = ((32, 5), (16, 5), (4, 4))
_TARGETS = np.linspace(
    0.8, 4, 33
)  # where the largest value is tried, as a code: most get clipped to 1


def decode_tq1_0(blocks: NDArray[np.uint8]) -> Values:
    """Blocks uint8 [n, 54] to values float32 [n, 256]."""
    start, parts = 0, []
    for size, trits in _PARTS:
        # The product wraps at 256: what is left of the fraction after the first k trits.
        left = blocks[:, None, start : start + size] * _POWERS[:trits]
        parts.append(left.reshape(len(blocks), -1))
        start += size
    left = np.concatenate(parts, axis=1).astype(np.uint16)
    return _scaled(left * np.uint16(3) >> 8, blocks[:, start:])


def decode_tq2_0(blocks: NDArray[np.uint8]) -> Values:
    """Blocks uint8 [n, 66] to values float32 [n, 256]."""
    return _scaled(unpack(blocks[:, :64], 2, 32), blocks[:, 64:])


def encode_tq1_0(values: Values, weight: Values | None) -> NDArray[np.uint8]:
    """Values [n, 256] to blocks uint8 [n, 54]."""
    trits, d = _nearest(values, weight)
    start, fields = 0, []
    for size, count in _PARTS:
        part = trits[:, start : start + size * count].reshape(-1, count, size)
        number = (part * _POWERS[::-1][:count].astype(np.uint16)).sum(axis=1, dtype=np.uint16)
        fields.append(((number * 256 + 242) // 243).astype(np.uint8))
        start += size * count
    return np.concatenate([*fields, d], axis=1)


def encode_tq2_0(values: Values, weight: Values | None) -> NDArray[np.uint8]:
    """Values [n, 256] to blocks uint8 [n, 66]."""
    trits, d = _nearest(values, weight)
    return np.concatenate([pack(trits, 2, 32), d], axis=1)


def _nearest(values: Values, weight: Values | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Trits plus one [n, 256] and the bytes of the scale [n, 2]."""
    if weight is None:
        d = np.abs(values).max(axis=1, keepdims=True)
    else:
        fitted, _ = fit_scale(values.T.copy(), weight.T.copy(), integers(-1, 1), _TARGETS)
        d = np.abs(as_half(fitted[:, None]))
    trits = round_half_away(values * inverse(d)).clip(-1, 1) + np.float32(1)
    return trits.astype(np.uint8), to_half(d)


def _scaled(trits_plus_1: NDArray, half: NDArray[np.uint8]) -> Values:
    values = trits_plus_1.astype(np.float32)
    values -= np.float32(1)
    values *= from_half(half)
    return values
