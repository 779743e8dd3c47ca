"""Frames and scans are counted without decoding, and files in too many pieces are refused."""

import struct

import pytest
from PIL import Image

from moonlet.chat import headers, images
from moonlet.chat.images import open_animation, open_picture
from moonlet.errors import MediaError
from tests.chat.test_images import PICTURE, encoded, load_image, vp8x


def small_gif(frames: int, size: int = 1, first: int = 1, delay: int = 65535) -> bytes:
    """A GIF of 23 bytes for each frame after the first, all of them shown for minutes."""
    image = b"\x02\x02\x44\x01\0"
    control = b"!\xf9\x04\0" + struct.pack("<H", delay) + b"\0\0"
    sizes = [first, *[size] * (frames - 1)]
    bodies = (control + b"," + struct.pack("<HHHHB", 0, 0, s, s, 0) + image for s in sizes)
    table = b"\0\0\0\xff\xff\xff"
    return (
        b"GIF89a" + struct.pack("<HH", first, first) + b"\x80\0\0" + table + b"".join(bodies) + b";"
    )


def test_the_number_of_frames_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_animation(small_gif(4096)).count == 4096
    monkeypatch.setattr(images, "_open", lambda data: pytest.fail("it was opened"))
    for frames in (4097, 100_000):
        with pytest.raises(MediaError, match="4096 frames allowed"):
            open_animation(small_gif(frames))
    webp = vp8x(1, 1)[:30] + (b"ANMF\x10\0\0\0" + bytes(16)) * 4097
    with pytest.raises(MediaError, match="4096 frames allowed"):
        open_animation(webp)


def test_a_frame_cannot_enlarge_the_video() -> None:
    video = open_animation(small_gif(3, size=9))
    with pytest.raises(MediaError, match="same size"):
        list(video.frames([0, 2]))


@pytest.mark.parametrize(
    "data",
    [
        small_gif(1)[:-1] + b"!\xfe" + b"\x01x" * 2**20 + b"\0;",
        small_gif(1)[:-1] + b"x" * 2**20 + b";",
        vp8x(1, 1)[:30] + b"junk\0\0\0\0" * 2**20,
        b"\xff\xd8\xff" + b"\xfe\0\x02\xff" * 2**20,
    ],
    ids=["sub-blocks", "stray bytes", "chunks", "segments"],
)
def test_files_in_too_many_pieces(data: bytes) -> None:
    with pytest.raises(MediaError, match="more than 524288 blocks"):
        open_animation(data)


def progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `scans`."""
    data = encoded(Image.effect_noise((16, 16), 50), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    extra = scans - data.count(b"\xff\xda")
    return data[:end] + data[last:end] * extra + data[end:]


def test_scans_of_a_jpeg_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert headers.jpeg_scans(progressive(6)) == 6
    assert headers.jpeg_scans(encoded(PICTURE, "JPEG")) == 1
    assert [open_picture(progressive(n)).work for n in (6, 100)] == [256, 7 * 256]
    assert load_image(progressive(100)).size == (16, 16)
    monkeypatch.setattr(images, "_open", lambda data: pytest.fail("it was opened"))
    for load in (open_picture, open_animation):
        with pytest.raises(MediaError, match="101 scans, 100 are allowed"):
            load(progressive(101))


def test_only_real_scans_count() -> None:
    data = encoded(PICTURE, "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 1000) + b"\xff\xda" * 500
    film = b"\0\2" + b"\xff\xda\0\2" * 500  # as phones append it
    assert headers.jpeg_scans(data[:2] + comment + data[2:] + film) == 1


def test_a_frame_without_a_time_takes_none() -> None:
    first = small_gif(1, delay=100)[:-1]
    plain = first[first.index(b",") :]
    assert headers.frame_times(first + plain + b";") == [1000, 0]
