"""The safetensors container, read lazily and without trust.

    u64 little endian N | N bytes of JSON header | tensors, back to back

Opening a file reads its header only. Tensors are views of a private memory map: nothing is copied,
and writing to one changes the process's memory, never the file. A file that ends too early still
opens, so that a report can name each tensor that lies beyond its end.
"""

import math
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moonlet.checkpoint.safetensors_header import check_length, read_header
from moonlet.checkpoint.untrusted import parse_json_object, shown
from moonlet.errors import CheckpointError

TORCH_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}
_ITEM_BYTES = {name: dtype.itemsize for name, dtype in TORCH_TYPES.items()}
TYPE_NAMES = {dtype: name for name, dtype in TORCH_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: bytes `begin` to `end` of that file, counted from its start."""

    file: "SafetensorsFile"
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_TYPES[self.dtype]

    @property
    def is_truncated(self) -> bool:
        return self.end > self.file.size_bytes


class SafetensorsFile:
    """An open file: `entries` by name, in the order of the data, and the strings of its `metadata`.

    Raises CheckpointError when the header is not a valid one; its message names the file, and the
    first tensor that is described wrongly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # asked first: opening a pipe would wait for ever
                raise CheckpointError(f"{path} is not a regular file")
            self.size_bytes = status.st_size
            with path.open("rb") as file:
                header, data_start = self._read_header(file)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        self.metadata, described = read_header(
            header, str(path), data_start, self.size_bytes, _ITEM_BYTES
        )
        self.entries = {one.name: Entry(self, *one) for one in described}

    def tensor(self, entry: Entry) -> torch.Tensor:
        """The tensor as stored, without a copy: a view of the memory map, which it keeps alive."""
        count = math.prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=entry.torch_dtype)
        buffer, offset = self._mapped(entry), entry.begin
        if offset % entry.torch_dtype.itemsize:  # allowed by the format, not by every kernel
            buffer, offset = bytearray(buffer[entry.begin : entry.end]), 0
        flat = torch.frombuffer(buffer, dtype=entry.torch_dtype, count=count, offset=offset)
        return flat.view(entry.shape)

    def release(self, entry: Entry) -> None:
        """Give back the memory of a tensor that has been copied and is no longer in use.

        Only whole pages that belong to no other tensor are given back, and reading them again works.
        """
        begin = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = entry.end // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped(entry).madvise(mmap.MADV_DONTNEED, begin, length)

    def read_bytes(self, entry: Entry) -> bytes:
        """The bytes of a small tensor, read without mapping or reading ahead."""
        if entry.is_truncated:
            raise CheckpointError(
                f"{self.path}: {shown(entry.name)} lies beyond the end of the file"
            )
        try:
            with self.path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), entry.end - entry.begin, entry.begin)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error

    def _mapped(self, entry: Entry) -> mmap.mmap:
        if entry.is_truncated:
            raise CheckpointError(
                f"{self.path}: {shown(entry.name)} lies beyond the end of the file"
            )
        if self._map is None:
            # Without MAP_NORESERVE the system might refuse a file larger than the free memory,
            # although pages are only taken when they are written to.
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
            try:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(
                        file.fileno(), self.size_bytes, flags, mmap.PROT_READ | mmap.PROT_WRITE
                    )
            except (OSError, ValueError) as error:  # ValueError: the file has shrunk meanwhile
                raise CheckpointError(f"cannot map {self.path} into memory: {error}") from error
        return self._map

    def _read_header(self, file: Any) -> tuple[dict[str, Any], int]:
        if self.size_bytes < 8:
            raise CheckpointError(
                f"{self.path} has {self.size_bytes} bytes, which is no safetensors file"
            )
        length = int.from_bytes(file.read(8), "little")
        check_length(length, self.size_bytes, str(self.path))
        return parse_json_object(file.read(length), f"the header of {self.path}"), 8 + length
