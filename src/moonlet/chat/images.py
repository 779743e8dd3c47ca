"""Pictures from requests: a data URL or bytes becomes an RGB image, or one MediaError.

Nothing here trusts the file. Its size in bytes is checked before decoding base64, its size in
pixels before decoding the picture, and whatever the decoder does on a damaged file is one error.
"""

import base64
import binascii
import io
import struct

import numpy as np
from PIL import Image, ImageOps

from moonlet.errors import MediaError

MAX_BYTES = 50 * 2**20
MAX_PIXELS = 2**26  # 8192 x 8192; decoding takes up to about 600 MB
MAX_VIDEO_PIXELS = 2**27  # all frames together, 400 MB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

_NOT_AN_IMAGE = "The image is not a readable PNG, JPEG, WebP or GIF file"


def load_image(source: str | bytes) -> Image.Image:
    """The picture of a data URL or of a file's bytes: RGB, upright, the first frame of a GIF.

    Raises MediaError when it cannot be used.
    """
    image = _open(_bytes_of(source))
    try:
        image.load()
        _check_pixels(image.width, image.height)  # a GIF's first frame may exceed its header
        return _to_rgb(ImageOps.exif_transpose(image))
    except MediaError:
        raise
    except Exception as error:  # decoders raise anything from KeyError to SyntaxError
        raise MediaError(f"{_NOT_AN_IMAGE}: {error or type(error).__name__}.") from error


def load_video(source: str | bytes) -> tuple[list[Image.Image], float]:
    """The frames of an animated GIF or WebP and their mean rate in frames per second.

    Raises MediaError for anything else: moonlet ships no decoder for other video formats.
    """
    image = _open(_bytes_of(source))
    try:
        count = getattr(image, "n_frames", 1)
        _check_video(count, image.width, image.height, count * image.width * image.height)
        frames, milliseconds, pixels = [], 0.0, 0
        for index in range(count):
            image.seek(index)
            image.load()
            pixels += image.width * image.height  # frames of a GIF may exceed its header
            _check_video(count, image.width, image.height, pixels)
            frames.append(_to_rgb(image.copy()))
            milliseconds += max(float(image.info.get("duration", 0)), 0)
    except MediaError:
        raise
    except Exception as error:  # as above
        raise MediaError(f"{_NOT_AN_IMAGE}: {error or type(error).__name__}.") from error
    # Files without durations are shown at 10 frames per second by every browser.
    return frames, 1000 * count / milliseconds if milliseconds else 10.0


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
    _check_pixels(*_webp_size(data))  # opening a WebP file already allocates its canvas
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"The image has more than the {MAX_PIXELS} pixels allowed.") from error
    except Exception as error:  # as above
        raise MediaError(f"{_NOT_AN_IMAGE}.") from error
    _check_pixels(image.width, image.height)
    return image


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"The image has {width} x {height} pixels, {MAX_PIXELS} in all are allowed."
        )


def _check_video(count: int, width: int, height: int, pixels: int) -> None:
    if pixels > MAX_VIDEO_PIXELS:
        raise MediaError(
            f"The video has {count} frames of {width} x {height} pixels, "
            f"{MAX_VIDEO_PIXELS} pixels in all are allowed."
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header of a WebP file, (0, 0) for any other."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0, 0
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


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
