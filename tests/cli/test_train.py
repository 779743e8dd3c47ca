"""`moonlet train`: prepares once, trains, exports, goes on; the recipe and the loop have tests of their own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from moonlet import train
from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import ChatRequest, collect
from moonlet.cli.main import main
from moonlet.config import ModelConfig, preset
from moonlet.engine import load
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


def test_interrupted(
    calls: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(_recipe: Any, _folder: Path, report: Callable[[StepReport], None]) -> None:
        report(replace(REPORT, step=9))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", run)
    assert main(["train", "nano", "--out", str(tmp_path / "run")]) == 130
    assert calls == ["prepare"]
    said = capsys.readouterr().err
    assert "going on from step 9" in said
    assert "stopped after step 10; the same command goes on" in said


def test_without_scikit_learn_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["train", "nano", "--out", str(tmp_path / "run")]) == 2
    assert "make setup-dev" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "k3", "--out", "x"])
    assert caught.value.code == 2
    assert "nano" in capsys.readouterr().err


# The ids of nano's special tokens, since the tokenizer is nano's.
TOKENS = {
    name: getattr(preset("nano"), name)
    for name in ("bos_token_id", "eos_token_ids", "pad_token_id", "media_placeholder_token_id")
}


@dataclass(frozen=True)
class TinyRecipe(nano.Recipe):
    """Two steps on a few examples. Ctrl-C is pressed in the first step, where `press` says so."""

    steps: int = 2
    cases_per_step: int = 3
    warmup_steps: int = 1
    decay_steps: int = 1
    config: ModelConfig = field(
        default_factory=lambda: replace(preset("tiny"), vocab_size=1024, **TOKENS)
    )
    press: ClassVar[bool] = False

    def examples(self, step: int) -> Any:
        if step == 0 and self.press:
            os.kill(os.getpid(), signal.SIGINT)
        return super().examples(step)


def test_a_whole_run_with_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is replaced but the sizes: tokenizer, steps, checkpoint, and an answer from it."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(nano, "TOKENIZER_CASES", 300)
    monkeypatch.setattr(nano, "Recipe", TinyRecipe)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", "nano", "--out", str(whole)]) == 0
    monkeypatch.setattr(TinyRecipe, "press", True)
    assert main(["train", "nano", "--out", str(cut)]) == 130
    assert not (cut / "model").exists()
    monkeypatch.setattr(TinyRecipe, "press", False)
    capsys.readouterr()
    assert main(["train", "nano", "--out", str(cut), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (cut / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert document["loss"] == lines[1]["loss"]
    for path in (whole / "model").iterdir():
        assert path.read_bytes() == (cut / "model" / path.name).read_bytes(), path.name
    provider = load(cut / "model", "trained")
    asked = ChatRequest(parse_messages([{"role": "user", "content": "1+1?"}]), max_tokens=3)
    assert asyncio.run(collect(provider.stream(asked))).usage.completion_tokens > 0
    provider.close()
