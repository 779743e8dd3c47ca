"""Decoding of the IQ1, IQ2 and IQ3 formats of the community's smallest files; moonlet does not write them.

A block of 256 values is cut into groups of 8 (or 4) that are rows of a fixed grid (`grids`), with signs
stored apart, times a scale for every 16 or 32 values. The layouts, little endian, as bytes of a block:

    IQ2_XXS  d f16, 8 x (4 grid indices, u32: four 7-bit sign indices and the scale in the top 4 bits)
    IQ2_XS   d f16, 32 x u16 (9-bit grid index, 7-bit sign index), 8 bytes of two scales
    IQ2_S    d f16, 32 low bytes of indices, 32 sign bytes, 8 bytes of four high pairs, 8 of two scales
    IQ3_XXS  d f16, 64 grid indices, 8 x u32 as in IQ2_XXS
    IQ3_S    d f16, 64 low bytes of indices, 8 bytes of high bits, 32 sign bytes, 4 bytes of two scales
    IQ1_S    d f16, 32 low bytes of indices, 8 x u16 (four 3-bit high parts, 3-bit scale, sign of the shift)
    IQ1_M    32 low bytes of indices, 32 nibbles (3-bit high part, sign of the shift), 4 x u16 (four 3-bit
             scales; the four top nibbles are the f16 d, lowest first)

Every function takes blocks uint8 [n, bytes] and gives float32 [n, 256]. The order of the products is the
one of gguf-py, so that results agree to the last bit.
"""

import numpy as np
from numpy.typing import NDArray

from moonlet.quant.bits import from_half, unpack
from moonlet.quant.grids import grid, signs_of_7_bits, signs_of_8_bits

Blocks = NDArray[np.uint8]
Values = NDArray[np.float32]

_SHIFT = np.float32(0.125)  # IQ1 moves each ternary grid row up or down by an eighth


def decode_iq2_xxs(blocks: Blocks) -> Values:
    """IQ2_XXS, 2.06 bits: a scale per 32 values."""
    groups = np.ascontiguousarray(blocks[:, 2:]).reshape(-1, 8, 8)
    scale, signs = _scales_and_signs(groups[:, :, 4:].copy().view("<u4")[:, :, 0])
    scale = from_half(blocks[:, :2]) * scale * np.float32(0.25)
    return _signed(scale, grid("iq2_xxs")[groups[:, :, :4]], signs)


def decode_iq2_xs(blocks: Blocks) -> Values:
    """IQ2_XS, 2.31 bits: a scale per 16 values."""
    words = blocks[:, 2:66].copy().view("<u2")
    scale = _quarter_scales(blocks[:, :2], blocks[:, 66:])
    return _signed(scale, grid("iq2_xs")[words & 511], signs_of_7_bits()[words >> 9])


def decode_iq2_s(blocks: Blocks) -> Values:
    """IQ2_S, 2.56 bits: a scale per 16 values."""
    index = blocks[:, 2:34] | unpack(blocks[:, 66:74], 2, 1).astype(np.uint16) << 8
    scale = _quarter_scales(blocks[:, :2], blocks[:, 74:])
    return _signed(scale, grid("iq2_s")[index], signs_of_8_bits()[blocks[:, 34:66]])


def decode_iq3_xxs(blocks: Blocks) -> Values:
    """IQ3_XXS, 3.06 bits: a scale per 32 values."""
    scale, signs = _scales_and_signs(blocks[:, 66:].copy().view("<u4"))
    scale = from_half(blocks[:, :2]) * scale * np.float32(0.5)
    return _signed(scale, grid("iq3_xxs")[blocks[:, 2:66]], signs)


def decode_iq3_s(blocks: Blocks) -> Values:
    """IQ3_S, 3.44 bits: a scale per 32 values."""
    index = blocks[:, 2:66] | unpack(blocks[:, 66:74], 1, 1).astype(np.uint16) << 8
    scale = from_half(blocks[:, :2]) * (1 + 2 * unpack(blocks[:, 106:], 4, 1)).astype(np.float32)
    return _signed(scale, grid("iq3_s")[index], signs_of_8_bits()[blocks[:, 74:106]])


def decode_iq1_s(blocks: Blocks) -> Values:
    """IQ1_S, 1.56 bits: a scale and a shift per 32 values."""
    words = blocks[:, 34:].copy().view("<u2")
    high = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    index = blocks[:, 2:34] | high.reshape(-1, 32) << 8
    scale = from_half(blocks[:, :2]) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    shift = np.where(words & 0x8000, -_SHIFT, _SHIFT)
    return _shifted(scale, grid("iq1")[index], shift)


def decode_iq1_m(blocks: Blocks) -> Values:
    """IQ1_M, 1.75 bits: a scale per 16 values and a shift per 8."""
    words = blocks[:, 48:].copy().view("<u2")
    top = (words >> 12) << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(top, axis=1, keepdims=True).view("<f2").astype(np.float32)
    scale = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    scale = d * (2 * scale.reshape(-1, 16) + 1).astype(np.float32)
    nibbles = unpack(blocks[:, 32:48], 4, 1)
    index = blocks[:, :32] | (nibbles & 7).astype(np.uint16) << 8
    shift = np.where(nibbles & 8, -_SHIFT, _SHIFT)
    return _shifted(scale, grid("iq1")[index], shift)


def _scales_and_signs(words: NDArray[np.uint32]) -> tuple[Values, Values]:
    """The scale factor [n, 8] and the signs [n, 8, 4, 8] in the words of IQ2_XXS and IQ3_XXS."""
    index = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return np.float32(0.5) + (words >> 28).astype(np.float32), signs_of_7_bits()[index]


def _quarter_scales(half: Blocks, nibbles: Blocks) -> Values:
    scale = unpack(nibbles, 4, 1).astype(np.float32)
    scale += np.float32(0.5)
    scale *= from_half(half)
    scale *= np.float32(0.25)
    return scale


def _signed(scale: Values, rows: Values, signs: Values) -> Values:
    """scale * rows * signs, each scale [n, groups] spread over its share of the 256 values."""
    blocks, groups = scale.shape
    values = scale[:, :, None] * rows.reshape(blocks, groups, -1)
    values *= signs.reshape(values.shape)
    return values.reshape(blocks, -1)


def _shifted(scale: Values, rows: Values, shift: Values) -> Values:
    """scale * (rows + shift), each of scale and shift spread over its share of the 256 values."""
    blocks, groups = scale.shape
    values = rows.reshape(blocks, shift.shape[1], -1)  # rows are a copy out of the grid
    values += shift[:, :, None]
    values = values.reshape(blocks, groups, -1)
    values *= scale[:, :, None]
    return values.reshape(blocks, -1)
