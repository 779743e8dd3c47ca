"""Writing safetensors files tensor by tensor, so that no more than one has to be in memory.

A file is written beside its final name and renamed when it is whole and on disk; whoever interrupts
the writing finds either the old file or the new one.
"""

import json
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from moonlet.checkpoint.safetensors import TYPE_NAMES


class Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


AnySized = TypeVar("AnySized", bound=Sized)


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: what the header says about it, and how to get it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, pieces: Sequence[Piece]) -> None:
    """Write `pieces` to `path`, replacing what is there. Raises OSError when the disk does."""
    # Widest types first, as the original library does: then every tensor is aligned to its type.
    ordered = sorted(pieces, key=lambda piece: -piece.dtype.itemsize)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("xb") as file:
            described = [(p.name, TYPE_NAMES[p.dtype], p.shape, p.size_bytes) for p in ordered]
            file.write(header_of(described))
            for piece in ordered:
                file.write(_as_bytes(piece))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def split_into_shards(groups: Sequence[Sequence[AnySized]], max_bytes: int) -> list[list[AnySized]]:
    """Fill shards in order, each at most `max_bytes` unless one group alone is larger.

    The pieces of a group stay together in one shard.
    """
    shards: list[list[AnySized]] = [[]]
    used = 0
    for group in groups:
        size = sum(piece.size_bytes for piece in group)
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1] += group
        used += size
    return shards


def header_of(
    tensors: Sequence[tuple[str, str, Sequence[int], int]],
    metadata: Mapping[str, str] | None = None,
    alignment: int = 8,
) -> bytes:
    """All that stands before the data: its length is a multiple of `alignment`.

    tensors: name, type as the format spells it, shape and bytes of each, in the order of the data.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    begin = 0
    for name, dtype, shape, size_bytes in tensors:
        end = begin + size_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


def _as_bytes(piece: Piece) -> memoryview:
    tensor = piece.load()
    assert tensor.dtype == piece.dtype, piece.name
    assert tensor.shape == piece.shape, piece.name
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data
