"""Writing a packed folder: rows of a source -> panels of the kernels -> the file of `checkpoint.packed`.

What a packed model computes is what the source computes when it is loaded quantized: every matrix keeps its
type, and floats become Q8_0 unless the user names the type that they shall keep.
"""

import json
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from moonlet import kernels
from moonlet.checkpoint.convert import Conversion, Summary, write_folder
from moonlet.checkpoint.packed import (
    EMBEDDING,
    FILE_NAME,
    PanelSpec,
    packed_metadata,
    padded,
    panel_specs,
    plain_specs,
)
from moonlet.checkpoint.parts import (
    Importance,
    Part,
    Source,
    Wish,
    chunks,
    jobs_of,
    no_importance,
    row_bytes,
    stored_type,
)
from moonlet.checkpoint.resume import Job, Made, Output, Progress
from moonlet.checkpoint.safetensors_write import header_of
from moonlet.checkpoint.stored import StoredMatrix
from moonlet.checkpoint.transcode import FLOATS, Encode, from_values, rows_of, transcode
from moonlet.config import TensorSpec, to_hf
from moonlet.config.gguf_tensors import gguf_name
from moonlet.quant.types import TYPES

PANEL_ROWS = 16
PAGE = 4096
_BLOCKS = ("gate", "up", None)
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def to_packed(conversion: Conversion, workers: int, progress: Progress) -> Summary:
    """Writes the packed folder `target`."""
    output = packed_output(conversion.source, conversion.wish, conversion.importance)
    config = json.dumps(to_hf(conversion.source.config), indent=2) + "\n"
    files = {"config.json": config.encode()}
    return write_folder(conversion, [output], files, workers, progress)


def packed_output(source: Source, wish: Wish, importance: Importance | None) -> Output:
    """The one file of the folder, with its jobs."""
    asked = importance or no_importance
    panels = [_Panels(source, wish, spec, asked) for spec in panel_specs(source.config)]
    plain = [(spec, _plain_type(source, wish, spec)) for spec in plain_specs(source.config)]
    plain.sort(key=lambda pair: -_ITEM_BYTES.get(pair[1], 1))  # aligned to their types
    entries = [(p.spec.name, "U8", p.shape, math.prod(p.shape)) for p in panels]
    types = {p.spec.name: p.types for p in panels}
    for spec, kind in plain:
        if kind in FLOATS:
            entries.append((spec.name, kind, spec.shape, spec.numel * _ITEM_BYTES[kind]))
        else:
            rows, width = spec.shape[0], row_bytes(kind, spec.shape[1])
            entries.append((spec.name, "U8", (rows, width), rows * width))
            types[spec.name] = (kind,)
    lengths = {p.spec.name: p.length for p in panels if not p.spec.is_experts}
    start = header_of(entries, packed_metadata(types, lengths), PAGE)
    jobs: list[Job] = []
    offset = len(start)
    for panel, entry in zip(panels, entries, strict=False):
        jobs += panel.jobs(offset)
        offset += entry[3]
    for (spec, kind), entry in zip(plain, entries[len(panels) :], strict=True):
        jobs += jobs_of(spec.name, _plain_part(source, spec), kind, offset)
        offset += entry[3]
    return Output(FILE_NAME, start, offset, jobs)


class _Panels:
    """One U8 tensor of panels: the types they have, their shape, the jobs that make them."""

    def __init__(self, source: Source, wish: Wish, spec: PanelSpec, importance: Importance) -> None:
        self.source, self.wish, self.spec, self.importance = source, wish, spec, importance
        blocks = _BLOCKS if spec.is_experts else (spec.block,)
        self.blocks = {block: self._kind(block) for block in blocks}
        self.types = tuple(self._panel_type(kind) for kind in self.blocks.values())
        if spec.is_experts:
            gate, up, down = self.types
            one = kernels.Experts(1, spec.cols, spec.rows, gate, up, down)
            self.shape: tuple[int, ...] = (spec.count, one.expert_bytes)
        else:
            self.panel_bytes = kernels.Matrix(self.types[0], 1, spec.cols).nbytes
            self.length = spec.count * -(-spec.rows // PANEL_ROWS) * self.panel_bytes
            self.shape = (padded(self.length),)

    def jobs(self, offset: int) -> Iterator[Job]:
        """The jobs, their bytes from `offset` on."""
        name, kind = self.spec.name, self.types[-1]
        if self.spec.is_experts:
            size = self.shape[1]
            for expert in range(self.spec.count):
                make = partial(self._expert, expert)
                yield Job(name, kind, (offset + expert * size,), size, make)
            return
        for index in range(self.spec.count):
            for rows in chunks(self.spec.rows, self.spec.cols, PANEL_ROWS):
                size = -(-(rows.stop - rows.start) // PANEL_ROWS) * self.panel_bytes
                yield Job(name, kind, (offset,), size, partial(self._rows, index, rows))
                offset += size

    def _expert(self, expert: int, encode: Encode) -> Made:
        gate, up, down = self.types
        packed = kernels.Experts(1, self.spec.cols, self.spec.rows, gate, up, down)
        rounded = 0
        for which, (block, kind) in zip(("gate", "up", "down"), self.blocks.items(), strict=True):
            stored = self.source.matrix(self._canonical(block), expert, block)
            coded = transcode(stored, kind, self._importance(block, expert, stored.cols), encode)
            found, rounded = coded.matrix, rounded + coded.rounded
            packed.pack(0, which, found.type, found.data, found.scale)
        return Made([packed.bytes], rounded)

    def _rows(self, index: int, rows: slice, encode: Encode) -> Made:
        coded = transcode(
            rows_of(self._stored(index), rows),
            self.blocks[self.spec.block],
            self._importance(self.spec.block, index, self.spec.cols),
            encode,
        )
        found = coded.matrix
        packed = kernels.Matrix(self.types[0], found.rows, found.cols)
        packed.pack(found.type, found.data, found.scale)
        return Made([packed.bytes], coded.rounded)

    def _stored(self, index: int) -> StoredMatrix:
        """The matrix, or that of one head."""
        spec, block = self.spec, self.spec.block
        if block is None:
            return self.source.matrix(spec.source.name)
        try:
            return self.source.matrix(spec.source.name, index, block)
        except KeyError:  # stored whole
            whole = self.source.tensor(spec.source.name, torch.float32)
            head = whole.unflatten(0, (spec.count, -1))[index]
            nope = self.source.config.qk_nope_head_dim
            half = head[:nope].T if block == "k" else head[nope:]
            return from_values(half.contiguous().numpy(), "F32")

    def _canonical(self, block: str | None) -> str:
        if not self.spec.is_experts:
            return self.spec.source.name
        return self.spec.name + (".gate_up_proj" if block else ".down_proj")

    def _kind(self, block: str | None) -> str:
        """The type that the values take before they become panels."""
        name = self._canonical(block)
        rows, cols = self.spec.rows, self.spec.cols
        if self.spec.is_experts and block is None:
            rows, cols = cols, rows
        if self.wish.mix is not None:
            kind = self.wish.mix.type_for(name, rows, cols)
        elif self.spec.is_experts:
            kind = self.source.matrix(name, 0, block).type
        else:
            kind = stored_type(self.source, self.spec.source, block)
        return self.wish.dtype or kind if kind in FLOATS else kind

    def _panel_type(self, kind: str) -> str:
        if kind in FLOATS:
            return self.wish.dtype if self.wish.dtype and not self.spec.is_experts else "Q8_0"
        return kernels.panel_type(kind)

    def _importance(self, block: str | None, index: int, cols: int) -> NDArray[np.float32] | None:
        """What a file in llama.cpp's names says of the matrix."""
        name = gguf_name(self._canonical(block))
        if block is not None:
            name = name.replace("gate_up" if self.spec.is_experts else "kv", block)
        return self.importance(name, index, cols)


def _plain_type(source: Source, wish: Wish, spec: TensorSpec) -> str:
    """Floats as they are, vectors in F32; the embedding as stored or as the mix has it."""
    if len(spec.shape) == 1:
        return "F32"
    if spec.name != EMBEDDING:
        kind = stored_type(source, spec)
        return kind if kind in FLOATS else "F32"
    kind = wish.mix.type_for(spec.name, *spec.shape) if wish.mix else stored_type(source, spec)
    if kind == "INT4":
        kind = "Q4_0" if spec.shape[1] % TYPES["Q4_0"].values == 0 else "F16"
    return wish.dtype or kind if kind in FLOATS else kind


def _plain_part(source: Source, spec: TensorSpec) -> Part:
    shape = spec.shape if len(spec.shape) > 1 else (1, *spec.shape)
    rows, cols = math.prod(shape[:-1]), shape[-1]

    def load() -> StoredMatrix:
        if spec.part in ("embedding", "router") and len(spec.shape) == 2:
            return source.matrix(spec.name)
        values = source.tensor(spec.name, torch.float32).contiguous().view(-1, cols)
        return from_values(values.numpy(), "F32")

    return Part(rows, cols, load)
