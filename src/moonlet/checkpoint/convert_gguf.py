"""The plan of a GGUF model: which tensor becomes which type, and the jobs that write it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moonlet.checkpoint.gguf_rows import to_gguf
from moonlet.checkpoint.gguf_write import ALIGNMENT, TensorInfo, _start
from moonlet.checkpoint.parts import (
    Importance,
    Part,
    Source,
    Wish,
    jobs_of,
    no_importance,
    stored_type,
)
from moonlet.checkpoint.resume import Job, Output
from moonlet.checkpoint.stored import StoredMatrix
from moonlet.checkpoint.transcode import from_values
from moonlet.config import TensorSpec, tensor_specs
from moonlet.config.gguf_tensors import GgufSlot, forms_of
from moonlet.quant.types import TYPES

# llama.cpp's numbers for a file of mostly one type (llama_ftype); they inform people only.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12,
    "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ1_S": 24,
    "IQ4_NL": 25, "IQ3_S": 26, "IQ2_S": 28, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37,
    "MXFP4": 38,
}  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """A tensor of the file to be; `kind` is what it is encoded as, where INT4 is written as Q4_0."""

    spec: TensorSpec
    slot: GgufSlot
    kind: str

    @property
    def info(self) -> TensorInfo:
        kind = "Q4_0" if self.kind == "INT4" else self.kind
        return TensorInfo(self.slot.name, self.slot.shape, kind)


def gguf_tensors(source: Source, wish: Wish, *, is_vision: bool) -> list[Placed]:
    """What the model's file, or with `is_vision` the vision file, will hold."""
    return [
        Placed(spec, slot, _kind(source, wish, spec, slot))
        for spec in tensor_specs(source.config)
        if (spec.part in ("vision", "projector")) == is_vision
        for slot in forms_of(spec, source.config)[0]
    ]


def file_type(tensors: list[Placed], wish: Wish) -> int:
    """What the metadata say of the types: the mix's own number, else the type with the most values."""
    if wish.mix is not None:
        return wish.mix.file_type
    values: dict[str, int] = {}
    for placed in tensors:
        kind = placed.info.type
        values[kind] = values.get(kind, 0) + math.prod(placed.slot.shape)
    return FILE_TYPES.get(max(values, key=lambda kind: values[kind]), 0)


def gguf_output(
    source: Source,
    name: str,
    metadata: Mapping[str, Any],
    tensors: list[Placed],
    importance: Importance = no_importance,
) -> Output:
    """The file `name` with its jobs."""
    start = _start(metadata, [placed.info for placed in tensors])
    offset, jobs = len(start), []
    for placed in tensors:
        jobs += _jobs(source, placed, offset, importance)
        offset += -(-placed.info.size_bytes // ALIGNMENT) * ALIGNMENT
    return Output(name, start, offset, jobs)


def _kind(source: Source, wish: Wish, spec: TensorSpec, slot: GgufSlot) -> str:
    if slot.float32 or spec.float32 or len(slot.shape) == 1:
        return "F32"
    rows, cols = slot.shape[-2], slot.shape[-1]
    if wish.mix is not None:
        kind = wish.mix.type_for(spec.name, rows, cols)
    else:
        kind = stored_type(source, spec, slot.block)
    if kind in ("BF16", "F16") or (kind == "F32" and wish.mix is None):
        return wish.dtype or kind
    # INT4 values have 11 bits at most, which is what F16 keeps.
    return (wish.dtype or "F16") if kind == "INT4" and cols % TYPES["Q4_0"].values else kind


def _jobs(source: Source, placed: Placed, offset: int, importance: Importance) -> Iterator[Job]:
    parts = list(_parts(source, placed))
    size = placed.info.size_bytes // len(parts)
    for index, part in enumerate(parts):
        weights = partial(importance, placed.slot.name, index, part.cols)
        at = offset + index * size
        yield from jobs_of(placed.spec.name, part, placed.kind, at, importance=weights)


def _parts(source: Source, placed: Placed) -> Iterator[Part]:
    """The matrices that a tensor of the file consists of, one for each expert or head where it is a stack."""
    spec, slot = placed.spec, placed.slot
    rows, cols = math.prod(slot.shape[:-1]), slot.shape[-1]
    is_stack = len(slot.shape) == 3 and spec.part in ("experts", "attention")
    count = slot.shape[0] if is_stack else 1
    load = source.matrix
    try:
        if spec.part in ("vision", "projector") or len(slot.shape) == 1:
            raise KeyError(spec.name)
        load(spec.name, 0 if is_stack else None, slot.block)
    except KeyError:  # the source stores it in another shape, or it is small
        yield Part(rows, cols, partial(_reshaped, source, spec, slot))
        return
    for index in range(count):
        part = partial(load, spec.name, index if is_stack else None, slot.block)
        yield Part(rows // count, cols, part)


def _reshaped(source: Source, spec: TensorSpec, slot: GgufSlot) -> StoredMatrix:
    values = to_gguf(source.tensor(spec.name, torch.float32), spec, slot, source.config)
    rows: NDArray[np.float32] = values.contiguous().view(-1, slot.shape[-1]).numpy()
    return from_values(rows, "F32")
