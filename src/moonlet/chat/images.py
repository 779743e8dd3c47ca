"""Pictures from requests: a data URL or bytes becomes an RGB image, or one MediaError.

Nothing here trusts the file. Its size in bytes is checked before decoding base64, its size in
pixels, frames and scans before decoding the picture (so a caller can add up many files first), and
whatever the decoder does on a damaged file is one error.
"""

import base64
import binascii
import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from moonlet.chat.headers import frame_times, jpeg_scans, webp_size
from moonlet.errors import MediaError

MAX_BYTES = 50 * 2**20
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
class Video:
    """An animated GIF or WebP of which only the headers were read, within the limits."""

    data: bytes
    width: int
    height: int
    count: int  # frames
    fps: float  # the mean

    @property
    def work(self) -> int:
        return self.count * self.width * self.height

    def frames(self, chosen: Iterable[int]) -> Iterator[Image.Image]:
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


def open_picture(source: str | bytes) -> Picture:
    """The picture of a data URL or of a file's bytes, not decoded yet.

    Raises MediaError when it is no picture or too large.
    """
    data = _bytes_of(source)
    scans = jpeg_scans(data)
    image = _open(data)
    work = image.width * image.height * max(1, math.ceil(scans / _USUAL_SCANS))
    return Picture(data, image.width, image.height, work)


def open_video(source: str | bytes) -> Video:
    """The video of a data URL or of a file's bytes, not decoded yet.

    Raises MediaError for anything but an animated GIF or WebP (or a still picture, a single frame):
    moonlet ships no decoder for other video formats.
    """
    data = _bytes_of(source)
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
    return Video(data, image.width, image.height, count, fps)


def load_image(source: str | bytes) -> Image.Image:
    """The decoded picture of a data URL or of a file's bytes. Raises MediaError."""
    return open_picture(source).load()


@contextmanager
def _decoding() -> Iterator[None]:
    """Turns whatever a decoder raises, from KeyError to SyntaxError, into a MediaError."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{_NOT_AN_IMAGE}: {error or type(error).__name__}.") from error


def _bytes_of(source: str | bytes) -> bytes:
    if isinstance(source, str):
        source = _decode_data_url(source)
    if len(source) > MAX_BYTES:
        raise MediaError(f"The image has {len(source)} bytes, {MAX_BYTES} are allowed.")
    return source


def _decode_data_url(url: str) -> bytes:
    scheme = url[:40].partition(":")[0].lower()
    if scheme in ("http", "https"):
        raise MediaError("This server does not fetch URLs; send the image as a base64 data URL.")
    if scheme != "data":
        raise MediaError(
            f"The image URL {url[:40]!r} is not supported; send a data URL of the form "
            "data:image/png;base64,... instead."
        )
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise MediaError("The data URL is not of the form data:image/png;base64,....")
    if len(payload) * 3 // 4 > MAX_BYTES + 2:
        raise MediaError(
            f"The image has about {len(payload) * 3 // 4} bytes, {MAX_BYTES} are allowed."
        )
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters outside ASCII
        raise MediaError("The data URL does not hold valid base64.") from error


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
