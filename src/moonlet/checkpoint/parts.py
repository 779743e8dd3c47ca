"""Stored matrices of a source, cut into jobs of a few million values for the files they go into."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moonlet.checkpoint.gguf_reader import GgufCheckpoint
from moonlet.checkpoint.reader import Checkpoint
from moonlet.checkpoint.resume import Job, Made
from moonlet.checkpoint.safetensors import TYPE_NAMES
from moonlet.checkpoint.stored import StoredMatrix
from moonlet.checkpoint.transcode import Coded, Encode, rows_of, transcode
from moonlet.config import TensorSpec
from moonlet.quant import int4
from moonlet.quant.mixes import Mix
from moonlet.quant.types import TYPES

CHUNK_VALUES = 1 << 22  # of a job: 16 MB of float32
FLOAT_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
Source = Checkpoint | GgufCheckpoint
# Name of a tensor of a GGUF, index of its matrix, columns -> how much these matter, if anything is known.
Importance = Callable[[str, int, int], NDArray[np.float32] | None]


def no_importance(name: str, index: int, cols: int) -> None:
    """Nothing is known."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for: a mix, or None to keep what is stored; the type of what stays float."""

    mix: Mix | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Part:
    """A matrix [rows, cols] that the source stores on its own, found when its turn comes."""

    rows: int
    cols: int
    load: Callable[[], StoredMatrix]


def row_bytes(kind: str, cols: int) -> int:
    """Bytes of a row of `kind`; of INT4 those of the packed words alone. ValueError unless blocks fill it."""
    return 4 * int4.packed_shape(1, cols)[1] if kind == "INT4" else TYPES[kind].row_bytes(cols)


def chunks(rows: int, cols: int, multiple: int = 1) -> Iterator[slice]:
    """Ranges of rows with about CHUNK_VALUES values; all but the last are a `multiple` of rows."""
    step = max(1, CHUNK_VALUES // cols // multiple) * multiple
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def jobs_of(
    name: str,
    part: Part,
    kind: str,
    offset: int,
    scale_offset: int | None = None,
    importance: Callable[[], NDArray[np.float32] | None] = lambda: None,
) -> Iterator[Job]:
    """Jobs that write `part` as `kind`, its rows from `offset` on.

    INT4 has scales, which go to `scale_offset`; with scale_offset None it becomes Q4_0 of the same codes.
    """
    file_kind = "Q4_0" if kind == "INT4" and scale_offset is None else kind
    width, groups = row_bytes(file_kind, part.cols), int4.scale_shape(1, part.cols)[1]

    def make(rows: slice, encode: Encode) -> Made:
        coded = transcode(rows_of(part.load(), rows), kind, importance(), encode)
        if file_kind != kind:
            coded = Coded(transcode(coded.matrix, file_kind).matrix, coded.rounded)
        found = coded.matrix
        arrays = [found.data] if found.scale is None else [found.data, found.scale]
        return Made(arrays, coded.rounded)

    for rows in chunks(part.rows, part.cols):
        offsets, size = (offset + rows.start * width,), (rows.stop - rows.start) * width
        if scale_offset is not None:
            offsets += (scale_offset + rows.start * groups * 2,)
            size += (rows.stop - rows.start) * groups * 2
        yield Job(name, file_kind, offsets, size, partial(make, rows))


def stored_type(source: Source, spec: TensorSpec, block: str | None = None) -> str:
    """How the source stores a tensor or a block of it: a block type, INT4, or the float it is decoded to."""
    expert = 0 if spec.part == "experts" or block in ("k", "v") else None
    try:
        return source.matrix(spec.name, expert, block).type
    except KeyError:
        if block in ("k", "v"):  # the halves of a matrix that is stored whole
            return _as_float(source, stored_type(source, spec))
        if isinstance(source, Checkpoint):
            return TYPE_NAMES[source.tensor(spec.name).dtype]
        return FLOAT_NAMES[source.config.dtype]


def _as_float(source: Source, kind: str) -> str:
    return kind if kind in FLOAT_NAMES.values() else FLOAT_NAMES[source.config.dtype]
