"""Decodes one video in a process of its own: `python video_child.py DESCRIPTOR`, the job on stdin.

Decoders of a dozen formats have bugs that a file can reach. Whatever happens here, what can be lost is this
process: it has one open file (the video), can open no other and no socket, and its memory and time are
bounded by the kernel. It imports nothing of moonlet, so that it starts fast.

    job     {"limits": {...}, "chosen": [0, 12, 25]}, one JSON document; `chosen` is ascending
    answer  {"width": w, "height": h, "turn": degrees, "count": n, "fps": f} and a line feed, then of every
            chosen frame {} and a line feed and width * height * 3 bytes, RGB, rows from the top
    or, in place of any of those lines, {"error": "one sentence"}, which ends the answer

Frame i of the `count` is what is on screen in the middle of the i-th of `count` equal parts of the playing
time. Where frames come at a constant rate that is simply the i-th frame; elsewhere sampling by number thereby
becomes sampling by time.
"""

import contextlib
import itertools
import json
import os
import resource
import sys
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Any, BinaryIO

import av

# PyAV loads these when it first needs them, which is too late in here.
import av.audio.codeccontext
import av.audio.stream
import av.error
import av.logging
import av.sidedata.sidedata
import av.subtitles.codeccontext
import av.subtitles.stream
import av.video.codeccontext
import av.video.stream

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf"
CODECS = (
    "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg1video,mpeg2video,mpeg4,msmpeg4v1,msmpeg4v2,"
    "msmpeg4,wmv1,wmv2,wmv3,vc1,h263,flv,vp6,vp6f,mjpeg,theora"
)
MISSING_S = 1.0  # how old a frame may be that stands for one that cannot be decoded
USUAL_FPS = 25.0  # for files that do not tell


class Refused(Exception):
    """One sentence for the sender of the video."""


def confine(memory_bytes: int, cpu_s: int) -> None:
    """From here on: so much memory, so much time, no new descriptors, no files, no core."""
    for name, soft, hard in (
        ("RLIMIT_AS", memory_bytes, memory_bytes),
        ("RLIMIT_CPU", cpu_s, cpu_s + 1),  # the soft limit is the signal that tells why
        ("RLIMIT_NOFILE", 0, 0),
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_CORE", 0, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # macOS does not know them all
            resource.setrlimit(getattr(resource, name), (soft, hard))


class Film:
    """A video file. `limits` are those of the job."""

    def __init__(self, file: BinaryIO, limits: dict[str, Any]) -> None:
        self._file, self._limits = file, limits
        self._index()

    @property
    def count(self) -> int:
        return len(self._shown)

    @cached_property
    def fps(self) -> float:
        """The rate of the header where it agrees with the times of the frames, being the rounder number."""
        declared, count = self._declared_fps, self.count
        seconds = (self._shown[-1] - self._shown[0]) * self._unit_s
        if count == 1 or seconds <= 0:
            return declared or USUAL_FPS
        measured = (count - 1) / seconds
        if declared and abs(measured / declared - 1) * count < 0.25:
            return declared
        return measured

    def frames(self, chosen: list[int]) -> Iterator[av.VideoFrame]:
        """The frames of these ascending numbers."""
        times = [self._time_on_screen(index) for index in chosen]
        coming = self._decoded(self._parts(times))
        shown = ahead = None
        for time in times:
            while shown is None or shown[0] < time:
                frame, ahead = ahead or next(coming, None), None
                if frame is None:
                    break
                if frame[0] > time and self._is_near(shown, time):
                    ahead = frame
                    break
                shown = frame
            if shown is None or not self._is_near(shown, time):
                second = (time - self._shown[0]) * self._unit_s
                raise Refused(
                    f"The video cannot be decoded at second {second:.1f}: it is damaged, or its frames "
                    f"have more than the {self._limits['pixels']} pixels allowed."
                )
            yield shown[1]

    def _index(self) -> None:
        """Reads the times of all frames, decoding none."""
        self._times: list[int | None] = []  # of every packet, in the order of the file
        self._keys: list[int] = []  # numbers of the packets at which decoding may begin
        times: list[int] = []
        most = self._limits["frames"]
        with self._opened() as (container, stream):
            for number, packet in enumerate(_packets(container, stream)):
                if number == most:
                    raise Refused(f"The video has more than the {most} frames allowed; cut it.")
                self._times.append(packet.pts)
                if packet.is_keyframe:
                    self._keys.append(number)
                if packet.pts is not None and not packet.is_discard:
                    times.append(packet.pts)
            rate = stream.average_rate or stream.guessed_rate
            self._declared_fps = float(rate) if rate and 0 < rate <= 1000 else None
            unit = stream.time_base
        if not self._times:
            raise Refused("The video holds no frames.")
        self._counts = None in self._times or not times  # no times: frames have numbers instead
        self._unit_s = 1 / (self._declared_fps or USUAL_FPS) if self._counts else float(unit)
        self._shown = list(range(len(self._times))) if self._counts else sorted(times)
        self._check_duration()

    def _check_duration(self) -> None:
        most = self._limits["duration_s"]
        seconds = (self._shown[-1] - self._shown[0]) * self._unit_s
        if not seconds <= most:
            raise Refused(f"The video is {seconds:.0f} seconds long, {most} are allowed; cut it.")

    def _time_on_screen(self, index: int) -> int:
        """When the picture of frame `index` came on screen, in units of the file."""
        middle = self._shown[0] + (index + 0.5) / self.fps / self._unit_s
        return self._shown[max(0, bisect_right(self._shown, middle) - 1)]

    def _is_near(self, shown: Any, time: int) -> bool:
        return shown is not None and abs(time - shown[0]) * self._unit_s <= MISSING_S

    def _parts(self, times: list[int]) -> list[tuple[int, int]]:
        """What has to be decoded for these times: [first, last] packets, each part from a key frame on.

        A part ends with the packet of its last frame: what that one refers to is stored before it.
        """
        starts = [(self._times[number], number) for number in self._keys]
        if self._counts or not starts or sorted(starts) != starts:
            return [(0, len(self._times) - 1)]
        due = {time: number for number, time in enumerate(self._times) if time is not None}
        parts: list[tuple[int, int]] = []
        for time in times:
            before = bisect_right(starts, (time, len(self._times))) - 1
            first = starts[max(0, before)][1]
            last = max(first, due[time])
            if parts and first <= parts[-1][1] + 1:
                parts[-1] = parts[-1][0], max(last, parts[-1][1])
            else:
                parts.append((first, last))
        return parts

    def _decoded(self, parts: list[tuple[int, int]]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their times, in the order in which they are shown."""
        with self._opened() as (container, stream):
            frames = self._checked(_decode(container, stream, parts))
            if self._counts:
                yield from enumerate(frames)
            else:
                yield from ((frame.pts, frame) for frame in frames if frame.pts is not None)

    def _checked(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        size = None
        for frame in frames:
            self._check_size(frame.width, frame.height)
            if size not in (None, (frame.width, frame.height)):
                raise Refused("The frames of a video must all have the same size.")
            size = frame.width, frame.height
            yield frame

    def _check_size(self, width: int, height: int) -> None:
        most = self._limits["pixels"]
        if width * height > most:
            raise Refused(
                f"The video has frames of {width} x {height} pixels, {most} pixels are allowed; "
                "scale it down."
            )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its video stream, from the beginning, checked by what the header says."""
        self._file.seek(0)
        # FFmpeg checks the pixels again whenever a decoder takes on a new size, before it has the memory.
        pixels = {"max_pixels": str(self._limits["pixels"])}
        allowed = {
            "format_whitelist": FORMATS, "codec_whitelist": CODECS, "protocol_whitelist": "none",
        }  # fmt: skip
        with av.open(
            self._file,
            options=pixels,
            container_options=allowed,
            metadata_errors="replace",
            io_open=_open_nothing,
        ) as container:
            if len(container.streams) > self._limits["streams"]:
                raise Refused(
                    f"The video file has {len(container.streams)} streams, "
                    f"{self._limits['streams']} are allowed."
                )
            stream: Any = container.streams.best("video")
            if stream is None:
                raise Refused("The file holds no video.")
            context = stream.codec_context
            if context is None or context.name not in CODECS.split(","):
                raise Refused(
                    "The video is coded in a way that is not supported; send H.264 or VP9."
                )
            self._check_size(context.width, context.height)
            context.options = pixels
            context.thread_count = 1
            yield container, stream


def _open_nothing(*_: Any) -> None:
    raise PermissionError("a video cannot refer to other files")


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """All packets with something in them; a file that breaks off ends there."""
    with contextlib.suppress(av.error.InvalidDataError):
        yield from (packet for packet in container.demux(stream) if packet.size)


def _decode(container: Any, stream: Any, parts: list[tuple[int, int]]) -> Iterator[av.VideoFrame]:
    packets, following = _packets(container, stream), 0
    for first, last in parts:
        for packet in itertools.islice(packets, first - following, last + 1 - following):
            yield from _frames_of(stream, packet)
        following = last + 1
        yield from _frames_of(stream, None)  # those that the decoder still holds
        stream.codec_context.flush_buffers()


def _frames_of(stream: Any, packet: Any) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(packet)
    except MemoryError:
        raise
    except (av.error.FFmpegError, EOFError):  # this packet is lost; `frames` sees what is missing
        return []


def answer(file: BinaryIO, job: dict[str, Any], out: BinaryIO) -> None:
    """Writes the answer to a job."""
    try:
        film = Film(file, job["limits"])
        frames = film.frames([0, *job["chosen"]])  # the first one tells the true size
        frame = next(frames)
        size = {"width": frame.width, "height": frame.height, "turn": frame.rotation}
        _say(out, size | {"count": film.count, "fps": film.fps})
        for frame in frames:
            plane = frame.reformat(format="rgb24").planes[0]  # what can fail comes before the line
            _say(out, {})
            _write_rows(out, plane, 3 * frame.width, frame.height)
            out.flush()
    except Refused as error:
        _say(out, {"error": str(error)})
    except MemoryError:
        _say(out, {"error": "Decoding the video takes more memory than allowed; scale it down."})
    except av.error.FFmpegError as error:
        reason = error.strerror or "it cannot be decoded"
        _say(out, {"error": f"The video is not readable: {reason[:100]}."})


def _say(out: BinaryIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line).encode() + b"\n")


def _write_rows(out: BinaryIO, plane: Any, row_bytes: int, rows: int) -> None:
    view, step = memoryview(plane), plane.line_size  # rows are padded in memory
    for start in range(0, rows * step, step):
        out.write(view[start : start + row_bytes])


def main() -> None:
    job = json.load(sys.stdin)
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        confine(job["limits"]["memory_bytes"], job["limits"]["cpu_s"])
        answer(file, job, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
