"""`moonlet convert` and `moonlet imatrix` as a user types them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moonlet import nano
from moonlet.checkpoint import GgufCheckpoint, open_checkpoint
from moonlet.checkpoint.imatrix import ImportanceMatrix
from moonlet.cli.convert import MIXES
from moonlet.cli.main import main
from moonlet.quant.mixes import NAMES

MOONLET = [sys.executable, "-m", "moonlet.cli.main"]


def run(*argv: str | Path) -> int:
    return main([str(arg) for arg in argv])


def test_help_lists_the_mixes_that_there_are() -> None:
    assert MIXES == NAMES


def test_nano_becomes_a_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "nano.gguf"
    assert run("convert", "nano", target, "--mix", "q8_0", "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["files"] == [str(target), str(target.with_name("mmproj-nano.gguf"))]
    assert report["bytes"] == sum(Path(file).stat().st_size for file in report["files"])
    assert report["bytes_by_type"]["Q8_0"] > 2e6
    assert report["groups_rounded"] == 0
    assert "reading nano" in err
    assert run("convert", target, tmp_path / "back") == 0
    assert "wrote" in capsys.readouterr().out
    open_checkpoint(tmp_path / "back").validate()


def test_the_form_follows_the_ending_or_the_flag(tmp_path: Path) -> None:
    assert run("convert", nano.folder(), tmp_path / "p.d", "--to", "packed") == 0
    assert (tmp_path / "p.d" / "packed.safetensors").is_file()
    assert run("convert", nano.folder(), tmp_path / "f16", "--dtype", "f16") == 0
    config = json.loads((tmp_path / "f16" / "config.json").read_text())
    assert config["dtype"] == "float16"


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text('[types]\n"*.experts.*" = "Q4_0"\n"*" = "Q8_0"\n')
    assert run("convert", "nano", tmp_path / "m.gguf", "--mix", table) == 0
    found = open_checkpoint(tmp_path / "m.gguf")
    assert isinstance(found, GgufCheckpoint)
    name = "language_model.model.layers.1.mlp.experts.gate_up_proj"
    assert found.matrix(name, 3, "up").type == "Q4_0"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere", "m.gguf"], "neither a folder here nor a repository"),
        (["nano", "m.bin", "--to", "gguf"], "must end in .gguf"),
        (["nano", "m.gguf", "--mix", "q9"], "is not a mix: name one of native-int4"),
        (["nano", "m", "--mix", "q8_0"], "a Hugging Face folder holds floats"),
        (["nano", "m", "--imatrix", "x.gguf"], "--imatrix has no use"),
        (["nano", "m.gguf", "--imatrix", "x.gguf"], "cannot read x.gguf"),
        (["random:tiny", "m.gguf"], "neither a folder here"),
    ],
)
def test_mistakes_are_one_sentence(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("convert", *argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_half_written_and_says_so(tmp_path: Path) -> None:
    """The same command then goes on, and comes to the bytes of a run that nobody stopped."""
    source = grown(tmp_path / "source")
    target = tmp_path / "m.gguf"
    # A type that takes long to encode, so that there is something to interrupt.
    table = tmp_path / "slow.toml"
    table.write_text('[types]\n"*" = "Q3_K"\n')
    command = [*MOONLET, "convert", str(source), str(target), "--mix", str(table)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".m.gguf.*.partial/m.gguf")):
        assert child.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130
    assert err.endswith("stopped; the same command goes on from there\n")
    assert "Traceback" not in err
    assert not target.exists()
    subprocess.run(command, check=True, capture_output=True)
    assert run("convert", source, tmp_path / "n.gguf", "--mix", table) == 0
    assert target.read_bytes() == (tmp_path / "n.gguf").read_bytes()
    assert not list(tmp_path.glob(".m.gguf.*"))


def grown(folder: Path) -> Path:
    """A text model of 14 million weights."""
    from dataclasses import replace

    from moonlet.checkpoint import save_checkpoint
    from tests.checkpoint.tiny import TEXT, random_tensors

    config = replace(
        TEXT, vocab_size=8192, hidden_size=512, moe_intermediate_size=1024, num_hidden_layers=3
    )
    save_checkpoint(folder, config, random_tensors(config))
    return folder


def test_importance_from_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "t.txt"
    text.write_text("What is 12 + 34? It is 46.\n" * 40)
    out = tmp_path / "im.gguf"
    assert run("imatrix", "nano", text, "-o", out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tokens"] > 500
    assert report["tensors"] == 53
    assert report["matrices_never_asked"] > 0
    found = ImportanceMatrix(out)
    assert found("blk.0.attn_q_a.weight", 0, 160) is not None
    target = tmp_path / "m.gguf"
    assert run("convert", "nano", target, "--mix", "q4_k_m", "--imatrix", out) == 0
    assert run("convert", "nano", tmp_path / "g", "--to", "packed", "--mix", "q8_0",
               "--imatrix", out) == 0  # fmt: skip
    # A GGUF counts the same: its vocabulary and weights are nano's.
    again = tmp_path / "again.gguf"
    assert run("convert", "nano", tmp_path / "f" / "m.gguf", "--dtype", "f32") == 0
    assert run("imatrix", tmp_path / "f" / "m.gguf", text, "-o", again) == 0
    same = ImportanceMatrix(again)
    for name, cols in (("blk.1.ffn_down_shexp.weight", 80), ("output.weight", 160)):
        ours: Any = found(name, 0, cols)
        assert np.allclose(ours, same(name, 0, cols), rtol=1e-3)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_a_text_that_is_none(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "t.txt"
    if content is not None:
        text.write_bytes(content)
    assert run("imatrix", "nano", text, "-o", tmp_path / "im.gguf") == 2
    assert "t.txt" in capsys.readouterr().err
    assert not (tmp_path / "im.gguf").exists()
