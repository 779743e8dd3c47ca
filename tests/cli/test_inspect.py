"""`moonlet inspect`: the published numbers, as a document and as a table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moonlet.checkpoint import open_checkpoint
from moonlet.checkpoint.convert import Conversion, to_gguf
from moonlet.checkpoint.parts import Wish
from moonlet.cli import inspect
from moonlet.cli.main import main
from moonlet.config import preset, tensor_specs, to_hf
from moonlet.model.packed_file import to_packed
from moonlet.quant.mixes import Mix
from tests.shared import SHARED, needs_shared
from tests.tiny_checkpoint import write_tiny_checkpoint

CONFIGS = SHARED / "reference" / "configs"
K25 = CONFIGS / "moonshotai--Kimi-K2.5.json"


def inspected(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["inspect", *argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


@pytest.mark.parametrize("model", ["kimi-k2.5", pytest.param(str(K25), marks=needs_shared)])
def test_k25(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, model)
    parameters, stored = found["parameters"], found["bytes"]
    text = parameters["language_model"]
    assert round(text["total"] / 1e9, 1) == 1026.4
    assert round(text["active"] / 1e9, 1) == 31.7
    assert round(text["active_with_embedding"] / 1e9, 1) == 32.9
    assert round(parameters["vision_tower"] / 1e6, 1) == 416.9
    assert round(parameters["projector"] / 1e6, 1) == 54.3
    assert round(stored["language_model"] / 1e9) == 594
    assert round(stored["total"] / 1e9, 1) == 595.1
    assert found["cache_bytes_per_token"] == 70272
    assert found["context_length"] == 262144
    assert found["files"] is None
    assert sum(sum(part["bytes"].values()) for part in found["parts"].values()) == stored["total"]


def test_the_keys_of_the_document_are_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, "random:tiny")
    assert {key: sorted(value) if isinstance(value, dict) else None for key, value in found.items()} == {
        "model": None,
        "model_type": None,
        "parameters": ["language_model", "projector", "total", "vision_tower"],
        "bytes": ["language_model", "projector", "total", "vision_tower"],
        "bytes_if": ["bfloat16", "int4"],
        "parts": sorted(["attention", "dense", "embedding", "experts", "head", "norm", "projector", "router", "shared_experts", "vision"]),
        "cache_bytes_per_token": None,
        "context_length": None,
        "files": None,
    }  # fmt: skip


@needs_shared
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_published_config(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "Kimi-K3" in path.name:
        assert main(["inspect", str(path)]) == 2
        assert "another class of network" in capsys.readouterr().err
    else:
        assert inspected(capsys, str(path))["parameters"]["total"] > 10**9


@needs_shared
def test_k25_needs_neither_torch_nor_memory() -> None:
    code = (
        "import pathlib, re, resource, sys; from moonlet.cli.main import main; main(sys.argv[1:])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)\n"
        # Linux counts there what the parent had before it started this process.
        "status = pathlib.Path('/proc/self/status')\n"
        "if status.exists(): peak = 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1])\n"
        "assert 'torch' not in sys.modules and peak < 2**30, peak"
    )
    argv = [sys.executable, "-c", code, "inspect", str(K25), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_type"] == "kimi_k25"


def test_a_gguf_needs_no_torch(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    to_gguf(Conversion(source, tmp_path / "g.gguf", Wish()), 2, lambda done, total: None)
    code = (
        "import sys; from moonlet.cli.main import main; main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules"
    )
    argv = [sys.executable, "-c", code, "inspect", str(tmp_path / "g.gguf"), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "kimi-k2.5"]) == 0
    out = capsys.readouterr().out
    for fact in (
        "1,026.4 B",
        "31.7 B",
        "32.9 B",
        "416.9 M",
        "54.3 M",
        "70,272",
        "594.2 GB",
        "int4",
    ):
        assert fact in out


def test_a_folder_shows_its_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_hf(preset("tiny"))))
    for i in range(2):
        (tmp_path / f"model-{i}.safetensors").write_bytes(bytes(1000))
    found = inspected(capsys, str(tmp_path))
    assert found["files"] == {"count": 2, "bytes": 2000}
    assert found["model"] == tmp_path.name
    assert main(["inspect", str(tmp_path)]) == 0
    assert "2.0 KB in 2" in capsys.readouterr().out


MIX = Mix("test", (("*.experts.down_proj", "Q8_0"), ("*.experts.*", "Q4_0"), ("*", "F16")))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model as m.gguf, with its vision file, and as a packed folder."""
    folder = tmp_path_factory.mktemp("converted")
    source = write_tiny_checkpoint(folder / "source")
    for write, name in ((to_gguf, "m.gguf"), (to_packed, "packed")):
        write(Conversion(source, folder / name, Wish(MIX)), 1, lambda done, total: None)
    return folder


def test_a_gguf_says_how_its_tensors_are_stored(
    converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspected(capsys, str(converted / "m.gguf"))
    published = inspected(capsys, "tiny")
    gate_up, down = (
        sum(spec.numel for spec in tensor_specs(preset("tiny")) if spec.name.endswith(name))
        for name in ("experts.gate_up_proj", "experts.down_proj")
    )
    wanted = {"Q4_0": gate_up * 18 // 32, "Q8_0": down * 34 // 32}
    assert found["parts"]["experts"]["bytes"] == wanted
    assert set(found["parts"]["vision"]["bytes"]) == {"F16", "F32"}
    for part, there in published["parts"].items():
        assert found["parts"][part]["parameters"] == there["parameters"]
    assert {k: v for k, v in found.items() if k in ("parameters", "bytes_if")} == {
        k: v for k, v in published.items() if k in ("parameters", "bytes_if")
    }
    assert found["bytes"]["total"] == sum(
        sum(part["bytes"].values()) for part in found["parts"].values()
    )
    sizes = [path.stat().st_size for path in converted.glob("*.gguf")]
    assert found["files"] == {"count": 2, "bytes": sum(sizes)}
    assert 0 < sum(sizes) - found["bytes"]["total"] < 50_000  # metadata and padding
    assert main(["inspect", str(converted / "m.gguf")]) == 0
    out = capsys.readouterr().out
    assert "Q4_0, Q8_0" in out
    assert f"{sum(sizes) / 1000:,.1f} KB in 2" in out


def test_a_packed_folder_says_how_its_tensors_are_stored(
    converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspected(capsys, str(converted / "packed"))
    [(kinds, size)] = found["parts"]["experts"]["bytes"].items()
    assert (kinds, size % 4096) == ("Q4_0+Q8_0", 0)
    assert list(found["parts"]["attention"]["bytes"]) == ["Q8_0"]  # what floats become
    assert list(found["parts"]) == list(inspected(capsys, "tiny")["parts"])
    held = (converted / "packed" / "packed.safetensors").stat().st_size
    assert found["files"] == {"count": 1, "bytes": held}
    assert 0 < held - found["bytes"]["total"] < 50_000
    assert main(["inspect", str(converted / "packed")]) == 0
    assert "Q4_0+Q8_0" in capsys.readouterr().out


def test_the_name_of_packed_files_is_known(converted: Path) -> None:
    [path] = open_checkpoint(converted / "packed").paths  # type: ignore[union-attr]
    assert path.name == inspect.PACKED


def test_a_damaged_gguf_is_refused(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (converted / "m.gguf").read_bytes()
    for end in (0, 100, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:end])
        assert main(["inspect", str(tmp_path / "cut.gguf")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "alone.gguf").write_bytes(whole)  # without its vision file
    found = inspected(capsys, str(tmp_path / "alone.gguf"))
    assert found["bytes"]["vision_tower"] == 0
    assert found["files"] == {"count": 1, "bytes": len(whole)}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nothing-like-this", "none of the presets"),
        ("random:nothing", "no preset 'nothing'"),
        ("model.gguf", "no file model.gguf"),
        ("missing.json", "cannot read missing.json"),
        ("~no-such-user/x", "no MODEL"),
        ("x" * 5000, "no MODEL"),
        ("\0", "none of the presets"),
        ("", "no config.json"),
    ],
)
def test_what_cannot_be_inspected(
    model: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", model]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
