"""Pictures and animations that Pillow decodes: a file's bytes become RGB images, or one MediaError.

Nothing here trusts the file. Its size in pixels, frames and scans is checked before decoding the picture (so
a caller can add up many files first), and whatever the decoder does on a damaged file is one error.
"""

import io
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from moonlet.chat.headers import frame_times, jpeg_scans, webp_size
from moonlet.errors import MediaError

MAX_PIXELS = 2**26  # 8192 x 8192; decoding takes up to about 600 MB
MAX_VIDEO_PIXELS = 2**27  # all frames together, 400 MB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

_USUAL_SCANS = 16  # of a progressive JPEG, at most; this many count as one pass over the pixels
_NOT_AN_IMAGE = "The image is not a readable PNG, JPEG, WebP or GIF file"


@dataclass(frozen=True)
class Picture:
    """A picture of which only the header was read; its size is within the limits."""

    data: bytes
    width: int
    height: int
    work: int  # pixels that decoding goes over

    def load(self) -> Image.Image:
        """RGB, upright, the first frame of a GIF. Raises MediaError when it cannot be decoded."""
        with _decoding():
            image = _open(self.data)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))


@dataclass(frozen=True)
class Animation:
    """An animated GIF or WebP of which only the headers were read, within the limits."""

    data: bytes
    width: int
    height: int
    count: int  # frames
    fps: float  # the mean

    @property
    def work(self) -> int:
        return self.count * self.width * self.height

    def frames(self, chosen: Iterable[int]) -> Generator[Image.Image, None, None]:
        """The frames of these ascending numbers, in RGB, one at a time.

        Raises MediaError when one cannot be decoded.
        """
        with _decoding():
            image, following = _open(self.data), 0
            for index in chosen:
                for step in range(following, index + 1):  # frames change the one before them
                    image.seek(step)
                    if image.size != (self.width, self.height):
                        raise MediaError("The frames of a video must all have the same size.")
                following = index + 1
                image.load()
                yield _to_rgb(image.copy())


def open_picture(data: bytes) -> Picture:
    """The picture in a file's bytes, not decoded yet.

    Raises MediaError when it is no picture or too large.
    """
    scans = jpeg_scans(data)
    image = _open(data)
    work = image.width * image.height * max(1, math.ceil(scans / _USUAL_SCANS))
    return Picture(data, image.width, image.height, work)


def open_animation(data: bytes) -> Animation:
    """The animated GIF or WebP in a file's bytes, not decoded yet; a still picture is a single frame.

    Raises MediaError for anything else or when it is too large.
    """
    jpeg_scans(data)
    with _decoding():
        times = frame_times(data)
    image, count = _open(data), len(times)
    if count * image.width * image.height > MAX_VIDEO_PIXELS:
        raise MediaError(
            f"The video has {count} frames of {image.width} x {image.height} pixels, "
            f"{MAX_VIDEO_PIXELS} pixels in all are allowed."
        )
    # Files without durations are shown at 10 frames per second by every browser.
    fps = 1000 * count / sum(times) if any(times) else 10.0
    return Animation(data, image.width, image.height, count, fps)


@contextmanager
def _decoding() -> Iterator[None]:
    """Turns whatever a decoder raises, from KeyError to SyntaxError, into a MediaError."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{_NOT_AN_IMAGE}: {error or type(error).__name__}.") from error


def _open(data: bytes) -> Image.Image:
    """The file with only its header read, within the limit of pixels."""
    _check_pixels(*webp_size(data))  # opening a WebP file already allocates its canvas
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"The image has more than the {MAX_PIXELS} pixels allowed.") from error
    except Exception as error:  # decoders raise anything
        raise MediaError(f"{_NOT_AN_IMAGE}.") from error
    _check_pixels(image.width, image.height)
    return image


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"The image has {width} x {height} pixels, {MAX_PIXELS} in all are allowed."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scaling
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    # On white, as viewers show it: under the transparent pixels of a drawing lies any colour,
    # mostly black, and black strokes would vanish in it. The published processor is silent here.
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white
