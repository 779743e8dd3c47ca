"""MODEL and a quantization on the command line of the planner."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moonlet import nano
from moonlet.checkpoint import GgufCheckpoint, hub, remote
from moonlet.checkpoint.convert import Conversion, to_gguf
from moonlet.checkpoint.parts import Wish
from moonlet.cli.console import UsageError
from moonlet.cli.plan_model import planned
from moonlet.config import preset, to_hf
from moonlet.errors import CheckpointError, ConfigError
from moonlet.model.packed_file import to_packed
from moonlet.plan.stored import weights_as
from moonlet.quant.mixes import load_mix
from tests.tiny_checkpoint import write_tiny_checkpoint


def test_nothing_is_nano_as_it_lies_here() -> None:
    weights = planned(None)
    files = sum(path.stat().st_size for path in nano.folder().glob("*.safetensors"))
    assert weights.label == "native"
    assert 0.97 * files < weights.total_bytes < files
    assert planned(None, "q4_k_m") == weights_as(weights.config, "q4_k_m")


@pytest.mark.parametrize(
    "quantization", [None, "native", "NATIVE", "q2_k_xl", "3.33bpw", "UD-TQ1_0"]
)
def test_a_preset_and_its_config_json(tmp_path: Path, quantization: str | None) -> None:
    config = preset("kimi-k2.5")
    (tmp_path / "k25.json").write_text(json.dumps(to_hf(config)))
    wanted = weights_as(config, quantization or "native")
    assert planned("kimi-k2.5", quantization) == wanted
    assert planned("random:kimi-k2.5", quantization) == wanted
    from_file = planned(str(tmp_path / "k25.json"), quantization)
    assert (from_file.label, from_file.stored) == (wanted.label, wanted.stored)


def test_folders_and_files(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    native = planned(str(folder))
    assert native == weights_as(native.config)
    gguf = tmp_path / "g" / "Tiny-Q8_0.gguf"
    to_gguf(Conversion(folder, gguf, Wish(load_mix("q8_0"))), 2, lambda done, total: None)
    found = planned(str(gguf))
    assert (found.label, found.stored) == ("Tiny-Q8_0", GgufCheckpoint(gguf).bytes_by_part())
    assert found.stored == planned(str(folder), "q8_0").stored
    assert planned(str(gguf), "bf16").total_bytes == planned(str(folder), "bf16").total_bytes
    # A configuration alone is enough for a plan.
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert planned(str(tmp_path / "bare")).stored == native.stored


def test_a_packed_folder(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    conversion = Conversion(folder, tmp_path / "packed", Wish())
    to_packed(conversion, 2, lambda done, total: None)
    weights = planned(str(tmp_path / "packed"))
    assert weights.label == "packed"
    file = tmp_path / "packed" / "packed.safetensors"
    assert 0.9 * file.stat().st_size < weights.total_bytes < file.stat().st_size


def test_a_repository(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config, asked = preset("kimi-k2"), []

    def look(repository: str, which: str | None) -> remote.RemoteModel:
        asked.append((repository, which))
        if repository == "org/gguf":
            return remote.RemoteModel(config, "K2-Q8_0", {"head": {"Q8_0": 17}})
        return remote.RemoteModel(config, repository, {} if which else {"head": {"bfloat16": 32}})

    monkeypatch.setattr(remote, "stored_on_hub", look)
    assert planned("org/name").stored == {"head": {"bfloat16": 32}}
    assert planned("org/name", "native").label == "native"
    assert planned("org/name", "q8_0") == weights_as(config, "q8_0")
    found = planned("org/gguf", "q8_0")
    assert (found.label, found.stored) == ("K2-Q8_0", {"head": {"Q8_0": 17}})
    names = [("org/name", None), ("org/name", None), ("org/name", "q8_0"), ("org/gguf", "q8_0")]
    assert asked == names
    assert "reading the headers of org/name" in capsys.readouterr().err


def test_a_repository_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("kimi-k2")
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "fetch_config", lambda repository: tmp_path / "config.json")
    assert planned("org/name").stored == weights_as(config).stored
    assert planned("org/name", "q8_0").stored == weights_as(config, "q8_0").stored


def test_what_is_none(tmp_path: Path) -> None:
    for model, quantization, kind in (
        ("kimi-k9", None, UsageError),
        ("kimi-k2.5", "q9", ConfigError),
        (str(tmp_path / "missing.gguf"), None, CheckpointError),
        ("nowhere/missing.gguf", None, CheckpointError),
        ("a" * 5000 + "/b", None, UsageError),
    ):
        with pytest.raises(kind) as error:
            planned(model, quantization)
        assert "\n" not in str(error.value)


def test_a_broken_folder_is_told(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match="truncated"):
        planned(str(folder))


def test_no_torch_for_anything_but_packed_folders(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    gguf = tmp_path / "g" / "m.gguf"
    to_gguf(Conversion(folder, gguf, Wish(load_mix("q8_0"))), 2, lambda done, total: None)
    code = (
        "import sys; from moonlet.cli.plan_model import planned\n"
        "for model in (None, *sys.argv[1:], 'kimi-k2.5'):\n"
        "    planned(model); planned(model, 'q4_k_m')\n"
        "import moonlet.checkpoint.remote\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    call = [sys.executable, "-c", code, str(folder), str(gguf)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
