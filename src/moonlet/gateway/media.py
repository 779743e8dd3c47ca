"""Images and videos on their way to an endpoint: all of them become data URLs.

Data URLs go as they are; the endpoint judges what is in them. What was uploaded here is known to nobody
there, so it is read. Web addresses are fetched here, on the same terms as for a model of this process
(`chat/sources.py`): switched on, or refused. Passed on as they are they would have the endpoint, which may
stand in a private network, ask addresses of the client's choice; and Kimi's own API takes none.
"""

import asyncio
import base64
import threading
from collections.abc import Sequence
from dataclasses import replace

from moonlet.chat.attachments import (
    MAX_BYTES,
    MAX_FILES,
    MAX_IMAGE_BYTES,
    MAX_SECONDS,
    MAX_VIDEO_BYTES,
)
from moonlet.chat.deadline import Deadline
from moonlet.chat.formats import FAMILIES, family_of
from moonlet.chat.messages import ImagePart, Message, Part, TextPart
from moonlet.chat.sources import MediaAccess, read_source
from moonlet.errors import MediaError


async def inlined(messages: list[Message], access: MediaAccess) -> list[Message]:
    """The conversation with data URLs alone. Raises MediaError, with `param`, for what cannot be read."""
    if all(_is_inline(part) for message in messages for part in message.parts):
        return messages
    stop = threading.Event()
    try:
        return await asyncio.to_thread(_inlined, messages, access, Deadline(MAX_SECONDS, stop))
    finally:
        stop.set()


def _inlined(messages: Sequence[Message], access: MediaAccess, deadline: Deadline) -> list[Message]:
    files = size = 0
    changed = []
    for index, message in enumerate(messages):
        parts = list(message.parts)
        for number, part in enumerate(parts):
            if _is_inline(part):
                continue
            where = f"messages[{index}].content[{number}]"
            try:
                parts[number], read = _read(part, access, deadline)
                files, size = files + 1, size + read
                if files > MAX_FILES or size > MAX_BYTES:
                    raise MediaError(
                        f"The conversation's images and videos up to this one are {files} with {size} "
                        f"bytes; {MAX_FILES} with {MAX_BYTES} are allowed."
                    )
            except MediaError as error:
                raise MediaError(error.message, where) from error
        changed.append(replace(message, parts=tuple(parts)))
    return changed


def _read(part: Part, access: MediaAccess, deadline: Deadline) -> tuple[Part, int]:
    assert not isinstance(part, TextPart)
    what, most = (
        ("image", MAX_IMAGE_BYTES) if isinstance(part, ImagePart) else ("video", MAX_VIDEO_BYTES)
    )
    data = read_source(part.url, what, most, access, deadline)
    family = family_of(data)
    if family is None:
        raise MediaError(f"The {what} is in no format that is known here.")
    url = f"data:{FAMILIES[family][0]};base64,{base64.b64encode(data).decode()}"
    return replace(part, url=url), len(data)


def _is_inline(part: Part) -> bool:
    return isinstance(part, TextPart) or part.url[:5].lower() == "data:"
