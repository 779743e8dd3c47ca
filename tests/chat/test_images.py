"""Pictures from requests: what is read, and one clear error for everything else."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from moonlet.chat import images
from moonlet.chat.images import open_animation, open_picture
from moonlet.errors import MediaError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def load_image(data: bytes) -> Image.Image:
    return open_picture(data).load()


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG by hand, so that its header can lie."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PICTURE = Image.new("RGB", (4, 3), RED)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_formats(kind: str) -> None:
    data = encoded(PICTURE, kind)
    image = load_image(data)
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert np.abs(np.asarray(image).astype(int)[0, 0] - RED).max() <= 3


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 128))
    assert np.asarray(load_image(encoded(image))).tolist() == [[[255, 255, 255], [255, 127, 127]]]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([10, 20, 30])
    assert load_image(encoded(palette)).getpixel((0, 0)) == (10, 20, 30)
    assert load_image(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encoded(Image.new("LA", (1, 1), (9, 0)))).getpixel((0, 0)) == (255,) * 3


def test_orientation_is_applied() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown rotated by 90 degrees clockwise
    turned = load_image(encoded(image, exif=exif))
    assert turned.size == (1, 2)
    assert [turned.getpixel((0, y)) for y in range(2)] == [RED, BLUE]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    row = b"\0" + struct.pack(">3H", 0, 0x8000, 0xFFFF)
    image = load_image(png(3, 1, depth=16, pixels=row))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "LA", "RGBA"])
def test_modes(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert load_image(encoded(Image.new(mode, (3, 2)), kind)).mode == "RGB"


def test_the_first_frame_of_a_gif() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=500)
    assert load_image(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_a_video_decodes_the_frames_asked_for(kind: str) -> None:
    shades = [0, 50, 100, 150, 200]
    frames = [Image.new("RGB", (5, 7), (shade,) * 3) for shade in shades]
    times = [100, 200, 300, 400, 500]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=times)
    video = open_animation(data)
    assert (video.width, video.height, video.count) == (5, 7, 5)
    assert video.fps == pytest.approx(5 / 1.5)
    chosen = list(video.frames([1, 4]))
    assert [np.asarray(frame)[0, 0, 0] for frame in chosen] == pytest.approx([50, 200], abs=3)
    assert all(frame.mode == "RGB" for frame in chosen)


def test_a_still_is_a_video_of_one_frame() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        video = open_animation(encoded(PICTURE, kind))
        assert (video.count, video.fps) == (1, 10.0)
        assert len(list(video.frames([0]))) == 1


def vp8x(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + bytes(10)


def vp8l(width: int, height: int) -> bytes:
    bits = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return b"RIFF\x20\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + bits + bytes(10)


def vp8(width: int, height: int) -> bytes:
    return b"RIFF\x20\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)


GOOD = encoded(PICTURE)


def gif(screen: int, frame: int) -> bytes:
    """A GIF without pixels; its one frame may be larger than its screen."""
    header = b"GIF89a" + struct.pack("<HH", screen, screen) + b"\0\0\0"
    return header + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x01\x44\0;"


HOSTILE = {
    "png bomb": (png(30_000, 30_000), "more than the 67108864 pixels"),
    "png bomb that Pillow would only warn about": (png(10_000, 10_000), "pixels"),
    "png one row": (png(2**31 - 1, 1), "pixels"),
    "gif bomb": (gif(60_000, 60_000), "pixels"),
    "gif frame beyond its screen": (gif(10, 9_000), "pixels"),
    "webp canvas": (vp8x(2**24, 2**7 + 1), "16777216 x 129 pixels"),
    "webp lossless": (vp8l(16_384, 16_384), "16384 x 16384 pixels"),
    "webp lossy": (vp8(16_383, 16_383), "16383 x 16383 pixels"),
    "truncated png": (encoded(Image.effect_noise((64, 64), 9))[:1000], "not a readable"),
    "truncated jpeg": (encoded(Image.effect_noise((64, 64), 9), "JPEG")[:700], "not a readable"),
    "truncated gif": (encoded(Image.effect_noise((64, 64), 9), "GIF")[:1500], "not a readable"),
    "truncated webp": (encoded(Image.effect_noise((64, 64), 9), "WEBP")[:300], "not a readable"),
    "no pixels at all": (png(3, 3), "not a readable"),
    "header only": (GOOD[:20], "not a readable"),
    "empty": (b"", "not a readable"),
    "text": (b"hello", "not a readable"),
    "bmp": (encoded(PICTURE, "BMP"), "not a readable PNG, JPEG, WebP or GIF"),
    "tiff": (encoded(PICTURE, "TIFF"), "not a readable"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, message = HOSTILE[name]
    if "pixels" in message:  # must be refused from the header alone
        monkeypatch.setattr(images, "_to_rgb", lambda image: pytest.fail("it was decoded"))
    for load in (load_image, lambda source: list(open_animation(source).frames([0]))):
        with pytest.raises(MediaError, match=message):
            load(source)


def test_too_many_pixels_in_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("L", (10, 10), shade) for shade in range(5)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(images, "MAX_VIDEO_PIXELS", 499)
    with pytest.raises(MediaError, match="5 frames of 10 x 10"):
        open_animation(data)


@given(
    st.binary(max_size=60),
    st.sampled_from([GOOD, encoded(PICTURE, "GIF"), vp8x(9, 9)]),
    st.integers(0, 60),
)
def test_damaged_files(junk: bytes, good: bytes, at: int) -> None:
    for source in (junk, good[:at] + junk + good[at + len(junk) :]):
        try:
            image = load_image(source)
        except MediaError:
            continue
        assert image.mode == "RGB"
