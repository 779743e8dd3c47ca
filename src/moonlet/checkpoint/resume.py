"""Large files written piece by piece, by all cores, so that an interruption costs seconds of work.

What a file will hold is planned first: its start, and `Job`s that each make the bytes for fixed places in it.
The files lie in a work folder `.NAME.TAG.partial` beside the final place, TAG being a digest of the plan and
of everything that goes into it. A small journal there says how many jobs are done and on disk; whoever
starts the same plan again goes on behind them, and another plan begins anew.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moonlet.checkpoint.transcode import Encode
from moonlet.checkpoint.untrusted import parse_json_object
from moonlet.checkpoint.writer import move_into_place
from moonlet.errors import CheckpointError
from moonlet.quant.pool import EncoderPool

JOURNAL, LOCK = "journal.json", ".lock"
SYNC_SECONDS = 2.0  # of work that a killed process may lose
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """Makes the bytes of some places of a file: one array for each of `offsets`, `size_bytes` together.

    `name` and `kind`, a type, are for people.
    """

    name: str
    kind: str
    offsets: tuple[int, ...]
    size_bytes: int
    make: Callable[[Encode], "Made"]


@dataclass(frozen=True)
class Made:
    """What a job made; `rounded` counts the groups of values whose scale the target cannot hold exactly."""

    arrays: Sequence[NDArray[Any]]
    rounded: int = 0


@dataclass(frozen=True)
class Output:
    """A file to be: its name, the bytes that stand before the data, and the jobs for the data."""

    name: str
    start: bytes
    size_bytes: int
    jobs: Sequence[Job]

    def __post_init__(self) -> None:
        made = sum(job.size_bytes for job in self.jobs)
        assert self.size_bytes - len(self.start) - made >= 0, f"{self.name} is planned too small"


class WorkFolder:
    """The folder beside `target` in which `outputs` come into being.

    `inputs` is whatever decides the bytes besides the plan itself: sources, mixes, versions.
    """

    def __init__(self, target: Path, outputs: Sequence[Output], inputs: Iterable[str]) -> None:
        self.target = target
        self.outputs = outputs
        digest = hashlib.sha256("\0".join(inputs).encode())
        for output in outputs:
            digest.update(f"\0{output.name}\0{output.size_bytes}\0".encode() + output.start)
        self._key = digest.hexdigest()
        self.path = target.with_name(f".{target.name}.{self._key[:8]}.partial")
        self._done = self._rounded = 0

    def write(self, workers: int, progress: Progress) -> int:
        """Writes what is missing of the outputs; afterwards they are whole and on disk.

        `progress` gets bytes done and bytes in all. Returns how many groups were rounded, earlier runs
        included. Raises CheckpointError when the disk refuses, when a job fails, or when another process
        writes the same. On any exception the work done stays, if there is any.
        """
        with _told(self.target):
            self._clear_others()
            self.path.mkdir(parents=True, exist_ok=True)
            with _alone(self.path):
                try:
                    self._check_room()
                    self._read_journal()
                    self._write(workers, progress)
                except BaseException:
                    if not self._done:
                        shutil.rmtree(self.path, ignore_errors=True)
                    raise
        return self._rounded

    def put_files(self) -> None:
        """Moves the outputs to their place beside `target`, the first of them last."""
        with _told(self.target):
            for output in reversed(self.outputs):
                (self.path / output.name).replace(self.target.with_name(output.name))
            shutil.rmtree(self.path, ignore_errors=True)

    def put_folder(self, fill: Callable[[Path], None]) -> None:
        """Moves the whole folder to `target`, after `fill` has added the small files."""
        with _told(self.target):
            fill(self.path)
            for name in (JOURNAL, LOCK):
                (self.path / name).unlink(missing_ok=True)
            move_into_place(self.path, self.target)

    def _write(self, workers: int, progress: Progress) -> None:
        total = sum(job.size_bytes for output in self.outputs for job in output.jobs)
        ready, before = 0, 0
        pool, encode = ThreadPoolExecutor(workers), EncoderPool(workers)
        try:
            for output in self.outputs:
                skipped = output.jobs[: max(0, self._done - before)]
                before += len(output.jobs)
                ready += sum(job.size_bytes for job in skipped)
                progress(ready, total)
                if len(skipped) == len(output.jobs):
                    continue
                with _opened(self.path / output.name) as file:
                    file.write(output.start)
                    file.truncate(output.size_bytes)
                    synced = time.monotonic()
                    try:
                        jobs = output.jobs[len(skipped) :]
                        for job, made in _in_order(pool, encode, jobs, 2 * workers):
                            _place(file, job, made.arrays)
                            self._done, self._rounded = self._done + 1, self._rounded + made.rounded
                            ready += job.size_bytes
                            progress(ready, total)
                            if time.monotonic() - synced > SYNC_SECONDS:
                                self._write_journal(file)
                                synced = time.monotonic()
                    finally:
                        self._write_journal(file)
        finally:
            pool.shutdown(cancel_futures=True)
            encode.close()

    def _read_journal(self) -> None:
        """Takes over what an earlier process has left, if all of it is still there."""
        try:
            found = parse_json_object((self.path / JOURNAL).read_bytes(), JOURNAL)
        except (OSError, CheckpointError):
            return
        done, rounded = found.get("done"), found.get("rounded")
        if found.get("key") != self._key or type(done) is not int or type(rounded) is not int:
            return
        before = 0
        for output in self.outputs:
            path = self.path / output.name
            if before < done and not (path.exists() and path.stat().st_size == output.size_bytes):
                return
            before += len(output.jobs)
        self._done, self._rounded = min(max(done, 0), before), rounded

    def _write_journal(self, file: BinaryIO) -> None:
        """Data first, then the journal: what it says is on disk whatever happens next."""
        file.flush()
        os.fsync(file.fileno())
        fresh = self.path / (JOURNAL + ".new")
        state = {"key": self._key, "done": self._done, "rounded": self._rounded}
        fresh.write_text(json.dumps(state))
        fresh.replace(self.path / JOURNAL)

    def _clear_others(self) -> None:
        """Removes what other plans for the same target have left, and undoes half a replacement."""
        pattern = re.compile(rf"\.{re.escape(self.target.name)}\.[0-9a-f]{{8}}\.(old|partial)")
        beside = self.target.parent.iterdir() if self.target.parent.is_dir() else ()
        for path in list(beside):
            if not pattern.fullmatch(path.name) or path == self.path:
                continue
            if path.suffix == ".old" and not self.target.exists():
                path.rename(self.target)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _check_room(self) -> None:
        needed = sum(output.size_bytes for output in self.outputs)
        written = (self.path / output.name for output in self.outputs)
        held = sum(path.stat().st_blocks * 512 for path in written if path.exists())
        free = shutil.disk_usage(self.path).free
        if needed - held > free:
            raise CheckpointError(
                f"{self.target} needs {needed - held:,} more bytes and the disk has {free:,} left: "
                "make room, or choose a smaller mix"
            )


def _in_order(
    pool: ThreadPoolExecutor, encode: Encode, jobs: Sequence[Job], ahead: int
) -> Iterator[tuple[Job, Made]]:
    """Results in the order of the jobs, at most `ahead` of them made before their turn."""
    waiting: deque[tuple[Job, Future[Made]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(job.make, encode)))
        if len(waiting) >= ahead:
            yield _result(*waiting.popleft())
    while waiting:
        yield _result(*waiting.popleft())


def _result(job: Job, future: Future[Made]) -> tuple[Job, Made]:
    try:
        return job, future.result()
    except CheckpointError:
        raise
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{job.name} cannot be converted: {error}") from error


def _place(file: BinaryIO, job: Job, made: Sequence[NDArray[Any]]) -> None:
    contents = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in made]
    assert sum(len(content) for content in contents) == job.size_bytes, job.name
    for offset, content in zip(job.offsets, contents, strict=True):
        file.seek(offset)
        file.write(content.data)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("r+b" if path.exists() else "xb") as file:
        yield file


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system gives back when the process ends, however it ends."""
    with (folder / LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"another process is writing {folder}: wait for it") from error
        yield


@contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from error
