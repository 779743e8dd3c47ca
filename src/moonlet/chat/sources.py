"""Where media come from: data URLs always, uploaded files and web addresses where the server allows it."""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moonlet.chat.deadline import Deadline
from moonlet.chat.fetch import INTERNET, Network, fetch
from moonlet.chat.formats import check_name
from moonlet.errors import MediaError

FETCH_SECONDS = 30.0

_FILE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True)
class MediaAccess:
    """What a server reads besides data URLs; nothing unless it is told to.

    fetch_urls: http and https addresses, those on `network`'s terms (fetch.py). resolve_file: the path of the
    uploaded file with this id, for `ms://ID`; it raises LookupError or MediaError when there is none.
    """

    fetch_urls: bool = False
    resolve_file: Callable[[str], Path] | None = None
    network: Network = INTERNET


DATA_URLS_ONLY = MediaAccess()


def read_source(
    url: str, what: str, most_bytes: int, access: MediaAccess, deadline: Deadline
) -> bytes:
    """The bytes behind a URL, at most `most_bytes`; `what` ("image", "video") names it in errors.

    Raises MediaError for what cannot or may not be read.
    """
    scheme = url[:40].partition(":")[0].lower()
    if scheme == "data":
        return _decode_data_url(url, what, most_bytes)
    if scheme == "ms":
        return _read_file(url, what, most_bytes, access)
    if scheme not in ("http", "https"):
        raise MediaError(
            f"The {what} URL {url[:40]!r} is not supported; send a data URL of the form "
            f"{_example(what)} instead."
        )
    if not access.fetch_urls:
        raise MediaError(
            f"This server does not fetch URLs; send the {what} as a base64 data URL, or have the server "
            "started with --fetch-urls."
        )
    return fetch(url, what, most_bytes, access.network, deadline.within(FETCH_SECONDS))


def too_large(what: str, size: int | str, most_bytes: int) -> MediaError:
    """The error for a file of `size` bytes."""
    return MediaError(f"The {what} has {size} bytes, {most_bytes} are allowed.")


def _example(what: str) -> str:
    return f"data:{'video/mp4' if what == 'video' else 'image/png'};base64,..."


def _decode_data_url(url: str, what: str, most_bytes: int) -> bytes:
    # Only the beginning is searched: without a comma the whole of it could be hundreds of megabytes.
    header, comma, _ = url[:300].partition(",")
    name, *parameters = header[len("data:") :].split(";")
    if not comma or [text.lower() for text in parameters[-1:]] != ["base64"]:
        raise MediaError(f"The data URL is not of the form {_example(what)}.")
    payload = url[len(header) + 1 :]
    if len(payload) * 3 // 4 > most_bytes + 2:
        raise too_large(what, f"about {len(payload) * 3 // 4}", most_bytes)
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters outside ASCII
        raise MediaError("The data URL does not hold valid base64.") from error
    if len(data) > most_bytes:
        raise too_large(what, len(data), most_bytes)
    check_name(name, data)
    return data


def _read_file(url: str, what: str, most_bytes: int, access: MediaAccess) -> bytes:
    if access.resolve_file is None:
        raise MediaError(
            f"This server keeps no uploaded files, so it cannot read {url[:40]!r}; send the {what} as a "
            "base64 data URL, or have the server started with a file store."
        )
    file_id = url[len("ms://") :]
    missing = f"There is no uploaded file {url[:60]!r}; upload it to /v1/files first."
    if not url.lower().startswith("ms://") or not _FILE_ID.fullmatch(file_id):
        raise MediaError(missing)
    try:
        with access.resolve_file(file_id).open("rb") as file:
            data = file.read(most_bytes + 1)
    except (LookupError, OSError) as error:
        raise MediaError(missing) from error
    if len(data) > most_bytes:
        raise too_large(what, f"more than {most_bytes}", most_bytes)
    return data
