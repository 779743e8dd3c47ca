"""The images and videos of a conversation: all of them measured first, and only then decoded.

A few bytes can unfold to a huge picture, so the limits are on the whole conversation: how many
files, how many pixels to decode, and how many positions of the model's context they take.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from moonlet.chat.images import Picture, Video, open_picture, open_video
from moonlet.chat.media import (
    MediaItem,
    MediaLimits,
    image_item,
    image_tokens,
    video_items,
    video_tokens,
)
from moonlet.chat.messages import ImagePart, Message, TextPart, VideoPart
from moonlet.errors import MediaError

MAX_FILES = 256
MAX_WORK = 2**29  # pixels, 8 images of the largest size

# An image, or the chunks of a video with their timestamps.
Opened = MediaItem | list[tuple[str, MediaItem]]


def open_media(messages: Sequence[Message], limits: MediaLimits | None) -> list[Opened]:
    """Every image and video in the order of the conversation. `limits` are None without vision.

    Raises MediaError, with `param`, for what cannot be used or is too much.
    """
    parts = [
        (f"messages[{index}].content[{number}]", part)
        for index, message in enumerate(messages)
        for number, part in enumerate(message.parts)
        if not isinstance(part, TextPart)
    ]
    if len(parts) > MAX_FILES:
        raise MediaError(
            f"The conversation has {len(parts)} images and videos, {MAX_FILES} are allowed.",
            parts[MAX_FILES][0],
        )
    files, tokens, work = [], 0, 0
    for where, part in parts:
        with _located(where):
            if limits is None:
                raise MediaError(f"This model does not read {_kind(part)}; send text only.")
            file = open_picture(part.url) if isinstance(part, ImagePart) else open_video(part.url)
            tokens, work = tokens + _tokens(file, limits), work + file.work
            _check_total(tokens, work, limits)
            files.append((where, file, limits))
    return [_decode(*file) for file in files]


def _kind(part: ImagePart | VideoPart) -> str:
    return "images" if isinstance(part, ImagePart) else "video"


def _tokens(file: Picture | Video, limits: MediaLimits) -> int:
    if isinstance(file, Picture):
        return image_tokens(file.width, file.height, limits)
    return video_tokens(file, limits)


def _check_total(tokens: int, work: int, limits: MediaLimits) -> None:
    if tokens > limits.max_tokens:
        raise MediaError(
            f"The images and videos up to this one take {tokens} tokens, but this model's context "
            f"is {limits.max_tokens}; send fewer or smaller ones."
        )
    if work > MAX_WORK:
        raise MediaError(
            f"The images and videos up to this one have {work} pixels to decode, {MAX_WORK} are "
            "allowed; send fewer or smaller ones."
        )


def _decode(where: str, file: Picture | Video, limits: MediaLimits) -> Opened:
    with _located(where):
        if isinstance(file, Picture):
            return image_item(file.load(), limits)
        return video_items(file, limits)


@contextmanager
def _located(where: str) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        raise MediaError(error.message, where) from error
