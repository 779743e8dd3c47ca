"""Pages of the latent cache on disk, so that prompts survive evictions and restarts.

A file for each page, named by the digest of its tokens and of all before them:

    checksum 32 bytes (SHA-256 of the rest), rows [layers, page_size, latent_size]

in a folder named by the fingerprint of the model, so that another model, or the same one computed in
another way, never reads them. Written beside and renamed; read back only when the checksum agrees. The
least recently used go when the folder grows over its limit.
"""

import logging
import os
import queue
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_CHECKSUM = 32
_WAITING = (
    64  # pages that may wait to be written; while the disk is slower than that, others are not kept
)


class DiskTier:
    """The folder `root`/`fingerprint`, of at most `max_bytes`. Only one process should write to it at a time;
    what two write is the same, but neither counts the other's bytes."""

    def __init__(self, root: Path, fingerprint: str, max_bytes: int) -> None:
        self.folder = root / fingerprint
        self.max_bytes = max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.partial"):
            left.unlink(missing_ok=True)  # of a process that was killed
        files = sorted(self.folder.glob("*.page"), key=lambda path: path.stat().st_mtime)
        self._sizes = {path.stem: path.stat().st_size for path in files}  # oldest first
        self._lock = threading.Lock()
        self._jobs: queue.Queue[tuple[str, bytes] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="moonlet-disk", daemon=True)
        self._thread.start()

    def __contains__(self, digest: bytes) -> bool:
        return digest.hex() in self._sizes

    @property
    def bytes_used(self) -> int:
        with self._lock:
            return sum(self._sizes.values())

    def put(self, digest: bytes, rows: NDArray[np.uint8]) -> None:
        """Keeps a copy of the page; it is written later, or not at all while too many wait."""
        if digest in self or self._jobs.full():
            return
        self._jobs.put_nowait((digest.hex(), rows.tobytes()))

    def get(self, digest: bytes, size: int) -> NDArray[np.uint8] | None:
        """The page's `size` bytes, or None. What is spoiled is deleted."""
        name = digest.hex()
        path = self._path(name)
        try:
            if path.stat().st_size != _CHECKSUM + size:
                raise ValueError("it has another length")
            data = path.read_bytes()
            if sha256(data[_CHECKSUM:]).digest() != data[:_CHECKSUM]:
                raise ValueError("its checksum does not agree")
            os.utime(path)
        except (OSError, ValueError) as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning("the cached page %s was not used: %s", path, error)
            self._forget(name)
            return None
        with self._lock:
            self._sizes[name] = self._sizes.pop(name, len(data))  # the youngest now
        return np.frombuffer(data, np.uint8, offset=_CHECKSUM)

    def forget(self, digest: bytes) -> None:
        """The page is deleted if it is there, and written anew when it is put again."""
        self._forget(digest.hex())

    def close(self) -> None:
        """Writes what waits."""
        self._jobs.put(None)
        self._thread.join()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.page"

    def _write_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._write(*job)
            except OSError as error:  # full or read-only: the cache in memory goes on
                logger.warning("a page was not written to %s: %s", self.folder, error)

    def _write(self, name: str, rows: bytes) -> None:
        if name in self._sizes:
            return
        partial = self.folder / f"{name}.{os.getpid()}.partial"
        try:
            partial.write_bytes(sha256(rows).digest() + rows)
            partial.replace(self._path(name))
        finally:
            partial.unlink(missing_ok=True)
        with self._lock:
            self._sizes[name] = _CHECKSUM + len(rows)
            used = sum(self._sizes.values())
            too_much = []
            for old, size in self._sizes.items():
                if used <= self.max_bytes:
                    break
                used -= size
                too_much.append(old)
        for old in too_much:
            self._forget(old)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._sizes.pop(name, None)
        self._path(name).unlink(missing_ok=True)
