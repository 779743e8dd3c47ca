"""What a user may type for MODEL. No test here uses the network."""

import json
from pathlib import Path
from typing import Any

import pytest

from moonlet.checkpoint import resolve
from moonlet.checkpoint.hub import fetch_config
from moonlet.config import preset, to_hf
from moonlet.errors import CheckpointError, NotSupportedError

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What was fetched: names of single files, then the patterns of a snapshot."""
    calls: list[Any] = []

    def fetch_file(repository: str, name: str) -> str:
        calls.append((repository, name))
        return str(tmp_path / name)

    def fetch_all(repository: str, **patterns: list[str]) -> str:
        calls.append((repository, patterns))
        return "/cache/snapshot"

    (tmp_path / "config.json").write_text(json.dumps(to_hf(preset("tiny"))))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch_all)
    return calls


def test_a_folder_is_itself(tmp_path: Path, downloads: list[object]) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve(str(tmp_path / "org" / "name")) == tmp_path / "org" / "name"
    assert not downloads


def test_a_folder_wins_over_a_repository_of_its_name(
    tmp_path: Path, downloads: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name") == Path("org/name")
    assert not downloads


def test_a_repository_is_fetched_without_code_and_folders(downloads: list[Any]) -> None:
    assert resolve("moonshotai/Kimi-K2.5") == Path("/cache/snapshot")
    config, (repository, patterns) = downloads
    assert config == ("moonshotai/Kimi-K2.5", "config.json")
    assert repository == "moonshotai/Kimi-K2.5"
    files = ["config.json", "model-1.safetensors", "chat_template.jinja", "tiktoken.model", "merges.txt",
             "modeling_kimi.py", "model.bin", "LICENSE", "onnx/config.json", "original/x.safetensors"]  # fmt: skip
    fetched = huggingface_hub.utils.filter_repo_objects(files, **patterns)
    assert list(fetched) == files[:5]


def test_another_network_is_refused_before_its_weights_come(
    downloads: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(NotSupportedError, match="'llama' is another class of network"):
        resolve("org/name")
    assert downloads == [("org/name", "config.json")]


@pytest.mark.parametrize(
    "model",
    ["./missing", "/missing/folder", "~/missing", "a/b/c", "missing", "", "org/", "../a", "C:\\model",
     "org/na me", "org/" + "x" * 200, "x" * 10_000, "nul\0l", "~no-such-user-here/x", "https://huggingface.co/a/b"],
)  # fmt: skip
def test_what_is_no_repository_is_not_looked_up(model: str, downloads: list[object]) -> None:
    with pytest.raises(CheckpointError, match=r"neither a folder|is not a path") as caught:
        resolve(model)
    assert len(str(caught.value)) < 400
    assert not downloads


def test_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        resolve(str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match="there is no file"):
        resolve(str(tmp_path / "kimi.GGUF"))
    (tmp_path / "kimi.GGUF").write_text("x")
    assert resolve(str(tmp_path / "kimi.GGUF")) == tmp_path / "kimi.GGUF"


def http_error(kind: str) -> Exception:
    """An error as the hub raises it, without the response that its constructor asks for."""
    error = getattr(errors, kind)
    return error.__new__(error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error("GatedRepoError"), "accept its terms"),
        (http_error("RepositoryNotFoundError"), "no folder org/name here and no such public repository"),
        (errors.LocalEntryNotFoundError("long\ntext"), "cannot be reached and there is no earlier download"),
        (errors.HFValidationError("bad name\nmore"), "cannot download org/name: bad name"),
        (errors.HfHubHTTPError.__bases__[0]("read timed out"), "cannot download org/name: read timed out"),
        (http_error("RemoteEntryNotFoundError"), "cannot use org/name: it has no config.json"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", ["hf_hub_download", "snapshot_download"])
def test_failures_are_one_sentence(
    function: str,
    error: Exception,
    message: str,
    downloads: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, function, fail)
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve("org/name")
    assert "\n" not in str(caught.value)
    if function == "hf_hub_download":
        with pytest.raises(CheckpointError, match=message):
            fetch_config("org/name")


def test_offline_without_an_earlier_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library, told not to use the network, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="no earlier download"):
        resolve("org/name")
