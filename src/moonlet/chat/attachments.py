"""The images and videos of a conversation: all of them measured first, and only then decoded.

A few bytes can unfold to a huge picture, so the limits are on the whole conversation: how many files, how
many bytes, how many pixels to decode, how many positions of the model's context, and how much time.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from moonlet.chat.deadline import Deadline
from moonlet.chat.formats import PICTURES, family_of
from moonlet.chat.images import Animation, Picture, open_animation, open_picture
from moonlet.chat.media import (
    MediaLimits,
    Opened,
    image_item,
    image_tokens,
    items_of,
    sampled_frames,
    video_items,
    video_tokens,
)
from moonlet.chat.media_cache import Key, MediaCache
from moonlet.chat.messages import ImagePart, Message, TextPart
from moonlet.chat.sources import DATA_URLS_ONLY, MediaAccess, read_source
from moonlet.chat.video import Recording, open_recording
from moonlet.errors import MediaError

MAX_FILES = 256
MAX_IMAGE_BYTES = 50 * 2**20
MAX_VIDEO_BYTES = 100 * 2**20  # what the Kimi API takes as a file
MAX_BYTES = 256 * 2**20  # all files together
MAX_WORK = 2**29  # pixels, 8 images of the largest size
MAX_SECONDS = 120.0

_File = Picture | Animation | Recording


def open_media(
    messages: Sequence[Message],
    limits: MediaLimits | None,
    access: MediaAccess = DATA_URLS_ONLY,
    cache: MediaCache | None = None,
    stop: threading.Event | None = None,
) -> list[Opened]:
    """Every image and video in the order of the conversation. `limits` are None without vision.

    `stop`, once set by another thread, ends the work early. Raises MediaError, with `param`, for what cannot
    be used or is too much.
    """
    parts = [
        (f"messages[{index}].content[{number}]", part)
        for index, message in enumerate(messages)
        for number, part in enumerate(message.parts)
        if not isinstance(part, TextPart)
    ]
    if not parts:
        return []
    if len(parts) > MAX_FILES:
        raise MediaError(
            f"The conversation has {len(parts)} images and videos, {MAX_FILES} are allowed.",
            parts[MAX_FILES][0],
        )
    if limits is None:
        where, part = parts[0]
        kind = "images" if isinstance(part, ImagePart) else "video"
        raise MediaError(f"This model does not read {kind}; send text only.", where)
    reader = _Reader(limits, access, cache or MediaCache(0), Deadline(MAX_SECONDS, stop))
    measured, opened = [], []
    for where, part in parts:
        with _located(where):
            what = "image" if isinstance(part, ImagePart) else "video"
            measured.append((where, *reader.measure(what, part.url)))
    for where, key, file in measured:
        with _located(where):
            opened.append(reader.decode(key, file))
    return opened


class _Reader:
    """Reads the media of one conversation and adds up what they take."""

    def __init__(
        self, limits: MediaLimits, access: MediaAccess, cache: MediaCache, deadline: Deadline
    ) -> None:
        self._limits, self._access, self._cache = limits, access, cache
        self._deadline = deadline
        self._bytes = self._tokens = self._work = 0

    def measure(self, what: str, url: str) -> tuple[Key, _File | Opened]:
        """A file within all limits, opened but not decoded, unless the cache has it."""
        most = MAX_IMAGE_BYTES if what == "image" else MAX_VIDEO_BYTES
        data = read_source(url, what, most, self._access, self._deadline)
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            raise MediaError(
                f"The images and videos up to this one have {self._bytes} bytes, {MAX_BYTES} are allowed "
                "in one conversation."
            )
        key = what, hashlib.sha256(data).digest()
        file = self._cache.get(key) or _open(what, data, self._deadline)
        self._add(file)
        return key, file

    def decode(self, key: Key, file: _File | Opened) -> Opened:
        """What the model reads of a measured file."""
        self._deadline.left()
        if not isinstance(file, _File):
            return file
        opened = self._cache.get(key)  # the same file may have come before it
        if opened is None:
            if isinstance(file, Picture):
                opened = image_item(file.load(), self._limits)
            else:
                opened = video_items(file, self._limits)
            self._cache.put(key, opened)
        return opened

    def _add(self, file: _File | Opened) -> None:
        match file:
            case Picture():
                self._tokens += image_tokens(file.width, file.height, self._limits)
                self._work += file.work
            case Animation():
                self._tokens += video_tokens(file, self._limits)
                self._work += file.work
            case Recording():  # its other frames are the work of a process that has limits of its own
                self._tokens += video_tokens(file, self._limits)
                shown = len(sampled_frames(file.count, file.fps, self._limits))
                self._work += shown * file.width * file.height
            case _:
                self._tokens += sum(item.num_tokens for item in items_of(file))
        if self._tokens > self._limits.max_tokens:
            raise MediaError(
                f"The images and videos up to this one take {self._tokens} tokens, but this model's "
                f"context is {self._limits.max_tokens}; send fewer or smaller ones."
            )
        if self._work > MAX_WORK:
            raise MediaError(
                f"The images and videos up to this one have {self._work} pixels to decode, {MAX_WORK} "
                "are allowed; send fewer or smaller ones."
            )


def _open(what: str, data: bytes, deadline: Deadline) -> _File:
    family = family_of(data)
    if what == "image":
        if family not in (None, *PICTURES):
            raise MediaError(f"The image is a video ({family}); send it as a video_url part.")
        return open_picture(data)
    if family in PICTURES:
        return open_animation(data)
    if family is None:
        raise MediaError(
            "The video is not in a format that moonlet reads (MP4, MOV, 3GP, WebM, AVI, MPEG, FLV, WMV, "
            "GIF or WebP)."
        )
    return open_recording(data, deadline)


@contextmanager
def _located(where: str) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        raise MediaError(error.message, where) from error
