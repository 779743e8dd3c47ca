"""Rows of one to four handwritten digits as images, from the 8x8 samples that scikit-learn ships.

The 1,797 samples (UCI "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998)
are split once: the model never sees the 400 of the test in training, in any form. A row is drawn
with one digit per 28 pixels, which is one image token each; in training also crooked, coloured, noisy, and
on canvases of other sizes.
"""

import base64
import io
import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moonlet.errors import NotSupportedError

CELL = 28  # pixels of one merged image token
TEST_SAMPLES = 400
SPLIT_SEED = 20_26


@dataclass(frozen=True)
class DigitSamples:
    """Handwritten digits: `images` [n, 8, 8] uint8 with ink 255, and which digit each one is."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_samples(test: bool) -> DigitSamples:
    """The training or the test share. Raises NotSupportedError when scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits  # an extra: only training and its test need it
    except ImportError as error:
        raise NotSupportedError(
            "the handwritten digits come with scikit-learn, which is not installed: "
            "`make setup-dev` in a clone, or `pip install scikit-learn`"
        ) from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    chosen = order[:TEST_SAMPLES] if test else order[TEST_SAMPLES:]
    ink = np.minimum(images[chosen].reshape(-1, 8, 8) * 16, 255)  # 16 levels of ink
    return DigitSamples(ink.astype(np.uint8), labels[chosen].astype(np.int64))


def draw_row(
    samples: DigitSamples, rng: random.Random, difficulty: float
) -> tuple[str, NDArray[np.uint8]]:
    """Digits written in the image, and the image: [height, width, 3] uint8.

    `difficulty` 0 is a single upright digit, light on dark, from which a tower that knows nothing learns
    fast; 1 is any row in any disguise; between them, the share of the latter.
    """
    if rng.random() >= difficulty:
        pick = rng.randrange(len(samples.labels))
        ink = _cell_ink([samples.images[pick]], rng)
        return str(samples.labels[pick]), np.repeat(ink[..., None], 3, axis=2)
    text, glyphs = _pick(samples, rng)
    ink = _loose_ink(glyphs, rng) if rng.random() < 0.3 else _cell_ink(glyphs, rng, crooked=True)
    share = np.clip(ink / 255.0 * rng.uniform(0.9, 1.7), 0, 1) ** rng.uniform(0.6, 1.5)  # how bold
    paper = np.array([rng.uniform(0, 70) for _ in range(3)]) * (rng.random() < 0.6)
    pen = (
        np.array([rng.uniform(150, 255) for _ in range(3)])
        if rng.random() < 0.6
        else np.full(3, 255.0)
    )
    image = paper + (pen - paper) * share[..., None]
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32))
        image += noise.normal(0, rng.uniform(0, 14), ink.shape)[..., None]
    return text, _pixels(image if rng.random() < 0.5 else 255 - image)


def draw_plain_row(samples: DigitSamples, rng: random.Random) -> tuple[str, NDArray[np.uint8]]:
    """A row for the test: upright digits, give or take two pixels, light on dark or dark on light."""
    text, glyphs = _pick(samples, rng)
    image = np.repeat(_cell_ink(glyphs, rng)[..., None], 3, axis=2)
    return text, image if rng.random() < 0.5 else 255 - image


def _pick(samples: DigitSamples, rng: random.Random) -> tuple[str, list[NDArray[np.uint8]]]:
    picks = [rng.randrange(len(samples.labels)) for _ in range(rng.randint(1, 4))]
    return "".join(str(samples.labels[i]) for i in picks), [samples.images[i] for i in picks]


def _cell_ink(
    glyphs: list[NDArray[np.uint8]], rng: random.Random, crooked: bool = False
) -> NDArray[np.uint8]:
    """One digit per cell: ink [28, 28 * n]."""
    ink = np.zeros((CELL, CELL * len(glyphs)), np.uint8)
    shift = 3.5 if crooked else 2.0
    for index, glyph in enumerate(glyphs):
        x = CELL * (index + 0.5) + rng.uniform(-shift, shift)
        y = CELL / 2 + rng.uniform(-shift, shift) * 0.7
        size = CELL * (rng.uniform(0.7, 1.0) if crooked else 0.86)
        drawn = _stamp(glyph, ink.shape, (x, y), size, rng if crooked else None)
        np.maximum(ink, drawn, out=ink)
    return ink


def _loose_ink(glyphs: list[NDArray[np.uint8]], rng: random.Random) -> NDArray[np.uint8]:
    """As a person draws on a canvas of any size: ink [28 to 84, any]."""
    height = rng.randint(CELL, 3 * CELL)
    size = height * rng.uniform(0.55, 0.95)
    advance = size * rng.uniform(0.75, 1.2)
    margin = rng.uniform(0.5, 1.0) * size
    ink = np.zeros((height, math.ceil(2 * margin + advance * (len(glyphs) - 1))), np.uint8)
    slack = (height - size) / 2
    for index, glyph in enumerate(glyphs):
        center = (margin + advance * index, height / 2 + rng.uniform(-slack, slack))
        np.maximum(ink, _stamp(glyph, ink.shape, center, size, rng), out=ink)
    return ink


def _stamp(
    glyph: NDArray[np.uint8],
    shape: tuple[int, ...],
    center: tuple[float, float],
    size: float,
    rng: random.Random | None,
) -> NDArray[np.uint8]:
    """`glyph` enlarged to `size` pixels around `center` on an empty canvas; crooked if `rng` is given."""
    turn, shear, stretch = (
        (rng.uniform(-0.25, 0.25), rng.uniform(-0.2, 0.2), rng.uniform(0.8, 1.1))
        if rng
        else (0.0, 0.0, 1.0)
    )
    scale = 8 / size  # glyph pixels per canvas pixel
    a, b = scale * math.cos(turn) / stretch, scale * (math.sin(turn) + shear)
    d, e = -scale * math.sin(turn) / stretch, scale * math.cos(turn)
    middle = 4 + 2  # of the padded glyph
    matrix = (
        a,
        b,
        middle - a * center[0] - b * center[1],
        d,
        e,
        middle - d * center[0] - e * center[1],
    )
    padded = Image.fromarray(np.pad(glyph, 2))
    canvas = padded.transform(
        (shape[1], shape[0]), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    return np.asarray(canvas)


def _pixels(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def data_url(image: NDArray[np.uint8]) -> str:
    """The image as a PNG data URL, the form in which a client sends it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
