"""Uploaded files in one folder, within limits; after a restart with the same folder they are still there.

    file-ID.data     the bytes
    file-ID.json     what is known of them; a file exists from the moment that this one does
    .file-ID.partial either of them before it is whole

Only files with such names are ever touched. An id cannot be guessed, and no name that a client sends
becomes a name on disk.
"""

import codecs
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moonlet.errors import MediaError
from moonlet.server.errors import ApiError

logger = logging.getLogger(__name__)

PURPOSES = ("file-extract", "image", "video")
MEDIA_PURPOSES = ("image", "video")
MAX_NAME = 200  # characters of a file name

_OURS = re.compile(r"(file-[0-9a-f]{32})\.(?:data|json)|\.file-[0-9a-f]{32}\.partial")
_MAX_RECORD_BYTES = 8192
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class FileLimits:
    """How much is kept: files, bytes of each, bytes of all. The defaults are those of the Kimi API."""

    count: int = 1000
    bytes_each: int = 100 * 2**20
    bytes_total: int = 10 * 2**30


@dataclass(frozen=True)
class StoredFile:
    """What is known of one file. `created_at` is in Unix seconds."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str


class FileStore:
    """The files of one server. The event loop changes it; `resolve` may be called from any thread."""

    def __init__(self, folder: Path | None = None, limits: FileLimits = FileLimits()) -> None:
        """`folder` is made if need be; without one the files are gone with the process. Raises OSError."""
        self.limits = limits
        self.files: dict[str, StoredFile] = {}
        self.incoming = 0  # bytes of unfinished uploads
        self.uploads = 0
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._load(folder)

    @property
    def folder(self) -> Path:
        """Where the files are; a temporary folder is made when it is first needed."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="moonlet-files-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    @property
    def bytes_total(self) -> int:
        return sum(file.bytes for file in self.files.values()) + self.incoming

    def get(self, file_id: str) -> StoredFile:
        """Raises ApiError (404)."""
        file = self.files.get(file_id)
        if file is None:
            raise ApiError(
                f"there is no file {file_id[:80]!r}",
                "file_id",
                status=404,
                kind="resource_not_found_error",
            )
        return file

    def path(self, file: StoredFile) -> Path:
        return self.folder / f"{file.id}.data"

    def delete(self, file_id: str) -> None:
        """Raises ApiError (404)."""
        file = self.get(file_id)
        (self.folder / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file).unlink(missing_ok=True)
        del self.files[file_id]

    def resolve(self, file_id: str) -> Path:
        """The image or video behind `ms://file_id`.

        Raises LookupError when there is no such file, MediaError when it is for something else.
        """
        file = self.files[file_id]
        if file.purpose not in MEDIA_PURPOSES:
            raise MediaError(
                f"The file {file_id} was uploaded for {file.purpose}; an image or a video must be "
                "uploaded with the purpose image or video."
            )
        return self.path(file)

    def upload(self) -> "Upload":
        """A new file, still empty. Raises ApiError when there are too many."""
        if len(self.files) + self.uploads >= self.limits.count:
            raise ApiError(
                f"there are {self.limits.count} files, and more are not kept; delete some first",
                "file",
            )
        return Upload(self)

    def _load(self, folder: Path) -> None:
        """Finds what an earlier server kept, and clears away what it did not finish."""
        for path in sorted(folder.iterdir()):
            match = _OURS.fullmatch(path.name)
            if match is None:
                continue
            if path.suffix == ".json" and (file := _read_record(path, match[1])):
                self.files[file.id] = file
        for path in sorted(folder.iterdir()):
            match = _OURS.fullmatch(path.name)
            if match and match[1] not in self.files:
                logger.warning("removing %s, which belongs to no whole file", path)
                path.unlink(missing_ok=True)


class Upload:
    """One file while it arrives. `close` throws it away, unless it was committed."""

    def __init__(self, store: FileStore) -> None:
        self.id = f"file-{secrets.token_hex(16)}"
        self.size = 0
        self._store = store
        self._partial = store.folder / f".{self.id}.partial"
        self._file: BinaryIO | None = self._partial.open("xb")
        store.uploads += 1

    def write(self, data: bytes) -> None:
        """Raises ApiError when the file, or all files together, become too large."""
        assert self._file is not None, "the upload is closed"
        limits = self._store.limits
        if self.size + len(data) > limits.bytes_each:
            raise ApiError(f"the file is larger than the {limits.bytes_each} bytes allowed", "file")
        if self._store.bytes_total + len(data) > limits.bytes_total:
            raise ApiError(
                f"all files together would be larger than {limits.bytes_total} bytes; delete some first",
                "file",
            )
        self._file.write(data)
        self.size += len(data)
        self._store.incoming += len(data)

    def check(self, purpose: str) -> None:
        """Finishes writing and looks at the bytes; slow for a large file. Raises ApiError."""
        assert self._file is not None, "the upload is closed"
        if not self.size:
            raise ApiError("the file is empty", "file")
        self._file.flush()
        os.fsync(self._file.fileno())
        if purpose == "file-extract" and not _is_text(self._partial):
            raise ApiError(
                "only text can be extracted here (plain text, JSON, CSV, Markdown, in UTF-8), and this file "
                "is not; convert it first, or upload it as image or video",
                "file",
            )

    def commit(self, filename: str, purpose: str) -> StoredFile:
        """The stored file, once `check` has passed."""
        file = StoredFile(self.id, self.size, int(time.time()), clean_name(filename), purpose)
        self._partial.replace(self._store.path(file))
        _write_record(self._store.folder, file)
        self.close()
        self._store.files[file.id] = file
        return file

    def close(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        self._partial.unlink(missing_ok=True)
        self._store.uploads -= 1
        self._store.incoming -= self.size


def clean_name(name: str) -> str:
    """The last part of a path, in visible characters; what it is called in lists and downloads."""
    last = re.split(r"[/\\]", name)[-1]
    visible = "".join(c if c.isprintable() else "_" for c in last).strip(". ")
    return visible[:MAX_NAME] or "file"


def _is_text(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        if file.read(5) == b"%PDF-":
            return False
        file.seek(0)
        try:
            while block := file.read(_BLOCK_BYTES):
                if "\0" in decoder.decode(block):
                    return False
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _write_record(folder: Path, file: StoredFile) -> None:
    partial = folder / f".file-{secrets.token_hex(16)}.partial"
    try:
        with partial.open("x", encoding="utf-8") as record:
            json.dump(asdict(file), record)
            record.flush()
            os.fsync(record.fileno())
        partial.replace(folder / f"{file.id}.json")
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _read_record(path: Path, file_id: str) -> StoredFile | None:
    """None, and a word in the log, for a record that is damaged or whose bytes are not there."""
    try:
        with path.open("rb") as record:
            known: Any = json.loads(record.read(_MAX_RECORD_BYTES))
        file = StoredFile(**known)
        size = path.with_suffix(".data").stat().st_size
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    whole = type(file.created_at) is int and isinstance(file.filename, str)
    same = (file.id, file.bytes) == (file_id, size) and file.purpose in PURPOSES
    return file if whole and same else None
