"""The set-up runs when it must, not otherwise, and one that was cut off never counts as done."""

import fcntl
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "setup_venv.py"
Command = list[str]


class Setup:
    """A copy of the script in a tree of its own, with the commands recorded in place of being run."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.monkeypatch = monkeypatch
        self.ran: list[Command] = []
        self.fails: Callable[[Command], bool] = lambda command: False
        for name in ("pyproject.toml", "constraints.txt", "CMakeLists.txt"):
            (root / name).write_text(name)
        for name in ("csrc", "tools", "src/moonlet"):
            (root / name).mkdir(parents=True)
        (root / "src/moonlet/__init__.py").write_text("")
        self.script = shutil.copy(SCRIPT, root / "tools")
        self.module = self._load()

    def _load(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("copied_setup_venv", self.script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.monkeypatch.setattr(module.subprocess, "run", self._record)
        return module

    def _record(self, command: Command, **_: object) -> subprocess.CompletedProcess[bytes]:
        self.ran.append(command)
        if "venv" in command:
            (self.root / ".venv").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, int(self.fails(command)))

    def __call__(self, profile: str) -> list[str]:
        """The commands that a set-up ran, each as one line."""
        self.ran.clear()
        self.monkeypatch.setattr(sys, "argv", ["setup_venv.py", profile])
        self.module.main()
        return [" ".join(command) for command in self.ran]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(tmp_path, monkeypatch)


def test_a_second_set_up_has_nothing_to_do(setup: Setup) -> None:
    assert [line.split("install ")[-1] for line in setup("run")[1:]] == ["torch", "--editable ."]
    assert setup("run") == []


def test_dev_includes_run_but_not_the_other_way_round(setup: Setup) -> None:
    setup("run")
    assert setup("dev")[-1].endswith("--editable .[dev]")
    assert setup("run") == []


@pytest.mark.parametrize("name", ["constraints.txt", "csrc/new.cpp", "src/moonlet/__init__.py"])
def test_a_changed_input_installs_again_in_place(setup: Setup, name: str) -> None:
    setup("run")
    (setup.root / name).write_text("changed")
    assert not any("--clear" in line for line in setup("run"))
    assert len(setup.ran) == 2


def test_a_failed_set_up_begins_anew(setup: Setup) -> None:
    setup("run")
    (setup.root / "constraints.txt").write_text("changed")
    setup.fails = lambda command: "--editable" in command
    with pytest.raises(SystemExit, match="could not install moonlet and its kernels"):
        setup("run")
    setup.fails = lambda command: False
    assert "-m venv --clear" in setup("run")[0]


def test_another_python_begins_anew(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup("run")
    monkeypatch.setattr(sys, "version", "3.99.0 (another)")
    assert "-m venv --clear" in setup("run")[0]


def test_uv_is_asked_for_torch_only_when_pip_finds_none(setup: Setup) -> None:
    assert not any("uv" in line.split() for line in setup("run"))
    (setup.root / "constraints.txt").write_text("changed")
    setup.fails = lambda command: command[-2:] == ["install", "torch"]
    lines = setup("run")
    assert [line.split()[-1] for line in lines] == ["torch", "uv", "torch", "."]
    assert "--torch-backend=cpu --constraints constraints.txt" in lines[2]


def test_no_torch_at_all_is_one_sentence(setup: Setup) -> None:
    setup.fails = lambda command: command[-1] == "torch"
    with pytest.raises(SystemExit, match=r"^moonlet: could not install PyTorch, CPU build;"):
        setup("run")


def test_gpu_packages_are_refused(setup: Setup) -> None:
    info = setup.root / ".venv/lib/python3/site-packages/nvidia_cublas-13.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-cublas\nVersion: 13\n")
    with pytest.raises(SystemExit, match=r"GPU packages.*\(nvidia-cublas\)"):
        setup("run")
    assert not (setup.root / ".venv/moonlet-ready").exists()


def test_a_missing_compiler_is_named(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(setup.root))
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler found: install"):
        setup("run")


def test_a_second_make_waits_for_the_first(setup: Setup) -> None:
    setup("run")
    with (setup.root / "build/setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [sys.executable, setup.script, "run"], stderr=subprocess.PIPE, text=True
        )
        assert second.stderr is not None
        with second.stderr:
            assert second.stderr.readline() == "waiting for another make that is setting up .venv\n"
            assert second.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert second.wait() == 0
