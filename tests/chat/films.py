"""Small videos for tests: every frame is one shade of grey that tells its number."""

import io
import itertools
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from PIL import Image

KINDS = {  # container -> codec
    "mp4": "libx264",
    "mov": "libx264",
    "webm": "libvpx-vp9",
    "matroska": "libvpx",
    "avi": "mpeg4",
    "mpeg": "mpeg2video",
    "mpegts": "mpeg2video",
    "flv": "flv",
    "3gp": "mpeg4",
    "asf": "wmv2",
}


def shade(number: int) -> int:
    """Grey of frame `number`; every value up to 24 frames is far from the others."""
    return 20 + 9 * number % 216


def film(
    kind: str = "mp4",
    count: int = 20,
    size: tuple[int, int] = (64, 48),
    fps: int = 25,
    times: Iterable[int] | None = None,
    **options: str,
) -> bytes:
    """A video file. `times` are those of the frames in units of 1 / fps s, one after another by default."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(KINDS[kind], rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number, time in zip(range(count), times or itertools.count(), strict=False):
            pixels = np.full((size[1], size[0], 3), shade(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def number_of(image: Image.Image) -> int:
    """The number of a frame, by its shade."""
    grey = np.asarray(image).astype(float).mean()
    return min(range(24), key=lambda number: abs(shade(number) - grey))
