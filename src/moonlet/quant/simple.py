"""Blocks of 32 values with one scale, and plain floats: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4.

    type   bytes of a block                             value
    Q4_0   d, 16 of codes                               d * (code - 8)
    Q4_1   d, m, 16 of codes                            d * code + m
    Q5_0   d, 4 of fifth bits, 16 of low nibbles        d * (code - 16)
    Q5_1   d, m, 4 of fifth bits, 16 of low nibbles     d * code + m
    Q8_0   d, 32 of signed codes                        d * code
    MXFP4  e, 16 of codes                               2^(e - 128) * E2M1[code]

d and m are half floats; a byte holds code i in its low nibble and code i + 16 in its high one.

Without importance the encoders follow ggml's reference rules to the byte (they set the scale by the
largest value); with it, Q4_0 to Q5_1 search for the scale of the smallest weighted error. Q8_0 is close
enough to exact that there is nothing to search.
"""

import numpy as np
from numpy.typing import NDArray

from moonlet.quant import bf16
from moonlet.quant.bits import as_half, from_half, pack, to_half, unpack
from moonlet.quant.rounding import inverse, round_half_away
from moonlet.quant.search import fit_affine, fit_scale, integers

Blocks = NDArray[np.uint8]
Values = NDArray[np.float32]

# E2M1 of the OCP microscaling formats (MX v1.0, section 5.3.3), doubled so that all are integers
E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def decode_f32(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 4] to [n, 1]."""
    return blocks.view("<f4")


def decode_f16(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 2] to [n, 1]."""
    return from_half(blocks)


def decode_bf16(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 2] to [n, 1]."""
    return bf16.to_float32(blocks.view("<u2"))


def decode_q4_0(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 18] to [n, 32]."""
    codes = unpack(blocks[:, 2:], 4, 16).view(np.int8) - np.int8(8)
    return from_half(blocks[:, :2]) * codes.astype(np.float32)


def decode_q4_1(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 20] to [n, 32]."""
    codes = unpack(blocks[:, 4:], 4, 16).astype(np.float32)
    return from_half(blocks[:, :2]) * codes + from_half(blocks[:, 2:4])


def decode_q5_0(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 22] to [n, 32]."""
    codes = unpack(blocks[:, 6:], 4, 16) | unpack(blocks[:, 2:6], 1, 1) << 4
    return from_half(blocks[:, :2]) * (codes.view(np.int8) - np.int8(16)).astype(np.float32)


def decode_q5_1(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 24] to [n, 32]."""
    codes = unpack(blocks[:, 8:], 4, 16) | unpack(blocks[:, 4:8], 1, 1) << 4
    return from_half(blocks[:, :2]) * codes.astype(np.float32) + from_half(blocks[:, 2:4])


def decode_q8_0(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 34] to [n, 32]."""
    return from_half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def decode_mxfp4(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 17] to [n, 32]."""
    codes = E2M1_DOUBLED[unpack(blocks[:, 1:], 4, 16)]
    return np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128) * codes


def encode_f32(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 1] to blocks uint8 [n, 4]."""
    return values.astype("<f4").view(np.uint8)


def encode_f16(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 1] to blocks uint8 [n, 2]."""
    return to_half(values)


def encode_bf16(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 1] to blocks uint8 [n, 2]; ValueError where rounding gives an infinity."""
    bits = bf16.from_float32(values)
    if ((bits & 0x7FFF) == 0x7F80).any():
        raise ValueError("a value above 3.39e38 does not fit BF16: store the tensor as F32")
    return bits.astype("<u2").view(np.uint8)


def encode_q4_0(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 32] to blocks uint8 [n, 18]."""
    codes, d = _symmetric(values, weight, 8)
    return np.concatenate([d, pack(codes, 4, 16)], axis=1)


def encode_q5_0(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 32] to blocks uint8 [n, 22]."""
    codes, d = _symmetric(values, weight, 16)
    return np.concatenate([d, pack(codes >> 4, 1, 1), pack(codes & 15, 4, 16)], axis=1)


def encode_q4_1(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 32] to blocks uint8 [n, 20]."""
    codes, halves = _affine(values, weight, 15)
    return np.concatenate([halves, pack(codes, 4, 16)], axis=1)


def encode_q5_1(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 32] to blocks uint8 [n, 24]."""
    codes, halves = _affine(values, weight, 31)
    return np.concatenate([halves, pack(codes >> 4, 1, 1), pack(codes & 15, 4, 16)], axis=1)


def encode_q8_0(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 32] to blocks uint8 [n, 34]."""
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    codes = round_half_away(values * inverse(d)).astype(np.int8)
    return np.concatenate([to_half(d), codes.view(np.uint8)], axis=1)


def encode_mxfp4(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 32] to blocks uint8 [n, 17].

    The exponent is the one that brings the largest value to 4..8 (OCP MX v1.0, section 6.3), or the next
    where that makes the error smaller: E2M1 ends at 6, so that a largest value above 7 loses much.
    """
    weight = np.ones_like(values) if weight is None else weight
    absmax = np.abs(values).max(axis=1, keepdims=True)
    exponent = np.frexp(absmax)[1].astype(np.int32) - 1 - 2 + 127
    first = np.where(absmax > 0, exponent, 0).clip(0, 254)
    codes, loss = _e2m1(values, first, weight)
    wider, wider_loss = _e2m1(values, first + 1, weight)
    # Each loss is in squares of its own scale, and the wider scale is twice the other.
    take = 4 * wider_loss < loss
    exponents = np.where(take, first + 1, first).astype(np.uint8)
    return np.concatenate([exponents, pack(np.where(take, wider, codes), 4, 16)], axis=1)


def _e2m1(
    values: Values, exponent: NDArray[np.int32], weight: Values
) -> tuple[NDArray[np.uint8], Values]:
    """Nearest codes [n, 32] for the exponents [n, 1], and the weighted loss [n, 1] in units of the scale."""
    scaled = np.ldexp(values, 128 - exponent)
    size = np.abs(scaled)
    codes = np.zeros(values.shape, np.uint8)
    for middle in (E2M1_DOUBLED[:7] + E2M1_DOUBLED[1:8]) / 2:
        codes += size > middle
    codes += np.where((scaled < 0) & (codes > 0), np.uint8(8), np.uint8(0))
    error = scaled - E2M1_DOUBLED[codes]
    return codes, (weight * error * error).sum(axis=1, keepdims=True)


def _symmetric(
    values: Values, weight: Values | None, half: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes 0..2 half - 1 [n, 32], where half stands for 0, and the bytes of d [n, 2]."""
    if weight is None:
        peak = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
        d = peak / np.float32(-half)
        codes = np.trunc(values * inverse(d) + np.float32(half + 0.5))
        return codes.clip(0, 2 * half - 1).astype(np.uint8), to_half(d)
    rounder = integers(-half, half - 1)
    # The largest value is tried at codes from a quarter beyond the lowest to three quarters of it.
    targets = np.linspace(-1.25 * half, -0.75 * half, 24)
    d, _ = fit_scale(values.T.copy(), weight.T.copy(), rounder, targets)
    d = as_half(d[:, None])
    codes = rounder(values * inverse(d)) + np.float32(half)
    return codes.astype(np.uint8), to_half(d)


def _affine(
    values: Values, weight: Values | None, top: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes 0..top [n, 32] and the bytes of d and m [n, 4]."""
    low = values.min(axis=1, keepdims=True)
    if weight is None:
        d = (values.max(axis=1, keepdims=True) - low) / np.float32(top)
        codes = np.trunc((values - low) * inverse(d) + np.float32(0.5))
        return codes.clip(0, top).astype(np.uint8), to_half(np.concatenate([d, low], axis=1))
    # Seen from their largest value all are below 0, so that the fitted minimum is free.
    high = values.max(axis=1)
    below = np.ascontiguousarray(values.T) - high
    d, depth, _ = fit_affine(below, weight.T.copy(), top, np.linspace(-2, 2, 19))
    halves = as_half(np.stack([d, high - depth], axis=1))
    codes = (values - halves[:, 1:]) * inverse(halves[:, :1])
    return integers(0, top)(codes).astype(np.uint8), to_half(halves)
