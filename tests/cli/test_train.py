"""`moonlet train`: prepares once, trains, exports; the recipe and the loop have tests of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moonlet import train
from moonlet.cli.main import main
from moonlet.nano import recipe as nano
from moonlet.train import StepReport

REPORT = StepReport(1, 0.5, 1e-3, 1.0, 10.0, 0, 0.1, 100, 0.2)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command called, in order; nothing is trained."""
    calls: list[str] = []

    def prepare(folder: Path) -> None:
        calls.append("prepare")
        folder.mkdir()
        (folder / nano.FILES[-1]).touch()

    def run(recipe: Any, folder: Path, report: Callable[[StepReport], None]) -> str:
        calls.append(f"run {recipe.folder == folder}")
        report(REPORT)
        return "the model"

    def export(model: str, prepared: Path, folder: Path) -> None:
        calls.append(f"export {model} to {folder.relative_to(prepared)}")

    monkeypatch.setattr(nano, "Recipe", lambda folder: SimpleNamespace(folder=folder, steps=2))
    monkeypatch.setattr(nano, "prepare", prepare)
    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(nano, "export", export)
    return calls


def test_nano(calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "nano", "--out", str(out), "--json"]) == 0
    assert calls == ["prepare", "run True", "export the model to model"]
    document = {"recipe": "nano", "folder": str(out / "model"), "loss": 0.5}
    assert json.loads(capsys.readouterr().out) == document
    assert main(["train", "nano", "--out", str(out)]) == 0
    assert calls[3:] == ["run True", "export the model to model"]  # prepared already
    assert f"moonlet chat {out / 'model'}" in capsys.readouterr().out


def test_interrupted(calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", run)
    assert main(["train", "nano", "--out", str(tmp_path / "run")]) == 130
    assert calls == ["prepare"]


def test_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "k3", "--out", "x"])
    assert caught.value.code == 2
    assert "nano" in capsys.readouterr().err
