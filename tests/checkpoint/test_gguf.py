"""The GGUF container against the `gguf` package in both directions, and what is refused."""

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from moonlet.checkpoint.gguf import GgufFile, open_parts
from moonlet.checkpoint.gguf_write import GgufWriter, TensorInfo
from moonlet.errors import CheckpointError, NotSupportedError

METADATA: dict[str, Any] = {
    "general.architecture": "deepseek2",
    "a.bool": True,
    "a.whole": 7,
    "a.large": 2**40,
    "a.negative": -3,
    "a.float": 1e-5,
    "a.u8": np.uint8(250),
    "a.i8": np.int8(-5),
    "a.u16": np.uint16(65000),
    "a.i16": np.int16(-6),
    "a.i64": np.int64(-(2**40)),
    "a.f64": np.float64(0.1),
    "a.strings": ["", "Ġword", "x" * 300],
    "a.numbers": np.array([1, -1, 3], np.int32),
    "a.floats": np.array([0.5, 0.25], np.float32),
    "a.flags": np.array([True, False]),
    "a.nothing": np.array([], np.uint64),
}
INFOS = [
    TensorInfo("plain", (3, 5), "F32"),
    TensorInfo("quantized", (2, 4, 64), "Q8_0"),
    TensorInfo("vector", (7,), "F16"),
]


def written(path: Path, seed: int = 0) -> list[bytes]:
    contents = [np.random.default_rng(seed).bytes(info.size_bytes) for info in INFOS]
    with GgufWriter(path, METADATA, INFOS) as writer:
        writer.write(contents[0])
        writer.write(contents[1][:100])  # pieces are as good as the whole
        writer.write(np.frombuffer(contents[1][100:], np.uint8))
        writer.write(np.frombuffer(contents[2], np.float16))
    return contents


def same(ours: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return ours.dtype == wanted.dtype and np.array_equal(ours, wanted)
    return type(ours) is type(wanted) and ours == wanted


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    contents = written(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    assert file.metadata.keys() == METADATA.keys()
    for key, wanted in METADATA.items():
        plain = wanted.item() if isinstance(wanted, np.generic) else wanted
        assert same(file.metadata[key], plain), key
    assert list(file.tensors) == [info.name for info in INFOS]
    for info, content in zip(INFOS, contents, strict=True):
        tensor = file.tensors[info.name]
        assert (tensor.shape, tensor.type.name) == (info.shape, info.type)
        assert tensor.begin % 32 == 0
        assert tensor.blocks().tobytes() == content
        tensor.release()
        assert tensor.blocks().tobytes() == content
    assert file.tensors["quantized"].blocks().shape == (2, 4, 68)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]


def test_the_gguf_package_reads_what_is_written(tmp_path: Path) -> None:
    contents = written(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    for key, wanted in METADATA.items():
        found = reader.fields[key].contents()
        if isinstance(wanted, np.ndarray | list):
            assert list(found) == list(wanted), key
        else:
            assert found == (np.float32(wanted) if key == "a.float" else wanted), key
    kinds = {key: field.types[-1].name for key, field in reader.fields.items() if key[:2] == "a."}
    assert kinds["a.whole"] == "UINT32"
    assert kinds["a.large"] == "UINT64"
    assert kinds["a.negative"] == "INT32"
    assert kinds["a.float"] == "FLOAT32"
    for info, content, found in zip(INFOS, contents, reader.tensors, strict=True):
        assert found.name == info.name
        assert found.tensor_type.name == info.type
        assert tuple(found.shape.tolist()) == info.shape[::-1]
        assert found.data.tobytes() == content


@pytest.mark.parametrize("alignment", [32, 256])
def test_what_the_gguf_package_writes_is_read(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_custom_alignment(alignment)
    writer.add_array("a.strings", ["one", "two"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_float32("a.float", 2.827)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 34), np.uint8)
    writer.add_tensor("values", values)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.metadata["a.strings"] == ["one", "two"]
    assert file.metadata["a.float"] == 2.827
    assert np.array_equal(np.asarray(file.metadata["a.numbers"]), [1, 2, 3])
    assert file.tensors["values"].blocks().tobytes() == values.tobytes()
    assert file.tensors["blocks"].shape == (2, 3, 32)
    assert np.array_equal(file.tensors["blocks"].blocks(), blocks)


def test_the_alignment_of_a_file_counts(tmp_path: Path) -> None:
    for bad in (0, 3, 2**30):
        with (
            GgufWriter(tmp_path / "m.gguf", {"general.alignment": bad}, []),
        ):
            pass
        with pytest.raises(CheckpointError, match="alignment"):
            GgufFile(tmp_path / "m.gguf")


def test_an_unfinished_file_never_appears(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="quantized has not been written"):
        _write_some(path, [bytes(60)])
    with pytest.raises(ValueError, match="too many for plain"):
        _write_some(path, [bytes(61)])
    with pytest.raises(ValueError, match="too many for nothing"):
        _write_some(path, [bytes(info.size_bytes) for info in INFOS] + [b"x"])
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="cannot write"):
        _write_some(tmp_path / "absent" / "m.gguf", [])


def test_a_disk_that_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CheckpointError, match=r"m\.gguf: No space left"):
        written(tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def _write_some(path: Path, contents: list[bytes]) -> None:
    with GgufWriter(path, METADATA, INFOS) as writer:
        for content in contents:
            writer.write(content)


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def start(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return struct.pack("<4sIQQ", magic, version, tensors, keys)


def line(name: str = "t", sizes: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def table(*lines: bytes, data: int = 64) -> bytes:
    content = start(tensors=len(lines)) + b"".join(lines)
    return content + bytes(-len(content) % 32 + data)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "0 bytes"),
    "another format": (b"PK" + bytes(100), "begins with"),
    "version 1": (start(version=1), "version 1"),
    "version 4": (start(version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "countless tensors": (start(tensors=2**63), "claims 9223372036854775808 tensors"),
    "countless keys": (start(keys=2**63), "claims 9223372036854775808 keys"),
    "more keys than bytes": (start(keys=5) + bytes(64), "claims 5 keys"),
    "endless key": (start(keys=1) + struct.pack("<Q", 2**64 - 1) + bytes(16), "too short"),
    "endless string": (
        start(keys=1) + text("k") + struct.pack("<IQ", 8, 2**62) + bytes(8),
        "too short",
    ),
    "endless array": (
        start(keys=1) + text("k") + struct.pack("<IIQ", 9, 12, 2**61) + bytes(8),
        "too short",
    ),
    "countless strings": (
        start(keys=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(8),
        "claims 2305843009213693952 strings",
    ),
    "endless string in an array": (
        start(keys=1) + text("k") + struct.pack("<IIQQ", 9, 8, 1, 2**63) + bytes(8),
        "truncated",
    ),
    "nested array": (
        start(keys=1) + text("k") + struct.pack("<IIQIQ", 9, 9, 1, 4, 0),
        "array of type 9",
    ),
    "unknown type": (start(keys=1) + text("k") + struct.pack("<IQ", 13, 0), "unknown type 13"),
    "half a truth": (start(keys=1) + text("k") + struct.pack("<IB", 7, 2), "truth value"),
    "no UTF-8": (start(keys=1) + struct.pack("<Q", 1) + b"\xff" + bytes(8), "UTF-8"),
    "key twice": (start(keys=2) + (text("k") + struct.pack("<II", 4, 0)) * 2, "twice"),
    "tensor twice": (table(line(), line(offset=32)), "listed twice"),
    "overlap": (table(line("a", (16,)), line("b", (16,), offset=32), data=128), "overlaps"),
    "crooked": (table(line(offset=4)), "multiple of 32"),
    "truncated": (table(line(sizes=(17,))), "truncated"),
    "offset far away": (table(line(offset=2**63)), "truncated"),
    "sizes beyond 64 bits": (table(line(sizes=(2**63, 2**63, 2**63, 2**63))), "truncated"),
    "no size": (table(line(sizes=(8, 0))), "sizes"),
    "no dimension": (table(line(sizes=()) + bytes(8)), "0 dimensions"),
    "five dimensions": (table(line(sizes=(1, 1, 1, 1, 1))), "5 dimensions"),
    "half a block": (table(line(sizes=(33,), kind=8)), "does not fill"),
    "unknown tensor type": (table(line(kind=4)), "tensor type 4"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path, case: str) -> None:
    content, message = DAMAGED[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises((CheckpointError, NotSupportedError), match=message) as caught:
            GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(CheckpointError):
            GgufFile(path)


PARTS = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def split(folder: Path, change: Callable[[int, dict[str, Any]], None] = lambda *_: None) -> None:
    """A model of three parts with a tensor in each, as llama.cpp's splitter lays it out."""
    for number, name in enumerate(PARTS):
        metadata: dict[str, Any] = {"general.architecture": "deepseek2"} if not number else {}
        metadata |= {"split.no": np.uint16(number), "split.count": np.uint16(3)}
        metadata |= {"split.tensors.count": np.int32(3), "name": f"t{number}"}
        change(number, metadata)
        info = TensorInfo(metadata.pop("name"), (4,), "F32")
        with GgufWriter(folder / name, metadata, [info]) as writer:
            writer.write(np.full(4, number, np.float32))


@pytest.mark.parametrize("given", PARTS)
def test_a_split_model_opens_by_any_part(tmp_path: Path, given: str) -> None:
    split(tmp_path)
    parts = open_parts(tmp_path / given)
    assert [list(part.tensors) for part in parts] == [["t0"], ["t1"], ["t2"]]
    assert parts[0].metadata["general.architecture"] == "deepseek2"


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    def expect(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            open_parts(tmp_path / PARTS[0])

    split(tmp_path, lambda number, data: data.update(name="t0") if number == 2 else None)
    expect("t0 is in an earlier part")
    split(tmp_path, lambda _, data: data.update({"split.tensors.count": np.int32(4)}))
    expect("hold 3 tensors, but 4")
    split(tmp_path, lambda number, data: data.update({"split.no": np.uint16(number // 2)}))
    expect("says it is part 0 of 3")
    split(tmp_path, lambda _, data: data.update({"split.count": np.uint16(4)}))
    expect("not named like")
    split(tmp_path)
    (tmp_path / PARTS[1]).unlink()
    expect(f"1 more of its 3 parts beside it, first {PARTS[1]}")
    (tmp_path / PARTS[0]).rename(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="not named like"):
        open_parts(tmp_path / "m.gguf")
