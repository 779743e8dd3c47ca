"""What picture files say about themselves, read in bounded time without decoding a pixel.

GIF   screen, then blocks: `!` extension or `,` frame, each with sub-blocks of up to 255 bytes
WebP  RIFF chunks; an animation has one ANMF chunk for each frame
JPEG  segments; a progressive file has one SOS marker for each pass over the picture
"""

import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from moonlet.errors import MediaError

MAX_FRAMES = 4096
MAX_SCANS = 100  # encoders write about ten; every one costs a pass over all pixels

_MAX_BLOCKS = 2**19  # 50 MB in GIF's usual sub-blocks of 255 bytes are 200,000
_EXTENSION, _FRAME = 0x21, 0x2C
_SOS, _EOI = 0xDA, 0xD9
# Markers with a body, and the end. Zero follows a byte 0xFF of pixel data; the others stand alone.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header of a WebP file, (0, 0) for any other."""
    if not _is_webp(data) or len(data) < 30:
        return 0, 0
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def frame_times(data: bytes) -> list[int]:
    """Milliseconds that each frame of a GIF or WebP is shown; [0] for other files and stills.

    Raises MediaError for more than MAX_FRAMES frames, IndexError for a GIF that breaks off.
    """
    times: list[int] = []
    for time in _gif_times(data) if data[:4] == b"GIF8" else _webp_times(data):
        times.append(time)
        if len(times) > MAX_FRAMES:
            raise MediaError(f"The video has more than the {MAX_FRAMES} frames allowed; cut it.")
    return times or [0]


def jpeg_scans(data: bytes) -> int:
    """How many times a JPEG file goes over its pixels, 0 for other files.

    Raises MediaError above MAX_SCANS.
    """
    if data[:2] != b"\xff\xd8":
        return 0
    scans = sum(1 for kind, _ in _bounded(_jpeg_markers(data)) if kind == _SOS)
    if scans > MAX_SCANS:
        raise MediaError(
            f"The JPEG file has {scans} scans, {MAX_SCANS} are allowed; save it as a baseline JPEG."
        )
    return scans


def _gif_times(data: bytes) -> Iterator[int]:
    time = 0
    for kind, at in _bounded(_gif_blocks(data)):
        if kind == _EXTENSION and data[at + 1] == 0xF9:  # it describes the next frame
            time = 10 * int.from_bytes(data[at + 4 : at + 6], "little")
        elif kind == _FRAME:
            yield time
            time = 0


def _gif_blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """Kind and offset of every block; of kind 0 are sub-blocks, of others stray bytes."""
    at = 13 + _palette(data[10])
    while data[at : at + 1] not in (b"", b";"):
        kind = data[at]
        yield kind, at
        if kind not in (_EXTENSION, _FRAME):
            at += 1
            continue
        at += 2 if kind == _EXTENSION else 11 + _palette(data[at + 9])
        while data[at]:
            yield 0, at
            at += 1 + data[at]
        at += 1


def _palette(flags: int) -> int:
    return 3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0


def _webp_times(data: bytes) -> Iterator[int]:
    for kind, at in _bounded(_webp_chunks(data) if _is_webp(data) else ()):
        if kind == b"ANMF":
            yield int.from_bytes(data[at + 20 : at + 23], "little")


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    at = 12
    while at + 8 <= len(data):
        yield data[at : at + 4], at
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    at = 2
    while match := _MARKER.search(data, at):
        at = match.end()
        kind = data[at - 1]
        if kind == _EOI:  # phones append films, whose bytes mean nothing here
            return
        yield kind, at
        at += int.from_bytes(data[at : at + 2], "big")


def _bounded(blocks: Iterable[tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
    for number, block in enumerate(blocks):
        if number == _MAX_BLOCKS:
            raise MediaError(f"The image is cut into more than {_MAX_BLOCKS} blocks.")
        yield block
