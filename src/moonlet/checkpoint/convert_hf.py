"""The plan of a Hugging Face folder: floats, and routed experts as floats or in Kimi's native INT4."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from moonlet.checkpoint.convert_layout import blocks_of
from moonlet.checkpoint.index import INDEX_NAME, SINGLE_NAME
from moonlet.checkpoint.names import Slot, file_name
from moonlet.checkpoint.parts import (
    FLOAT_NAMES,
    Part,
    Source,
    Wish,
    jobs_of,
    stored_type,
)
from moonlet.checkpoint.reader import Checkpoint
from moonlet.checkpoint.resume import Job, Made, Output
from moonlet.checkpoint.safetensors_write import header_of, split_into_shards
from moonlet.checkpoint.stored import StoredMatrix
from moonlet.checkpoint.transcode import FLOATS, from_values
from moonlet.checkpoint.writer import MAX_SHARD_BYTES, experts_as_int4
from moonlet.config import ModelConfig, TensorSpec, tensor_specs, to_hf
from moonlet.errors import NotSupportedError
from moonlet.quant import int4

_ITEM_BYTES = {"I64": 8, "I32": 4, "F32": 4, "BF16": 2, "F16": 2}
_TORCH_NAMES = {short: name for name, short in FLOAT_NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) * _ITEM_BYTES[self.type]


@dataclass(frozen=True)
class Matrix:
    """Tensors that are made together: one float tensor, or shape, words and scales of an INT4 matrix."""

    entries: tuple[Entry, ...]
    part: Part

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)


def hf_config(source: Source, wish: Wish) -> ModelConfig:
    """The configuration of the folder to be."""
    dtype = _TORCH_NAMES[wish.dtype] if wish.dtype else source.config.dtype
    quantization = experts_as_int4() if experts_are_int4(source, wish) else None
    return replace(source.config, quantization=quantization, dtype=dtype)  # type: ignore[arg-type]


def hf_outputs(source: Source, wish: Wish) -> list[Output]:
    """The shards. Raises NotSupportedError for a mix that such a folder cannot hold."""
    packed = experts_are_int4(source, wish)
    matrices = [
        matrix
        for spec in tensor_specs(source.config)
        for matrix in _matrices(source, spec, wish, packed)
    ]
    shards = split_into_shards([[matrix] for matrix in matrices], MAX_SHARD_BYTES)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    names = [SINGLE_NAME] if count == 1 else names
    return [_output(name, shard) for name, shard in zip(names, shards, strict=True)]


def hf_files(config: ModelConfig, outputs: Sequence[Output]) -> dict[str, bytes]:
    """config.json and, for several shards, their index."""
    files = {"config.json": _json(to_hf(config))}
    if len(outputs) > 1:
        headers = {output.name: json.loads(output.start[8:]) for output in outputs}
        found = {name: file for file, header in headers.items() for name in header}
        found.pop("__metadata__")
        total = sum(job.size_bytes for output in outputs for job in output.jobs)
        files[INDEX_NAME] = _json(
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(found.items()))}
        )
    return files


def experts_are_int4(source: Source, wish: Wish) -> bool:
    """Whether routed experts go into the folder as INT4: all of them, or none.

    Without a mix they do when all are stored on that grid. Raises NotSupportedError for other mixes.
    """
    specs = tensor_specs(source.config)
    experts = [spec for spec in specs if spec.part == "experts"]
    if wish.mix is None:
        kinds = {stored_type(source, spec, block) for spec in experts for block in _halves(spec)}
        return bool(kinds) and kinds <= {"INT4", "Q4_0"}
    kinds = {wish.mix.type_for(spec.name, *spec.shape[-2:]) for spec in experts}
    others = {
        wish.mix.type_for(spec.name, *spec.shape[-2:])
        for spec in specs
        if spec.part != "experts" and len(spec.shape) > 1
    }
    if (len(kinds | {"INT4"}) > 1 and not kinds <= set(FLOATS)) or not others <= set(FLOATS):
        raise NotSupportedError(
            f"a Hugging Face folder holds floats, and routed experts as INT4: the mix {wish.mix.name} asks for "
            f"{', '.join(sorted(kinds | others))}; take native-int4, or write a .gguf"
        )
    return kinds == {"INT4"}


def _halves(spec: TensorSpec) -> tuple[str | None, ...]:
    return ("gate", "up") if spec.name.endswith("gate_up_proj") else (None,)


def _matrices(source: Source, spec: TensorSpec, wish: Wish, packed: bool) -> Iterator[Matrix]:
    config = source.config
    if spec.part != "experts":
        name = file_name(Slot(spec.name), config, "kimi")
        yield Matrix(
            (Entry(name, _float_type(source, spec, wish), spec.shape),), _part(source, spec)
        )
        return
    for expert in range(spec.shape[0]):
        for block, rows in blocks_of(spec).items():
            slot, shape = Slot(spec.name, expert, block), (rows.stop - rows.start, spec.shape[2])
            half = None if block == "down" else block
            part = Part(*shape, partial(source.matrix, spec.name, expert, half))
            kinds = {"weight_shape": ("I64", (2,)), "weight_packed": ("I32", int4.packed_shape(*shape)),
                     "weight_scale": ("BF16", int4.scale_shape(*shape))}  # fmt: skip
            if not packed:
                kinds = {"weight": (_float_type(source, spec, wish), shape)}
            entries = [
                Entry(file_name(slot._replace(role=role), config, "kimi"), *kind)  # type: ignore[arg-type]
                for role, kind in kinds.items()
            ]
            yield Matrix(tuple(entries), part)


def _float_type(source: Source, spec: TensorSpec, wish: Wish) -> str:
    if spec.float32:
        return "F32"
    if wish.dtype:
        return wish.dtype
    if wish.mix is not None and len(spec.shape) == 2 and spec.part != "router":
        return wish.mix.type_for(spec.name, *spec.shape)
    # A GGUF holds norms and the router in F32 whatever the model's type was.
    kind = stored_type(source, spec, _halves(spec)[0] if spec.part == "experts" else None)
    is_own = isinstance(source, Checkpoint) and kind in FLOATS
    return kind if is_own else FLOAT_NAMES[source.config.dtype]


def _part(source: Source, spec: TensorSpec) -> Part:
    """A tensor that is no stack of experts, as rows of its last dimension."""
    shape = spec.shape if len(spec.shape) > 1 else (1, *spec.shape)
    rows, cols = int(np.prod(shape[:-1])), shape[-1]
    if len(spec.shape) == 2 and spec.part not in ("vision", "projector"):
        try:
            source.matrix(spec.name)
            return Part(rows, cols, partial(source.matrix, spec.name))
        except KeyError:  # stored in pieces
            pass
    return Part(rows, cols, partial(_whole, source, spec.name, cols))


def _whole(source: Source, name: str, cols: int) -> StoredMatrix:
    values = source.tensor(name, torch.float32)
    return from_values(values.contiguous().view(-1, cols).numpy(), "F32")


def _output(name: str, matrices: Sequence[Matrix]) -> Output:
    # Widest types first, as the original library does: then every tensor is aligned to its type.
    entries = sorted(
        chain.from_iterable(matrix.entries for matrix in matrices),
        key=lambda entry: -_ITEM_BYTES[entry.type],
    )
    start = header_of([(e.name, e.type, e.shape, e.size_bytes) for e in entries])
    offsets, end = {}, len(start)
    for entry in entries:
        offsets[entry.name] = end
        end += entry.size_bytes
    jobs = [job for matrix in matrices for job in _jobs(matrix, offsets)]
    return Output(name, start, end, jobs)


def _jobs(matrix: Matrix, offsets: Mapping[str, int]) -> Iterator[Job]:
    first = matrix.entries[0]
    if len(matrix.entries) == 1:
        yield from jobs_of(first.name, matrix.part, first.type, offsets[first.name])
        return
    shape = np.array([matrix.part.rows, matrix.part.cols], np.int64)
    yield Job(first.name, "INT4", (offsets[first.name],), 16, lambda _: Made([shape]))
    _, words, scales = matrix.entries
    yield from jobs_of(words.name, matrix.part, "INT4", offsets[words.name], offsets[scales.name])


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
