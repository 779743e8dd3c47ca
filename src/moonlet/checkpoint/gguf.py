"""The GGUF container, read lazily and without trust.

    "GGUF" | u32 version | u64 tensors | u64 keys | keys and values | tensor table | padding | data

Little endian throughout. Opening a file reads what stands before the data; a tensor's bytes are views of a
private memory map. Every count, length and offset is held against the size of the file before anything is
made of it, so a damaged file costs no more than its own size. A model may be split into several files
(`NAME-00001-of-00003.gguf`), each with a tensor table; the first has all the metadata.

Source: the GGUF specification in ggml's repository (docs/gguf.md).
"""

import math
import mmap
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from moonlet.checkpoint.untrusted import shown
from moonlet.errors import CheckpointError, NotSupportedError
from moonlet.quant.types import BlockType, type_of_id

# What an honest file stays far below: K2.5 has 1,096 tensors and some 60 keys, and 163,840 tokens.
TENSORS_LIMIT = KEYS_LIMIT = 100_000
STRINGS_LIMIT = 4_000_000
ALIGNMENT_LIMIT = 1 << 20
DIMENSIONS_LIMIT = 4

Value = bool | int | float | str | list[str] | NDArray[Any]

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), BOOL: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
_PART_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file: bytes `begin` to `end` of that file. `shape` has the rows' length last."""

    file: "GgufFile"
    name: str
    type: BlockType
    shape: tuple[int, ...]
    begin: int
    end: int

    def blocks(self) -> NDArray[np.uint8]:
        """The stored bytes [..., row_bytes], a view of the memory map."""
        flat = np.frombuffer(self.file.mapped, np.uint8, self.end - self.begin, self.begin)
        return flat.reshape(*self.shape[:-1], -1)

    def release(self) -> None:
        """Give back the memory of whole pages that belong to this tensor alone; they can be read again."""
        begin = -(-self.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = self.end // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.file.mapped.madvise(mmap.MADV_DONTNEED, begin, length)


class MoreNeeded(Exception):
    """The start of a file that was given ends before what it describes; `wanted` bytes are needed at least."""

    def __init__(self, wanted: int) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class GgufFile:
    """An open file: `metadata` by key, `tensors` by name in the order of their table.

    Strings are str, arrays of strings lists, arrays of numbers views of the memory map. Raises
    CheckpointError when the file is damaged or no GGUF, NotSupportedError for versions and tensor types
    that are not read here.
    """

    def __init__(self, path: Path, start: bytes | None = None, size_bytes: int = 0) -> None:
        """Without `start` the file on this machine; with it the file of `size_bytes` that begins so.

        Of the latter the tensors' bytes cannot be had, and MoreNeeded says that `start` is too short.
        """
        self.path = path
        self.mapped: mmap.mmap = _map(path) if start is None else cast(mmap.mmap, start)
        self.size_bytes = len(self.mapped) if start is None else size_bytes
        reader = _Reader(path, self.mapped, self.size_bytes)
        tensors, keys = _read_start(reader)
        self.metadata = _read_metadata(reader, keys)
        self.tensors = self._read_table(reader, tensors)

    def _read_table(self, reader: "_Reader", count: int) -> dict[str, GgufTensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= ALIGNMENT_LIMIT:
            raise reader.error(f"has the alignment {shown(repr(alignment))}, not a number of bytes")
        if alignment & (alignment - 1):
            raise reader.error(f"has the alignment {alignment}, which is not a power of two")
        described = [_read_description(reader) for _ in range(count)]
        data_start = -(-reader.position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in described:
            where = f"{self.path}: tensor {shown(name)}"
            if name in tensors:
                raise CheckpointError(f"{where} is listed twice")
            if offset % alignment:
                raise CheckpointError(
                    f"{where} begins at {offset}, which is not a multiple of {alignment}"
                )
            size = math.prod(shape[:-1]) * kind.row_bytes(shape[-1])
            end = data_start + offset + size
            if end > self.size_bytes:
                raise CheckpointError(
                    f"{where} ends at byte {end}, but the file has {self.size_bytes}: it is truncated"
                )
            tensors[name] = GgufTensor(self, name, kind, shape, end - size, end)
        self._check_overlap(tensors)
        return tensors

    def _check_overlap(self, tensors: dict[str, GgufTensor]) -> None:
        end = 0
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.begin):
            if tensor.begin < end:
                raise CheckpointError(
                    f"{self.path}: tensor {shown(tensor.name)} overlaps the tensor before it"
                )
            end = tensor.end


def open_parts(path: Path) -> list[GgufFile]:
    """The file `path` and, when it is one part of a split model, all parts in order.

    Raises as GgufFile does, and CheckpointError when parts are missing or do not belong together.
    """
    given = GgufFile(path)
    count = given.metadata.get("split.count", 1)
    if count in (0, 1):
        return [given]
    match = _PART_NAME.fullmatch(path.name)
    if match is None or type(count) is not int or int(match[3]) != count:
        raise CheckpointError(
            f"{path} is one of {shown(str(count))} parts but is not named like "
            "NAME-00001-of-00003.gguf; give the parts their original names"
        )
    names = [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path} needs {len(missing)} more of its {count} parts beside it, first {missing[0]}"
        )
    parts = [given if name == path.name else GgufFile(path.with_name(name)) for name in names]
    _check_parts(parts)
    return parts


def _check_parts(parts: list[GgufFile]) -> None:
    for number, part in enumerate(parts):
        found = part.metadata.get("split.no"), part.metadata.get("split.count")
        if found != (number, len(parts)):
            raise CheckpointError(
                f"{part.path} says it is part {shown(str(found[0]))} of {shown(str(found[1]))}, "
                f"not {number} of {len(parts)} (counted from 0)"
            )
    seen: set[str] = set()
    for part in parts:
        twice = seen & part.tensors.keys()
        if twice:
            raise CheckpointError(
                f"{part.path}: tensor {shown(min(twice))} is in an earlier part as well"
            )
        seen |= part.tensors.keys()
    wanted = parts[0].metadata.get("split.tensors.count", len(seen))
    if wanted != len(seen):
        raise CheckpointError(
            f"the parts of {parts[0].path} hold {len(seen)} tensors, but {shown(str(wanted))} are "
            "announced; get the parts again"
        )


class _Reader:
    """Takes values from the start of a file, none of them beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap, size_bytes: int) -> None:
        self.path = path
        self.data = data
        self.size_bytes = size_bytes  # of the file, of which `data` may be the start only
        self.position = 0

    @property
    def size_left(self) -> int:
        return self.size_bytes - self.position

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}")

    def need(self, size: int, what: str) -> int:
        """Passes over `size` bytes and returns where they begin."""
        begin = self.position
        if size > self.size_left:
            raise self.error(
                f"has {self.size_bytes} bytes, which is too short for {what} of {size} bytes at {begin}: "
                "it is truncated or damaged"
            )
        if begin + size > len(self.data):
            raise MoreNeeded(begin + size)
        self.position = begin + size
        return begin

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack_from(layout, self.data, self.need(struct.calcsize(layout), what))

    def string(self, what: str) -> str:
        (length,) = self.unpack("<Q", what)
        begin = self.need(length, what)
        try:
            return self.data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"has {what} at byte {begin} that is not UTF-8") from error

    def strings(self, count: int, what: str) -> list[str]:
        if count > STRINGS_LIMIT or 8 * count > self.size_left:
            raise self.error(
                f"claims {count} strings in {what}, for which the {self.size_left} bytes that are left "
                f"are not enough, or more than the {STRINGS_LIMIT} that are read"
            )
        # The one long loop of opening a file, so it does what `string` does without the calls.
        data, position, size = self.data, self.position, len(self.data)
        length_at = struct.Struct("<Q").unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                begin = position + 8
                position = begin + length_at(data, position)[0]
                if position > size:
                    raise self._ended(position, what)
                found.append(data[begin:position].decode("utf-8"))
        except struct.error as error:
            raise self._ended(position + 8, what) from error
        except UnicodeDecodeError as error:
            raise self.error(f"has no usable text in {what} at byte {position}") from error
        self.position = position
        return found

    def _ended(self, position: int, what: str) -> Exception:
        """What to raise when the data have no byte before `position`."""
        if position <= self.size_bytes:
            return MoreNeeded(position)
        return self.error(f"ends inside {what}: it is truncated or damaged")

    def value(self, kind: int, what: str) -> Value:
        if kind in SCALARS:
            return self._scalar(self.numbers(kind, 1, what))
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise self.error(f"gives {what} the unknown type {kind}")
        kind, count = self.unpack("<IQ", what)
        if kind == STRING:
            return self.strings(count, what)
        if kind not in SCALARS:
            raise self.error(f"has in {what} an array of type {kind}, which is not read here")
        return self.numbers(kind, count, what)

    def numbers(self, kind: int, count: int, what: str) -> NDArray[Any]:
        begin = self.need(count * SCALARS[kind].itemsize, what)
        if kind != BOOL:
            return np.frombuffer(self.data, SCALARS[kind], count, begin)
        flags = np.frombuffer(self.data, np.uint8, count, begin)
        if (flags > 1).any():
            raise self.error(f"has in {what} a truth value that is neither 0 nor 1")
        return flags.view(np.bool_)

    @staticmethod
    def _scalar(numbers: NDArray[Any]) -> Value:
        # 32-bit floats by their shortest spelling: 1e-5 was meant, not 9.999999747378752e-06.
        return float(str(numbers[0])) if numbers.dtype == np.float32 else numbers[0].item()


def _map(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # asked first: opening a pipe would wait for ever
            raise CheckpointError(f"{path} is not a regular file")
        if status.st_size < 24:
            raise CheckpointError(f"{path} has {status.st_size} bytes, which is no GGUF file")
        # Private and writable, so that tensors over it are ordinary ones; NORESERVE, because pages are
        # only taken when somebody writes to them, and the file may be larger than the memory.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), status.st_size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # the file has shrunk meanwhile
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot map {path} into memory: {error}") from error


def _read_start(reader: _Reader) -> tuple[int, int]:
    """The numbers of tensors and of keys."""
    magic, version = reader.unpack("<4sI", "its start")
    if magic != b"GGUF":
        raise reader.error(f"begins with {shown(repr(magic))}, not GGUF: it is no GGUF file")
    if version not in (2, 3):
        big = int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3)
        kind = "of a big-endian machine" if big else f"of version {version}"
        raise NotSupportedError(
            f"{reader.path} is a GGUF file {kind}; versions 2 and 3, little endian, are read: "
            "convert it with a current llama.cpp"
        )
    tensors, keys = reader.unpack("<QQ", "its counts")
    # The shortest key with its value has 13 bytes, the shortest line of the tensor table 32.
    room = reader.size_left
    for count, what, limit, least in (
        (keys, "keys", KEYS_LIMIT, 13),
        (tensors, "tensors", TENSORS_LIMIT, 32),
    ):
        if count > limit or count * least > room:
            raise reader.error(
                f"claims {count} {what}, for which its {room + reader.position} bytes are not enough, "
                f"or more than the {limit} that are read"
            )
    return tensors, keys


def _read_metadata(reader: _Reader, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = reader.string("the name of a key")
        (kind,) = reader.unpack("<I", f"the key {shown(key)}")
        if key in metadata:
            raise reader.error(f"has the key {shown(key)} twice")
        metadata[key] = reader.value(kind, f"the key {shown(key)}")
    return metadata


def _read_description(reader: _Reader) -> tuple[str, BlockType, tuple[int, ...], int]:
    """One line of the tensor table: name, type, shape, offset from the start of the data."""
    name = reader.string("the name of a tensor")
    what = f"the tensor {shown(name)}"
    (dimensions,) = reader.unpack("<I", what)
    if not 1 <= dimensions <= DIMENSIONS_LIMIT:
        raise reader.error(f"gives {what} {dimensions} dimensions, not 1 to {DIMENSIONS_LIMIT}")
    *sizes, number, offset = reader.unpack(f"<{dimensions}QIQ", what)
    if 0 in sizes:
        raise reader.error(f"gives {what} the sizes {sizes}, one of which is 0")
    try:
        kind = type_of_id(number)
    except ValueError as error:
        raise NotSupportedError(f"{reader.path}: {shown(name)}: {error}") from error
    try:
        kind.row_bytes(sizes[0])
    except ValueError as error:
        raise reader.error(f"has in {what} {error}") from error
    return name, kind, tuple(reversed(sizes)), offset
