"""The K layouts: what is taken apart is put together again, integer by integer."""

import numpy as np
import pytest

from moonlet.quant import kquants
from moonlet.quant.types import TYPES

LAYOUTS = {**kquants.AFFINE, **kquants.SYMMETRIC}


def random_blocks(name: str) -> np.ndarray:
    blocks = np.random.default_rng(11).integers(0, 256, (500, TYPES[name].bytes), dtype=np.uint8)
    halves = {"Q2_K": slice(80, 84), "Q4_K": slice(0, 4), "Q5_K": slice(0, 4)}.get(
        name, slice(-2, None)
    )
    blocks[:, halves] = (0x34, 0x2E, 0x34, 0x2E)[: blocks[:, halves].shape[1]]
    return blocks


@pytest.mark.parametrize("name", LAYOUTS)
def test_packing_undoes_unpacking(name: str) -> None:
    blocks = random_blocks(name)
    layout = LAYOUTS[name]
    np.testing.assert_array_equal(layout.pack(layout.unpack(blocks)), blocks)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_integer_of_the_stated_ranges_occurs_and_no_other(name: str) -> None:
    parts = LAYOUTS[name].unpack(random_blocks(name))
    layout = LAYOUTS[name]
    if isinstance(layout, kquants.AffineLayout):
        codes, scales = (0, layout.max_code), (0, layout.max_scale)
        assert (parts.mins.min(), parts.mins.max()) == scales
        assert parts.scales.shape == (500, layout.subs)
    else:
        codes = (layout.min_code, -layout.min_code - 1)
        scales = (layout.min_scale, -layout.min_scale - 1)
        assert parts.scales.shape == (500, 16)
    assert (parts.codes.min(), parts.codes.max()) == codes
    assert (parts.scales.min(), parts.scales.max()) == scales
