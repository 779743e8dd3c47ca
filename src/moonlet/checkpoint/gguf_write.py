"""Writing GGUF files tensor by tensor, so that no more than a piece of one has to be in memory.

A file is written beside its final name and renamed when it is whole and on disk; whoever interrupts
the writing finds either the old file or the new one.
"""

import math
import os
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moonlet.checkpoint.gguf import ARRAY, SCALARS, STRING
from moonlet.checkpoint.gguf_config import ARCHITECTURE, config_to_gguf
from moonlet.checkpoint.gguf_tokenizer import vocabulary_to_gguf
from moonlet.config import ModelConfig
from moonlet.errors import CheckpointError
from moonlet.quant.types import type_of

VERSION = 3
QUANTIZATION_VERSION = 2  # of ggml's block formats
ALIGNMENT = 32
_KIND_OF = {dtype: kind for kind, dtype in SCALARS.items()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor to be written: its name in the file, its shape with the rows' length last, its type."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def size_bytes(self) -> int:
        """ValueError when the rows do not fill the blocks of the type."""
        return math.prod(self.shape[:-1]) * type_of(self.type).row_bytes(self.shape[-1])


class GgufWriter:
    """A file in the making: in a `with` statement, `write` the bytes of all tensors in order.

    `metadata` holds Python's own values (a whole number takes 32 bits, 64 if it must, a float 32), or
    scalars and arrays of numpy, which keep their type. Leaving the `with` normally puts the file in its
    place; an error removes it. Raises CheckpointError when the disk refuses.
    """

    def __init__(
        self, path: Path, metadata: Mapping[str, Any], tensors: Sequence[TensorInfo]
    ) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        self._start = _start(metadata, tensors)
        self._tensors = iter(tensors)
        self._name, self._left = "", 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> "GgufWriter":
        try:
            self._file = self._partial.open("xb")
            self._file.write(self._start)
        except OSError as error:
            self._partial.unlink(missing_ok=True)
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}") from error
        return self

    def write(self, data: NDArray[Any] | bytes) -> None:
        """The bytes of the next tensor, or a piece of them. ValueError when they are more than it has."""
        if not self._left:
            info = next(self._tensors, TensorInfo("nothing", (0,), "F32"))
            self._name, self._left = info.name, info.size_bytes
        content = data if isinstance(data, bytes) else np.ascontiguousarray(data).data.cast("B")
        if len(content) > self._left:
            raise ValueError(f"{len(content)} bytes are too many for {self._name}: {self._left}")
        self._put(content)
        self._left -= len(content)
        if not self._left:
            self._put(bytes(-self._position() % ALIGNMENT))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            with self._file:
                if error is None:
                    self._finish(self._file)
            if error is None:
                self._partial.replace(self.path)
        except OSError as failure:
            raise CheckpointError(f"cannot write {self.path}: {failure.strerror}") from failure
        finally:
            self._partial.unlink(missing_ok=True)

    def _finish(self, file: BinaryIO) -> None:
        missing = next(self._tensors, None)
        if self._left or missing:
            name = self._name if self._left else missing and missing.name
            raise ValueError(f"{self.path} is not complete: {name} has not been written")
        file.flush()
        os.fsync(file.fileno())

    def _position(self) -> int:
        assert self._file is not None
        return self._file.tell()

    def _put(self, data: bytes | memoryview) -> None:
        assert self._file is not None, "a GgufWriter writes inside its `with` statement"
        try:
            self._file.write(data)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}") from error


def gguf_metadata(
    config: ModelConfig,
    name: str,
    file_type: int,
    vocabulary: tuple[Sequence[bytes], Mapping[str, int]] | None = None,
    template: str | None = None,
) -> dict[str, Any]:
    """All metadata of a text model's file.

    `file_type` is the number that llama.cpp gives the mix of types; it informs people only. `vocabulary` is
    as in `vocabulary_to_gguf`, `template` the chat template in Jinja. Raises NotSupportedError or
    TokenizerError for what a GGUF file cannot hold.
    """
    values: dict[str, Any] = {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": name,
        "general.file_type": file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
        **config_to_gguf(config),
        "tokenizer.ggml.model": "none",
    }
    if vocabulary is not None:
        values |= vocabulary_to_gguf(*vocabulary)
    if template is not None:
        values["tokenizer.chat_template"] = template
    return values


def _start(metadata: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> bytes:
    """All that stands before the data, padded to the alignment."""
    parts = [struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, content = _value(value)
        parts += [_string(key), struct.pack("<I", kind), content]
    offset = 0
    for info in tensors:
        sizes = info.shape[::-1]
        parts.append(_string(info.name) + struct.pack("<I", len(sizes)))
        parts.append(struct.pack(f"<{len(sizes)}QIQ", *sizes, type_of(info.type).id, offset))
        offset += -(-info.size_bytes // ALIGNMENT) * ALIGNMENT
    start = b"".join(parts)
    return start + bytes(-len(start) % ALIGNMENT)


def _value(value: Any) -> tuple[int, bytes]:
    """The type of a value and its bytes."""
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, list):
        return ARRAY, struct.pack("<IQ", STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        kind = _KIND_OF[value.dtype.newbyteorder("<")]
        return ARRAY, struct.pack("<IQ", kind, value.size) + value.astype(SCALARS[kind]).tobytes()
    number = value if isinstance(value, np.generic) else _number(value)
    kind = _KIND_OF[number.dtype.newbyteorder("<")]
    return kind, number.astype(SCALARS[kind]).tobytes()


def _number(value: bool | int | float) -> np.generic:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    kinds = (np.uint32, np.int32, np.uint64, np.int64)
    return next(k for k in kinds if np.iinfo(k).min <= value <= np.iinfo(k).max)(value)


def _string(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content
