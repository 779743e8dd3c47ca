"""How fast the drive reads what the system does not hold in memory."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

DISK_BYTES = 1 << 30
DISK_S = 8.0  # at most, for writing and for reading
_CHUNK = 8 << 20


def disk_rate(folder: Path) -> float | None:
    """Bytes per second of reading what the system does not hold in memory; None where that cannot be had.

    Writes 1 GiB, or less where little is free, which goes away whatever happens.
    """
    with suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        status = os.fstatvfs(file.fileno())
        size = min(DISK_BYTES, status.f_bavail * status.f_frsize // 8) // _CHUNK * _CHUNK
        if size < 8 * _CHUNK or not hasattr(os, "posix_fadvise"):
            return None
        piece, start = os.urandom(_CHUNK), time.perf_counter()
        while file.tell() < size and time.perf_counter() - start < DISK_S:
            file.write(piece)
        size = file.tell()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        room, done, start = memoryview(bytearray(_CHUNK)), 0, time.perf_counter()
        while done < size and time.perf_counter() - start < DISK_S:
            done += file.raw.readinto(room)  # type: ignore[union-attr]
        return done / (time.perf_counter() - start)
    return None
