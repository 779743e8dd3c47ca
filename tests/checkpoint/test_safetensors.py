"""Our container against the original library, both ways, and its promises about memory and laziness."""

import mmap
from functools import partial
from pathlib import Path

import pytest
import torch

from moonlet.checkpoint.safetensors import TORCH_TYPES, SafetensorsFile
from moonlet.checkpoint.safetensors_write import Piece, split_into_shards, write_safetensors
from moonlet.errors import CheckpointError
from tests.checkpoint.tiny import edit_header

original = pytest.importorskip("safetensors.torch")


def every_type() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {name: torch.randn(3, 5).to(dtype) for name, dtype in TORCH_TYPES.items()}
    return {**tensors, "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5)}


def piece(name: str, tensor: torch.Tensor) -> Piece:
    return Piece(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def as_bits(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


def test_reads_what_the_original_library_writes(tmp_path: Path) -> None:
    tensors = every_type()
    original.save_file(tensors, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        ours = file.tensor(file.entries[name])
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
        assert as_bits(ours) == as_bits(tensor)


def test_the_original_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = every_type()
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [piece(name, tensor) for name, tensor in tensors.items()])
    theirs = original.load_file(path)
    assert theirs.keys() == tensors.keys()
    assert all(as_bits(theirs[name]) == as_bits(tensor) for name, tensor in tensors.items())
    for entry in SafetensorsFile(path).entries.values():
        assert entry.begin % entry.torch_dtype.itemsize == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_tensor_is_a_private_view_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [piece("x", torch.zeros(4))])
    before = path.read_bytes()
    file = SafetensorsFile(path)
    view, again = file.tensor(file.entries["x"]), file.tensor(file.entries["x"])
    assert view.data_ptr() == again.data_ptr()
    view += 1  # writable, without touching the file
    assert again.tolist() == [1, 1, 1, 1]
    assert path.read_bytes() == before


def test_opening_maps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [piece("x", torch.zeros(4))])
    monkeypatch.delattr(mmap, "mmap")
    assert SafetensorsFile(path).entries["x"].shape == (4,)


def test_released_pages_read_the_same_again(tmp_path: Path) -> None:
    values = torch.arange(100_000, dtype=torch.float32)
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [piece("before", torch.ones(3)), piece("x", values)])
    file = SafetensorsFile(path)
    file.tensor(file.entries["before"]).fill_(7)
    file.release(file.entries["x"])
    assert torch.equal(file.tensor(file.entries["x"]), values)
    assert file.tensor(file.entries["before"]).tolist() == [7, 7, 7]


def test_an_odd_offset_is_copied_into_place(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [piece("x", torch.tensor([1.5, -2.0]))])
    edit_header(path, lambda header: header.update(__metadata__={"pad": "y"}))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    odd = (
        (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    )
    for data in (content, odd):  # one of the two is not a multiple of four
        path.write_bytes(data)
        file = SafetensorsFile(path)
        tensor = file.tensor(file.entries["x"])
        assert tensor.tolist() == [1.5, -2.0]
        assert tensor.data_ptr() % 4 == 0


def test_a_truncated_file_still_names_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [piece(name, torch.ones(8)) for name in "abc"])
    path.write_bytes(path.read_bytes()[:-40])
    file = SafetensorsFile(path)
    assert [name for name, entry in file.entries.items() if entry.is_truncated] == ["b", "c"]
    assert file.tensor(file.entries["a"]).tolist() == [1] * 8
    with pytest.raises(CheckpointError, match="b lies beyond the end"):
        file.tensor(file.entries["b"])


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [piece("x", torch.ones(3))])
    before = path.read_bytes()

    def interrupted() -> torch.Tensor:
        raise KeyboardInterrupt

    pieces = [piece("x", torch.zeros(3)), Piece("y", torch.float32, (3,), interrupted)]
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, pieces)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_are_made_one_at_a_time(tmp_path: Path) -> None:
    alive: list[str] = []

    def load(name: str) -> torch.Tensor:
        alive.append(name)
        return torch.zeros(2)

    pieces = [Piece(name, torch.float32, (2,), partial(load, name)) for name in "abc"]
    assert not alive
    write_safetensors(tmp_path / "a.safetensors", pieces)
    assert alive == ["a", "b", "c"]


def test_shards_are_filled_in_order_and_groups_stay_together() -> None:
    groups = [[piece(f"{i}{part}", torch.zeros(2)) for part in "xy"] for i in range(5)]
    shards = split_into_shards(groups, max_bytes=40)  # two groups of 16 bytes
    assert [[p.name for p in shard] for shard in shards] == [
        ["0x", "0y", "1x", "1y"],
        ["2x", "2y", "3x", "3y"],
        ["4x", "4y"],
    ]
    assert len(split_into_shards(groups, max_bytes=1)) == 5
