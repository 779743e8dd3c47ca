"""Videos through the process that decodes them: the right frames, and one error for everything hostile."""

import io
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moonlet.chat import video, video_child
from moonlet.chat.attachments import open_media
from moonlet.chat.deadline import Deadline
from moonlet.chat.media import MediaLimits, items_of, sampled_frames, timestamp, video_tokens
from moonlet.chat.messages import Message, VideoPart
from moonlet.chat.template import ChatTemplate
from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer
from moonlet.chat.video import LIMITS, VideoLimits, open_recording
from moonlet.errors import MediaError
from tests.chat.films import KINDS, film, number_of
from tests.chat.test_headers import small_gif
from tests.chat.test_images import data_url
from tests.shared import SHARED, needs_shared

BUNNY = SHARED / "data" / "video" / "bigbuckbunny.mp4"
REAL = SHARED / "data" / "video" / "realshort.mp4"


def soon() -> Deadline:
    return Deadline(60)


def numbers(data: bytes, chosen: list[int]) -> list[int]:
    return [number_of(image) for image in open_recording(data, soon()).frames(chosen)]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(video.subprocess, "Popen", Recorded)
    return started


# The right frames


@needs_shared
def test_frames_of_a_real_film() -> None:
    recording = open_recording(BUNNY.read_bytes(), soon())
    assert (recording.width, recording.height, recording.count) == (1280, 720, 132)
    assert (recording.fps, recording.turn) == (25.0, 0)
    chosen = list(range(0, 128, 8))
    for number, image in zip(chosen, recording.frames(chosen), strict=True):
        assert (image.mode, image.size) == ("RGB", (1280, 720))
        name = f"{number // 8:02d}.jpg"
        reference = Image.open(BUNNY.with_name("bigbuckbunny_frames") / name)
        small = np.asarray(image.resize((320, 180))).astype(float)
        assert np.abs(small - np.asarray(reference)).mean() < 4, name


@needs_shared
@pytest.mark.parametrize(
    ("path", "grids", "stamps"),
    [
        (
            BUNNY,
            [(4, 50, 86), (4, 50, 86), (3, 50, 86)],
            ["00:00:00.000", "00:00:02.080", "00:00:04.200"],
        ),
        (REAL, [(2, 18, 24)], ["00:00:00.000"]),
    ],
)
def test_chunks_of_a_real_film(path: Path, grids: Any, stamps: list[str]) -> None:
    url = data_url(path.read_bytes(), "video/mp4")
    (opened,) = open_media([Message("user", (VideoPart(url),))], MediaLimits())
    assert isinstance(opened, list)
    assert [stamp for stamp, _ in opened] == stamps
    assert [item.grid for item in items_of(opened)] == grids
    recording = open_recording(path.read_bytes(), soon())
    tokens = sum(item.num_tokens for item in items_of(opened))
    assert tokens == video_tokens(recording, MediaLimits())
    tokenizer = Tokenizer(BYTE_TOKENS)
    template = ChatTemplate(tokenizer, "k2.5", MediaLimits())
    prompt = template.render([Message("user", (VideoPart(url),))])
    assert prompt.token_ids.count(tokenizer.id_of("<|media_pad|>")) == tokens
    chunks = "<|media_begin|>video<|media_content|><|media_pad|><|media_end|>"
    assert "".join(stamp + chunks for stamp in stamps) in prompt.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_container(kind: str) -> None:
    size = (176, 144)  # of the few that H.263's relatives know
    data = film(kind, size=size)
    recording = open_recording(data, soon())
    assert (recording.width, recording.height, recording.count) == (*size, 20)
    assert recording.fps == pytest.approx(25, rel=0.001)
    assert numbers(data, [0, 1, 7, 18, 19]) == [0, 1, 7, 18, 19]
    assert timestamp(15, recording.fps) == "00:00:00.600"


def test_frames_between_key_frames_are_right() -> None:
    data = film(count=24, g="6", bf="2")
    assert numbers(data, list(range(24))) == list(range(24))
    for chosen in ([0, 5], [0, 6, 7], [11], [0, 12, 23], [4, 4, 17]):
        assert numbers(data, chosen) == chosen


def test_no_more_is_decoded_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    data, fed = film(count=24, g="6", bf="0"), []
    real = video_child._frames_of
    monkeypatch.setattr(
        video_child, "_frames_of", lambda stream, packet: fed.append(packet) or real(stream, packet)
    )
    opened = video_child.Film(io.BytesIO(data), asdict(LIMITS))
    assert not fed
    assert len(list(opened.frames([0, 13]))) == 2
    assert sum(packet is not None for packet in fed) == 3  # 0, then 12 and 13


def test_a_variable_rate_is_sampled_by_time() -> None:
    # A slide show: the second picture comes after a second, the others at once behind it.
    times = [0, 25, 26, 27, 28, 29, 30, 31, 32, 33]
    recording = open_recording(film(count=10, times=times), soon())
    assert recording.count == 10
    assert recording.fps == pytest.approx(9 / (33 / 25))
    assert numbers(film(count=10, times=times), list(range(10))) == [0] * 7 + [3, 7, 9]


def test_a_film_may_begin_late() -> None:
    data = film(count=10, times=range(1000, 1010), movflags="use_editlist")
    assert numbers(data, [0, 3, 9]) == [0, 3, 9]


def test_one_frame() -> None:
    recording = open_recording(film(count=1), soon())
    assert recording.count == 1
    assert sampled_frames(1, recording.fps, MediaLimits()) == [0]


def box(data: bytes, *path: bytes) -> int:
    """Where the body of an MP4 box begins."""
    at = 0
    for kind in path:
        at = data.index(kind, at) + 4
    return at


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    return data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_telephone_held_upright(turn: int) -> None:
    stored = Image.new("RGB", (64, 48), "black")
    stored.paste("white", (0, 0, 32, 48))  # the left half
    shown = stored.rotate(turn, expand=True)
    sin, cos = {0: (0, 1), 90: (1, 0), 180: (0, -1), 270: (-1, 0)}[turn]
    one = 1 << 16
    # The matrix of a track, rows of 16.16 numbers but for the last column.
    matrix = [cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, 1 << 30]
    data = still_film(stored)
    data = patched(data, box(data, b"tkhd") + 40, ">9i", *matrix)
    recording = open_recording(data, soon())
    assert (recording.width, recording.height) == shown.size
    (image,) = recording.frames([0])
    assert np.abs(np.asarray(image).astype(int) - np.asarray(shown)).mean() < 20


def still_film(picture: Image.Image) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = *picture.size, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


# Hostile files


def outcome(data: bytes, limits: VideoLimits = LIMITS) -> str:
    """Decodes a file as a request would. What it says when it refuses, "" otherwise."""
    try:
        recording = open_recording(data, soon(), limits)
        chosen = sampled_frames(recording.count, recording.fps, MediaLimits())
        for image in recording.frames(chosen):
            assert image.size == (recording.width, recording.height)
    except MediaError as error:
        return error.message
    return ""


@needs_shared
def test_truncated_at_every_tenth() -> None:
    data = REAL.read_bytes()
    said = [outcome(data[: len(data) * tenth // 10]) for tenth in range(11)]
    assert said[0]
    assert said[10] == ""


def in_one_process(code: str, films: list[bytes]) -> str:
    """Runs `code` over files in a process with the limits of the one for a single file.

    What would crash that one is seen here: the exit status would not be 0. `answer(data)` is the first line
    that the other process would have said.
    """
    head = """
        import io, json, random, sys
        from dataclasses import asdict
        from moonlet.chat import video_child
        from moonlet.chat.video import LIMITS
        limits, films = asdict(LIMITS), [bytes.fromhex(line) for line in sys.stdin]
        video_child.confine(limits["memory_bytes"], limits["cpu_s"])
        def answer(data):
            out, job = io.BytesIO(), {"limits": limits | {"frames": 500}, "chosen": [0, 7, 19]}
            video_child.answer(io.BytesIO(data), job, out)
            return json.loads(out.getvalue().split(b"\\n")[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        input="\n".join(data.hex() for data in films),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_container_truncated() -> None:
    code = """
        for film in films:
            said = [answer(film[: len(film) * tenth // 10]) for tenth in range(11)]
            print("error" in said[0], "error" in said[10], said[10].get("count"))
    """
    said = in_one_process(code, [film(kind, size=(176, 144)) for kind in KINDS])
    assert said == "True False 20\n" * len(KINDS)


def test_random_bytes_flipped() -> None:
    code = """
        random, ends = random.Random(1), set()
        for number in range(400):
            data = bytearray(films[number % len(films)])
            for _ in range(random.choice((1, 3, 30))):
                data[random.randrange(len(data))] = random.randrange(256)
            ends.add("error" in answer(data))
        print(sorted(ends))
    """
    assert (
        in_one_process(code, [film(kind, size=(176, 144)) for kind in KINDS]) == "[False, True]\n"
    )


@pytest.mark.parametrize(
    ("table", "offset", "values", "said"),
    [
        # How many samples there are, and how large each is.
        (b"stsz", 8, (5,), 5),
        (b"stsz", 8, (21,), 20),
        (b"stsz", 8, (10**6,), "holds no frames"),
        (b"stsz", 8, (2**31 - 1,), "not readable"),
        (b"stsz", 8, (2**32 - 1,), "not readable"),
        # How long each lasts: entries, samples, time.
        (b"stts", 4, (2**31 - 1, 20, 512), "more memory than allowed"),
        (b"stts", 4, (1, 2**31 - 1, 512), 20),
        (b"stts", 4, (1, 20, 0), 20),
        (b"stts", 4, (1, 20, 2**31 - 1), 1),
        (b"stts", 4, (0, 20, 512), "holds no frames"),
        # How long the film is, and how large its pictures are: nobody relies on it.
        (b"mvhd", 16, (0,), 20),
        (b"mvhd", 16, (2**32 - 1,), 20),
        (b"mdhd", 16, (2**32 - 1,), 20),
        (b"avc1", 24, (0,), 20),
        (b"avc1", 24, (8000 << 16 | 8000,), 20),
        (b"avc1", 24, (2**32 - 1,), 20),
    ],
)
def test_headers_that_lie(
    table: bytes, offset: int, values: tuple[int, ...], said: int | str
) -> None:
    data = film(count=20, bf="0")
    lied = patched(data, box(data, table) + offset, f">{len(values)}I", *values)

    def ask() -> None:
        if isinstance(said, str):
            assert said in outcome(lied)
        else:
            recording = open_recording(lied, soon())
            assert (recording.width, recording.height, recording.count) == (64, 48, said)
            assert outcome(lied) == ""

    assert grown_by(ask) < 50 * 2**20


def test_a_size_beyond_the_limit_is_never_decoded() -> None:
    data = film(count=3, size=(320, 240))
    few = VideoLimits(pixels=320 * 240 - 1)
    assert "320 x 240 pixels, 76799 pixels are allowed" in outcome(data, few)
    assert outcome(data, VideoLimits(pixels=320 * 240)) == ""
    # The header says 16 x 16, the pictures themselves say the truth.
    lied = patched(data, box(data, b"avc1") + 24, ">HH", 16, 16)
    assert "320 x 240 pixels" in outcome(lied, few)


def test_too_many_frames() -> None:
    assert "more than the 19 frames allowed" in outcome(film(count=20), VideoLimits(frames=19))
    assert outcome(film(count=20), VideoLimits(frames=20)) == ""


def test_too_long() -> None:
    data = film(count=3, times=[0, 1, 25 * 100])
    assert "100 seconds long, 99 are allowed" in outcome(data, VideoLimits(duration_s=99))
    assert outcome(data, VideoLimits(duration_s=101)) == ""


def test_too_many_streams() -> None:
    assert "has 1 streams, 0 are allowed" in outcome(film(), VideoLimits(streams=0))


def test_a_change_of_size_in_the_middle() -> None:
    data = film("mpeg", size=(176, 144)) + film("mpeg", size=(352, 288))
    assert "same size" in outcome(data)
    # Beyond the limit the decoder itself refuses, before it takes the memory: no such frame comes out.
    few = asdict(VideoLimits(pixels=352 * 288 - 1))
    whole = video_child.Film(io.BytesIO(data), few)._decoded([(0, 39)])
    assert {(frame.width, frame.height) for _, frame in whole} == {(176, 144)}


def test_sound_alone_is_no_video() -> None:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "holds no video" in outcome(buffer.getvalue())


def test_formats_and_codecs_that_nobody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "nut", "mpeg4")
    with pytest.raises(ValueError, match="Invalid argument"):
        video_child.Film(io.BytesIO(film("nut")), asdict(LIMITS))
    monkeypatch.setitem(KINDS, "matroska", "ffv1")
    assert "coded in a way that is not supported" in outcome(film("matroska"))


def test_a_playlist_opens_nothing(tmp_path: Path) -> None:
    target = tmp_path / "film.mp4"
    target.write_bytes(film())
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{target}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{target}'\n",
    ):
        with pytest.raises(ValueError, match="Invalid"):
            video_child.Film(io.BytesIO(text.encode()), asdict(LIMITS))
        assert outcome(text.encode())


def grown_by(call: Any) -> int:
    """Bytes by which the peak memory of this process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_a_bomb_stays_in_its_process(children: list[subprocess.Popen[bytes]]) -> None:
    data = film("avi", count=2, size=(4096, 4112))
    assert len(data) < 400_000
    assert grown_by(lambda: outcome(data)) < 50 * 2**20
    assert "more than the 16777216 pixels allowed" in outcome(data)
    few = VideoLimits(memory_bytes=200 * 2**20)
    assert "memory" in outcome(film("avi", count=2, size=(4096, 4096)), few)
    assert all(child.returncode is not None for child in children)


def test_a_gif_of_a_hundred_thousand_frames() -> None:
    url = data_url(small_gif(100_000), "image/gif")

    def ask() -> None:
        with pytest.raises(MediaError, match="more than the 4096 frames allowed"):
            open_media([Message("user", (VideoPart(url),))], MediaLimits())

    assert grown_by(ask) < 50 * 2**20


# The other process


def test_a_confined_process_opens_nothing() -> None:
    script = """
        import socket
        from moonlet.chat import video_child
        video_child.confine(2**31, 60)
        for act in (lambda: open("/etc/hosts"), socket.socket, lambda: bytearray(2**32)):
            try:
                act()
            except (OSError, MemoryError) as error:
                print(type(error).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["OSError", "OSError", "MemoryError"]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts another program in the place of the decoder."""
    path = tmp_path / "child.py"
    monkeypatch.setattr(video, "_CHILD", path)
    head = "import os, sys, json, time, resource\njob = json.load(sys.stdin)\n"
    return lambda code: path.write_text(head + code)


GOOD = '{"width": 4, "height": 2, "turn": 0, "count": 3, "fps": 2.0}'


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit(3)", "ended with the status 3"),
        ("os.kill(os.getpid(), 11)", "ended with the status -11"),
        ("os.kill(os.getpid(), 9)", "ended with the status -9"),
        ("1 / 0", "ended with the status 1"),
        ("os.close(1)", "ended with the status 0"),
        ("print('no json')", "unreadable"),
        ("print('[]')", "makes no sense"),
        ("print('x' * 10**6)", "does not end"),
        ("print('{}')", "lacks width"),
        (f"print('''{GOOD}'''.replace('4', '-4'))", "makes no sense"),
        (f"print('''{GOOD}'''.replace('4', '99999999'))", "makes no sense"),
        (f"print('''{GOOD}'''.replace('2.0', 'NaN'))", "makes no sense"),
        (f"print('''{GOOD}'''.replace('2.0', '1e999'))", "makes no sense"),
        (f"print('''{GOOD}'''.replace('3', '0'))", "makes no sense"),
        (f"print('''{GOOD}'''.replace('0,', '45,'))", "makes no sense"),
        ("print(json.dumps({'error': 'x' * 999}))", "^x{300}$"),
        ("print(json.dumps({'error': os.environ.get('SECRET', 'none')}))", "^none$"),
        (
            "resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass",
            "more than the 60 seconds",
        ),
    ],
)
def test_a_decoder_that_breaks_down(
    child: Any, code: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "a key")
    child(code)
    with pytest.raises(MediaError, match=message):
        open_recording(b"", soon())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "status 0"),
        ("print('{}')", "status 0"),
        ("print('{}'); print('short', end='')", "status 0"),
        ('print(\'{"error": "lost"}\')', "^lost$"),
    ],
)
def test_a_decoder_that_breaks_down_between_frames(child: Any, code: str, message: str) -> None:
    child(f"print('''{GOOD}''')\n{code}")
    recording = open_recording(b"", soon())
    with pytest.raises(MediaError, match=message):
        list(recording.frames([0, 1]))


def test_a_decoder_that_changes_its_mind(child: Any) -> None:
    child(f"print('''{GOOD}'''.replace('4', '5' if job['chosen'] else '4'))")
    with pytest.raises(MediaError, match="two answers about one file"):
        list(open_recording(b"", soon()).frames([0]))


def test_a_decoder_that_hangs(child: Any, children: list[subprocess.Popen[bytes]]) -> None:
    child("time.sleep(600)")
    with pytest.raises(MediaError, match=r"more than the 0\.3 seconds allowed"):
        open_recording(b"", Deadline(0.3))
    assert children[0].returncode == -signal.SIGKILL


def test_a_cancelled_request_ends_the_decoder(
    child: Any, children: list[subprocess.Popen[bytes]]
) -> None:
    child("time.sleep(600)")
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(MediaError, match="cancelled"):
        open_media(
            [Message("user", (VideoPart(data_url(film(), "video/mp4")),))],
            MediaLimits(),
            stop=stop,
        )
    assert children[0].returncode == -signal.SIGKILL


def test_frames_that_nobody_wants_any_more(children: list[subprocess.Popen[bytes]]) -> None:
    frames = open_recording(film(), soon()).frames(list(range(20)))
    next(frames)
    assert len(children) == 2
    frames.close()
    assert children[1].returncode is not None


def test_a_big_answer_does_not_block(child: Any) -> None:
    child("print('y' * 2**24)")
    with pytest.raises(MediaError, match="does not end"):
        open_recording(b"", soon())


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MediaError, match=r"pip install moonlet\[video\]"):
        open_recording(film(), soon())


def test_no_descriptor_is_left_open() -> None:
    data = film()
    outcome(data)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(3):
        outcome(data)
        outcome(data[:100])
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after == before
