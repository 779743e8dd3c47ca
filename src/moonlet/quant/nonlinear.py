"""IQ4_NL and IQ4_XS: four-bit codes of 16 uneven levels, denser around 0 where weights are.

    IQ4_NL   32 values: d f16, 16 bytes of codes; value = d * LEVELS[code]
    IQ4_XS  256 values: d f16, u16 of eight high pairs, 4 bytes of eight low nibbles, 128 bytes of codes;
            value = d * (scale - 32) * LEVELS[code], a 6-bit scale per 32 values

In both, a byte holds code i of 32 in its low nibble and code i + 16 in its high one. The levels are facts
of the format (ggml, MIT licence).
"""

import numpy as np
from numpy.typing import NDArray

from moonlet.quant.bits import as_half, from_half, pack, to_half, unpack
from moonlet.quant.rounding import inverse
from moonlet.quant.search import Values, fit_scale, integers

Blocks = NDArray[np.uint8]

LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
# Halfway points between levels are multiples of 0.5: cell k covers k / 2 - 128 up to the next half.
_CELLS = np.arange(484, dtype=np.float32) / 2 - 128
_CODE_OF_CELL = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, _CELLS, side="right").astype(
    np.uint8
)
_LEVEL_OF_CELL = LEVELS[_CODE_OF_CELL]
# Where the largest value is tried: around either end of the levels, as far as that helped.
_TARGETS = np.concatenate([np.linspace(-150, -90, 16), np.linspace(75, 130, 14)])


def decode_iq4_nl(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 18] to values float32 [n, 32]."""
    return from_half(blocks[:, :2]) * LEVELS[unpack(blocks[:, 2:], 4, 16)]


def decode_iq4_xs(blocks: Blocks) -> Values:
    """Blocks uint8 [n, 136] to values float32 [n, 256]."""
    scales = unpack(blocks[:, 4:8], 4, 1) | unpack(blocks[:, 2:4], 2, 1) << 4
    scales = from_half(blocks[:, :2]) * (scales.view(np.int8) - np.int8(32)).astype(np.float32)
    levels = LEVELS[unpack(blocks[:, 8:], 4, 16)].reshape(*scales.shape, 32)
    return (scales[:, :, None] * levels).reshape(len(blocks), -1)


def encode_iq4_nl(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 32] to blocks uint8 [n, 18]."""
    weight = np.ones_like(values) if weight is None else weight
    d, _ = fit_scale(values.T.copy(), weight.T.copy(), _nearest_level, _TARGETS)
    d = as_half(d[:, None])
    codes = _CODE_OF_CELL[_cell(values * inverse(d))]
    return np.concatenate([to_half(d), pack(codes, 4, 16)], axis=1)


def encode_iq4_xs(values: Values, weight: Values | None) -> Blocks:
    """Values [n, 256] to blocks uint8 [n, 136]."""
    n = len(values)
    weight = np.ones_like(values) if weight is None else weight
    groups, weights = values.reshape(-1, 32), weight.reshape(-1, 32)
    real, cost = fit_scale(groups.T.copy(), weights.T.copy(), _nearest_level, _TARGETS)
    rounder = integers(-32, 31)
    real = real.reshape(n, 8)
    targets = np.linspace(-32.9, -31.1, 19)
    d, _ = fit_scale(real.T.copy(), cost.reshape(n, 8).T.copy(), rounder, targets)
    d = as_half(d[:, None])
    scales = rounder(real * inverse(d))
    step = (d * scales).reshape(-1, 1)
    codes = _CODE_OF_CELL[_cell(groups * inverse(step))].reshape(n, -1)
    sixes = (scales + 32).astype(np.uint8)
    return np.concatenate(
        [to_half(d), pack(sixes >> 4, 2, 1), pack(sixes & 15, 4, 1), pack(codes, 4, 16)], axis=1
    )


def _nearest_level(scaled: Values) -> Values:
    return _LEVEL_OF_CELL.take(_cell(scaled))


def _cell(scaled: Values) -> NDArray[np.int32]:
    return (scaled * 2 + 256).clip(0, 483).astype(np.int32)
