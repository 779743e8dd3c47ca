"""Videos of every format but GIF and WebP: FFmpeg decodes them, in a process of its own (video_child.py).

Nothing that the other process says is trusted either: sizes are checked again, and a process that crashes,
hangs or falls silent is one MediaError.
"""

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from moonlet.chat.deadline import Deadline
from moonlet.errors import MediaError

_CHILD = Path(__file__).with_name("video_child.py")
_MAX_LINE = 2**12
# What Python needs to find the packages of this process; a decoder has no business with the rest.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_TURNS = {
    0: None,
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class VideoLimits:
    """What one video may have (before it is decoded) and what decoding it may take."""

    pixels: int = 2**24  # of a frame: 4096 x 4096
    frames: int = 2**17
    duration_s: int = 4 * 3600
    streams: int = 32
    memory_bytes: int = 2**30  # of the address space, of which code takes an eighth
    cpu_s: int = 60


LIMITS = VideoLimits()


@dataclass(frozen=True)
class Recording:
    """A video of which only the first frame was decoded, within the limits."""

    data: bytes
    width: int
    height: int
    count: int  # frames
    fps: float  # the mean
    turn: int  # degrees counterclockwise from the stored frames to upright ones
    limits: VideoLimits
    deadline: Deadline

    def frames(self, chosen: Iterable[int]) -> Generator[Image.Image, None, None]:
        """The frames of these ascending numbers, in RGB and upright, one at a time.

        Raises MediaError when one cannot be decoded, or when the deadline passes.
        """
        wanted = list(chosen)
        with _child(self.data, wanted, self.limits, self.deadline) as answers:
            if _read_header(self.data, answers, self.limits, self.deadline) != self:
                raise _broken("it gave two answers about one file")
            sideways = self.turn % 180 != 0
            stored = (self.height, self.width) if sideways else (self.width, self.height)
            for _ in wanted:
                _read_line(answers)
                image = Image.frombytes("RGB", stored, _read(answers, 3 * self.width * self.height))
                turn = _TURNS[self.turn]
                yield image if turn is None else image.transpose(turn)


def open_recording(data: bytes, deadline: Deadline, limits: VideoLimits = LIMITS) -> Recording:
    """The video in a file's bytes. Raises MediaError when it is none or beyond the limits."""
    with _child(data, [], limits, deadline) as answers:
        return _read_header(data, answers, limits, deadline)


@contextlib.contextmanager
def _child(
    data: bytes, chosen: list[int], limits: VideoLimits, deadline: Deadline
) -> Generator[IO[bytes], None, None]:
    """The answers of a process that decodes `data`; it has ended when the block is left."""
    if importlib.util.find_spec("av") is None:
        raise MediaError(
            "This server reads no video but GIF and WebP; `pip install moonlet[video]` adds the others."
        )
    try:
        with _file_of(data) as file:
            process = subprocess.Popen(
                # -P: the folder of the script is no place to import from.
                [sys.executable, "-P", str(_CHILD), str(file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[file.fileno()],
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            )
    except OSError as error:
        raise MediaError(f"The video's decoder cannot be started: {error.strerror}.") from error
    with process, deadline.ending(process.kill):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as job:
                job.write(json.dumps({"limits": asdict(limits), "chosen": chosen}).encode())
            yield process.stdout
        except EOFError as error:
            deadline.left()
            raise _ended(process.wait(), limits) from error
        finally:
            process.kill()


def _file_of(data: bytes) -> IO[bytes]:
    """An open file that has no name, for the other process to inherit; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("moonlet-video"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    file.write(data)
    file.flush()
    return file


def _read_header(
    data: bytes, answers: IO[bytes], limits: VideoLimits, deadline: Deadline
) -> Recording:
    header = _read_line(answers)
    width, height, count = (_whole(header, key) for key in ("width", "height", "count"))
    fps, turn = header.get("fps"), _whole(header, "turn") % 360
    if not isinstance(fps, float):
        raise _broken("its answer lacks fps")
    sane = (
        min(width, height) > 0
        and width * height <= limits.pixels
        and 0 < count <= limits.frames
        and 0 < fps < math.inf
        and turn in _TURNS
    )
    if not sane:
        raise _broken("its answer makes no sense")
    if turn % 180:
        width, height = height, width
    return Recording(data, width, height, count, fps, turn, limits, deadline)


def _read_line(answers: IO[bytes]) -> dict[str, Any]:
    """The next line. Raises MediaError where it holds an error, EOFError at the end."""
    line = answers.readline(_MAX_LINE)
    if len(line) == _MAX_LINE:
        raise _broken("its answer does not end")
    if not line.endswith(b"\n"):
        raise EOFError
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise _broken("its answer is unreadable") from error
    if not isinstance(answer, dict):
        raise _broken("its answer makes no sense")
    if "error" in answer:
        raise MediaError(str(answer["error"])[:300])
    return answer


def _read(answers: IO[bytes], size: int) -> bytes:
    data = answers.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _whole(header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if not isinstance(value, int):
        raise _broken(f"its answer lacks {key}")
    return value


def _ended(status: int, limits: VideoLimits) -> MediaError:
    """Why a process that said nothing more has ended."""
    if status == -signal.SIGXCPU:
        return MediaError(
            f"Decoding the video takes more than the {limits.cpu_s} seconds allowed; send a shorter or "
            "smaller one."
        )
    return _broken(f"it ended with the status {status}")


def _broken(how: str) -> MediaError:
    return MediaError(f"The video cannot be decoded: the decoder broke down, {how}.")
