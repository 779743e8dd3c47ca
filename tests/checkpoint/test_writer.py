"""Saving never leaves half a checkpoint and never deletes what is not its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moonlet.checkpoint import open_checkpoint, save_checkpoint
from moonlet.checkpoint.safetensors import SafetensorsFile
from moonlet.errors import CheckpointError
from tests.checkpoint.tiny import TEXT, random_tensors

ROOT = Path(__file__).parents[2]
EMBEDDING = "language_model.model.embed_tokens.weight"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_shards_index_and_extra_files(tmp_path: Path) -> None:
    (tmp_path / "tiktoken.model").write_text("IQ== 0")
    folder = tmp_path / "deep" / "m"
    tensors = random_tensors(TEXT)
    extra = [tmp_path / "tiktoken.model"]
    save_checkpoint(folder, TEXT, tensors, max_shard_bytes=50_000, extra_files=extra)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    sizes = [
        sum(e.end - e.begin for e in SafetensorsFile(path).entries.values()) for path in shards
    ]
    assert index["metadata"]["total_size"] == sum(sizes) == sum(t.nbytes for t in tensors.values())
    assert max(sizes) <= 50_000
    for path in shards:
        assert all(index["weight_map"][name] == path.name for name in SafetensorsFile(path).entries)
    assert (folder / "tiktoken.model").read_text() == "IQ== 0"
    assert os.listdir(tmp_path / "deep") == ["m"]
    assert (folder.stat().st_mode & 0o055) == (tmp_path / "deep").stat().st_mode & 0o055


def test_saving_again_replaces_the_weights_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_checkpoint(folder, TEXT, random_tensors(TEXT), max_shard_bytes=20_000)
    (folder / "tiktoken.model").write_text("kept")
    old = dict(open_checkpoint(folder).tensors())  # views of files that are about to go
    new = {name: tensor + 1 for name, tensor in old.items()}
    save_checkpoint(folder, TEXT, new)
    names = {"config.json", "model.safetensors", "tiktoken.model"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "tiktoken.model").read_text() == "kept"
    ours = dict(open_checkpoint(folder).tensors())
    assert all(torch.equal(ours[name], new[name]) for name in new)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_checkpoint_can_be_saved_over_itself(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tensors = random_tensors(TEXT)
    save_checkpoint(folder, TEXT, tensors)
    save_checkpoint(folder, TEXT, dict(open_checkpoint(folder).tensors()), max_shard_bytes=9000)
    ours = dict(open_checkpoint(folder).tensors())
    assert all(torch.equal(ours[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("when", ["first", "again", "renaming"])
def test_an_interrupted_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder = tmp_path / "m"
    if when != "first":
        save_checkpoint(folder, TEXT, random_tensors(TEXT))
    before = content(tmp_path)
    if when == "renaming":
        rename = Path.rename

        def interrupted(self: Path, target: Path) -> Path:
            if self.suffix == ".partial":
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", interrupted)
    else:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("moonlet.checkpoint.safetensors_write._as_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, TEXT, random_tensors(TEXT, seed=1))
    assert content(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ([] if when == "first" else ["m"])


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*m: No space left on device"):
        save_checkpoint(tmp_path / "m", TEXT, random_tensors(TEXT))
    assert list(tmp_path.iterdir()) == []


def test_an_extra_file_that_is_missing_is_named(tmp_path: Path) -> None:
    extra = [tmp_path / "tiktoken.model"]
    with pytest.raises(CheckpointError, match=r"No such file .*tiktoken.model"):
        save_checkpoint(tmp_path / "m", TEXT, random_tensors(TEXT), extra_files=extra)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(TEXT)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        save_checkpoint(tmp_path / "file", TEXT, tensors)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_text("x")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        save_checkpoint(photos, TEXT, tensors)
    folder = tmp_path / "m"
    save_checkpoint(folder, TEXT, tensors)
    (folder / "optimizer").mkdir()
    with pytest.raises(CheckpointError, match="also holds optimizer"):
        save_checkpoint(folder, TEXT, tensors)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "photos", "m"}


def test_wrong_tensors_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    tensors = random_tensors(TEXT)
    del tensors["language_model.lm_head.weight"]
    tensors[EMBEDDING] = torch.zeros(3)
    tensors["language_model.model.norm.weight"] = torch.zeros(64, dtype=torch.int32)
    tensors["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path / "m", TEXT, tensors)
    message = str(caught.value)
    assert "1 missing (language_model.lm_head.weight)" in message
    assert f"1 of the wrong shape ({EMBEDDING} is [3], wanted [32, 64])" in message
    assert "1 of the wrong type (language_model.model.norm.weight is torch.int32)" in message
    assert "1 unknown (extra)" in message
    assert list(tmp_path.iterdir()) == []


def test_nan_cannot_become_int4(tmp_path: Path) -> None:
    tensors = random_tensors(TEXT)
    name = "language_model.model.layers.1.mlp.experts.down_proj"
    tensors[name][1, 2, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.experts.down_proj, expert 1: a NaN"):
        save_checkpoint(tmp_path / "m", TEXT, tensors, quantize="int4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "model.safetensors", "x.safetensors"]
)
def test_extra_files_cannot_replace_what_is_saved(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{name}.* is written by the save itself"):
        save_checkpoint(tmp_path / "m", TEXT, random_tensors(TEXT), extra_files=[tmp_path / name])
    assert [path.name for path in tmp_path.iterdir()] == [name]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from moonlet.checkpoint import save_checkpoint, writer
from tests.checkpoint.tiny import TEXT, random_tensors

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def rename(self, target, rename=Path.rename):
    return kill() if self.suffix == ".partial" else rename(self, target)

if sys.argv[2] == "writing":
    writer._write_weights = kill
elif sys.argv[2] == "renaming":
    Path.rename = rename
else:
    shutil.rmtree = kill
save_checkpoint(Path(sys.argv[1]), TEXT, random_tensors(TEXT, seed=1))
"""


@pytest.mark.parametrize(
    ("when", "left"),
    [
        ("writing", [".partial", "folder"]),
        ("renaming", [".old", ".partial"]),
        ("deleting", [".old", "folder"]),
    ],
)
def test_the_next_save_clears_up_behind_a_killed_one(
    tmp_path: Path, when: str, left: list[str]
) -> None:
    folder = tmp_path / "m[1]"  # no pattern
    bystander = tmp_path / ".m.0123abcd.old"
    bystander.mkdir()
    save_checkpoint(folder, TEXT, random_tensors(TEXT))
    (folder / "tiktoken.model").write_text("kept")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), when], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    found = {path for path in tmp_path.iterdir() if path != bystander}
    assert sorted("folder" if path == folder else path.suffix for path in found) == left
    for path in found:  # every whole folder among them is a checkpoint
        if (path / "model.safetensors").exists():
            open_checkpoint(path)
    tensors = random_tensors(TEXT, seed=2)
    save_checkpoint(folder, TEXT, tensors)
    assert set(tmp_path.iterdir()) == {folder, bystander}
    assert (folder / "tiktoken.model").read_text() == "kept"
    ours = dict(open_checkpoint(folder).tensors())
    assert all(torch.equal(ours[name], tensors[name]) for name in tensors)


def test_what_a_killed_save_left_is_no_reason_to_refuse_a_new_folder(tmp_path: Path) -> None:
    """Killed while it deleted, then the user moved the folder: the rest of .old is no checkpoint."""
    (tmp_path / ".m.0123abcd.old").mkdir()
    save_checkpoint(tmp_path / "m", TEXT, random_tensors(TEXT))
    assert os.listdir(tmp_path) == ["m"]
