"""Files written in pieces: interrupted anywhere, they become what they would have been."""

import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moonlet.checkpoint import parts, resume, save_checkpoint
from moonlet.checkpoint.convert import Conversion, to_gguf, to_hf
from moonlet.checkpoint.parts import Wish
from moonlet.checkpoint.resume import JOURNAL, LOCK, Job, Made, Output, WorkFolder
from moonlet.checkpoint.transcode import Encode
from moonlet.errors import CheckpointError
from moonlet.quant.mixes import load_mix
from tests.checkpoint.tiny import TEXT, random_tensors

START = b"a header"


def plan(
    made: list[str], fail: Callable[[str], None] = lambda name: None, jobs: int = 6
) -> list[Output]:
    """Two files of `jobs` jobs with two places each; `made` gets the names of the jobs that ran."""

    def job(file: str, i: int) -> Job:
        def make(encode: Encode) -> Made:
            fail(f"{file}{i}")
            made.append(f"{file}{i}")
            return Made([np.full(8, i, np.uint8), np.full(2, i + 100, np.uint16)], rounded=i)

        return Job(f"{file}{i}", "F32", (8 + 8 * i, 8 + 8 * jobs + 4 * i), 12, make)

    size = len(START) + 12 * jobs
    return [Output(name, START, size, [job(name, i) for i in range(jobs)]) for name in ("a", "b")]


def expected(jobs: int = 6) -> bytes:
    first = b"".join(bytes([i]) * 8 for i in range(jobs))
    return START + first + np.repeat(np.arange(100, 100 + jobs, dtype=np.uint16), 2).tobytes()


def work(tmp_path: Path, outputs: list[Output], *inputs: str) -> WorkFolder:
    return WorkFolder(tmp_path / "a", outputs, inputs)


def silent(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("workers", [1, 3])
def test_files_hold_what_the_jobs_made(tmp_path: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    folder = work(tmp_path, plan([]))
    rounded = folder.write(workers, lambda done, total: seen.append((done, total)))
    folder.put_files()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == expected()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert rounded == 2 * sum(range(6))
    assert seen[0] == (0, 144)
    assert seen[-1] == (144, 144)
    assert seen == sorted(seen)


@pytest.mark.parametrize("at", ["a0", "a3", "a5", "b0", "b4"])
def test_what_is_stopped_goes_on_behind_what_is_done(tmp_path: Path, at: str) -> None:
    def stop(name: str) -> None:
        if name == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, plan([], stop)).write(1, silent)
    assert not (tmp_path / "a").exists()
    made: list[str] = []
    folder = work(tmp_path, plan(made))
    assert folder.write(1, silent) == 2 * sum(range(6))
    every = [f"{file}{i}" for file in "ab" for i in range(6)]
    assert made == every[every.index(at) :]
    folder.put_files()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == expected()


def test_other_inputs_begin_anew_and_clear_up(tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name == "b2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, plan([], stop), "one mix").write(1, silent)
    made: list[str] = []
    folder = work(tmp_path, plan(made), "another mix")
    folder.write(1, silent)
    assert len(made) == 12
    assert [path for path in tmp_path.iterdir() if path.suffix == ".partial"] == [folder.path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a").unlink(),
        lambda folder: (folder / "a").write_bytes(b"short"),
        lambda folder: (folder / JOURNAL).write_text("{"),
        lambda folder: (folder / JOURNAL).write_text(json.dumps({"key": 1, "done": 99})),
        lambda folder: (folder / JOURNAL).write_text(
            json.dumps({"key": "of another plan", "done": 8, "rounded": 0})
        ),
        lambda folder: (folder / JOURNAL).write_text(
            (folder / JOURNAL).read_text().replace('"done": 8', '"done": "8"')
        ),
    ],
)
def test_a_damaged_work_folder_is_not_believed(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    def stop(name: str) -> None:
        if name == "b2":
            raise KeyboardInterrupt

    before = work(tmp_path, plan([], stop))
    with pytest.raises(KeyboardInterrupt):
        before.write(1, silent)
    assert json.loads((before.path / JOURNAL).read_text())["done"] == 8
    damage(before.path)
    made: list[str] = []
    folder = work(tmp_path, plan(made))
    folder.write(1, silent)
    folder.put_files()
    assert len(made) == 12
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == expected()


def test_results_are_not_made_far_ahead(tmp_path: Path) -> None:
    """The first job waits: meanwhile no more are made than the window allows."""
    made: list[str] = []
    gate = threading.Event()

    def wait(name: str) -> None:
        if name == "a0":
            deadline = time.monotonic() + 5
            while len(made) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            gate.wait(0.2)
            assert len(made) <= 3

    work(tmp_path, plan(made, wait, jobs=40)).write(2, silent)
    assert len(made) == 80


def test_a_value_that_cannot_be_stored_names_the_tensor(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        if name == "b1":
            raise ValueError("a NaN cannot be stored")

    with pytest.raises(CheckpointError, match="b1 cannot be converted: a NaN cannot be stored"):
        work(tmp_path, plan([], fail)).write(2, silent)


def test_two_processes_do_not_write_the_same(tmp_path: Path) -> None:
    folder = work(tmp_path, plan([]))
    folder.path.mkdir()
    with (folder.path / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another process is writing"):
            folder.write(1, silent)


def test_a_disk_that_is_too_small_is_told_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(resume.shutil, "disk_usage", lambda path: usage(100))
    made: list[str] = []
    with pytest.raises(CheckpointError, match="needs 160 more bytes and the disk has 100 left"):
        work(tmp_path, plan(made)).write(1, silent)
    assert not made
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.checkpoint.test_resume import plan, silent, work\n"
        "from moonlet.errors import CheckpointError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))\n"
        "try: work(Path(sys.argv[1]), plan([])).write(1, silent)\n"
        "except CheckpointError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {tmp_path / 'a'}: File too large")
    assert not (tmp_path / "a").exists()


def test_a_replacement_cut_in_half_is_undone(tmp_path: Path) -> None:
    old = tmp_path / ".a.0123abcd.old"
    old.mkdir()
    (old / "config.json").write_text("{}")
    work(tmp_path, plan([]))._clear_others()
    assert (tmp_path / "a" / "config.json").exists()


def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "src", TEXT, random_tensors(TEXT))
    wish = Wish(load_mix("q8_0"))
    to_gguf(Conversion(tmp_path / "src", tmp_path / "whole.gguf", wish), 2, silent)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from moonlet.checkpoint import parts, resume\n"
        "from moonlet.checkpoint.convert import Conversion, to_gguf\n"
        "from moonlet.quant.mixes import load_mix\n"
        "resume.SYNC_SECONDS, quick = 0, parts.transcode\n"
        "def slow(*args):\n"
        "    time.sleep(0.05)\n"
        "    return quick(*args)\n"
        "parts.transcode = slow\n"
        "source, target = map(Path, sys.argv[1:])\n"
        "wish = parts.Wish(load_mix('q8_0'))\n"
        "to_gguf(Conversion(source, target, wish), 1, lambda done, total: None)\n"
    )
    target = tmp_path / "m.gguf"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "src"), str(target)])
    done = 0
    while done < 5:
        assert child.poll() is None
        time.sleep(0.02)
        for journal in tmp_path.glob(f".m.gguf.*.partial/{JOURNAL}"):
            done = json.loads(journal.read_text())["done"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not target.exists()
    seen: list[int] = []
    conversion = Conversion(tmp_path / "src", target, wish)
    summary = to_gguf(conversion, 2, lambda done, total: seen.append(done))
    assert seen[0] > 0
    left = target.read_bytes()
    assert left == (tmp_path / "whole.gguf").read_bytes()
    assert summary.size_bytes == len(left)
    assert not list(tmp_path.glob(".m.gguf.*"))


def test_memory_holds_a_few_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CHUNK_VALUES", 1 << 14)
    config = replace(TEXT, vocab_size=16384, hidden_size=256, moe_intermediate_size=1024)
    save_checkpoint(tmp_path / "src", config, random_tensors(config))
    weights = (tmp_path / "src" / "model.safetensors").stat().st_size
    for write, name, mix in ((to_gguf, "m.gguf", "q8_0"), (to_hf, "m", "native-int4")):
        conversion = Conversion(tmp_path / "src", tmp_path / name, Wish(load_mix(mix)))
        tracemalloc.start()
        write(conversion, 2, silent)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < weights / 5, (name, peak, weights)
