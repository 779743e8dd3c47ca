"""The packed layout: a model whose matrices are already panels, as the CPU kernels read them.

A folder with config.json, the tokenizer's files and `packed.safetensors`, in this order:

| tensor                              | stored as                                                         |
| ----------------------------------- | ----------------------------------------------------------------- |
| `...mlp.experts`                    | U8 [experts, bytes]: each expert's gate, up and down, 4 KiB aligned |
| every other matrix                  | U8 [bytes]: panels, 64-byte aligned, zeros up to the next         |
| `...kv_b_proj.weight.k`, `.v`       | U8 [bytes]: its halves, one matrix after the other for the heads  |
| norms, router, biases, vision tower | floats, as they were                                              |
| the embedding                       | rows as they were: floats, or U8 [rows, row bytes] of a block type |

`__metadata__` says `format` "moonlet-packed", `layout` (the version of the panels) and, as JSON objects, in
`types` the type of every U8 tensor (one name, or three for the gate, up and down of experts) and in `bytes`
how long the panels of a matrix are without the zeros. Panels cannot be turned back into rows, so that a
packed model is run, never converted.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moonlet.checkpoint.check import FLOATS
from moonlet.checkpoint.problems import Problems
from moonlet.checkpoint.safetensors import Entry, SafetensorsFile
from moonlet.checkpoint.stored import StoredMatrix
from moonlet.checkpoint.untrusted import parse_json_object, shown
from moonlet.config import ModelConfig, TensorSpec, load_config, tensor_specs
from moonlet.config.tensors import Part
from moonlet.errors import CheckpointError, NotSupportedError
from moonlet.quant.types import TYPES

FILE_NAME = "packed.safetensors"
FORMAT = "moonlet-packed"
LAYOUT = "2"  # goes up whenever the kernels' panels change
EXPERT_ALIGNMENT, ALIGNMENT = 4096, 64
EMBEDDING = "language_model.model.embed_tokens.weight"
PANELS = {*TYPES, "INT4", "LEVELS16"}  # the last is what the types with code books become
_MATRIX_PARTS = ("attention", "dense", "shared_experts", "head")


@dataclass(frozen=True)
class Panels:
    """Panels of one matrix, a stack, or a layer's experts: `types` has one name, or gate's, up's and down's."""

    types: tuple[str, ...]
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class PanelSpec:
    """What is packed together: `rows` and `cols` of each of `count` matrices.

    For experts they are those of gate and up; down has them the other way round.
    """

    name: str
    source: TensorSpec
    rows: int
    cols: int
    count: int = 1
    block: str | None = None

    @property
    def is_experts(self) -> bool:
        return self.source.part == "experts"


def panel_specs(config: ModelConfig) -> list[PanelSpec]:
    """Everything that is stored as panels, experts first: they are aligned to pages."""
    specs = list(_panel_specs(config))
    return sorted(specs, key=lambda spec: not spec.is_experts)


def plain_specs(config: ModelConfig) -> list[TensorSpec]:
    """Everything that is stored as it was, the embedding last."""
    kept = [s for s in tensor_specs(config) if s.part not in (*_MATRIX_PARTS, "experts")]
    return sorted(kept, key=lambda spec: spec.name == EMBEDDING)


def _panel_specs(config: ModelConfig) -> Iterator[PanelSpec]:
    for spec in tensor_specs(config):
        if spec.name.endswith("experts.gate_up_proj"):
            name, width = spec.name.removesuffix(".gate_up_proj"), config.moe_intermediate_size
            yield PanelSpec(name, spec, width, config.hidden_size, config.n_routed_experts)
        elif spec.name.endswith("kv_b_proj.weight"):
            heads, rank = config.num_attention_heads, config.kv_lora_rank
            nope, value = config.qk_nope_head_dim, config.v_head_dim
            yield PanelSpec(spec.name + ".k", spec, rank, nope, heads, "k")
            yield PanelSpec(spec.name + ".v", spec, value, rank, heads, "v")
        elif spec.part in _MATRIX_PARTS:
            yield PanelSpec(spec.name, spec, spec.shape[0], spec.shape[1])


def packed_metadata(
    types: Mapping[str, Sequence[str]], lengths: Mapping[str, int]
) -> dict[str, str]:
    """The `__metadata__` of the file: the types of its U8 tensors, the bytes of panels that end in zeros."""
    described = {"types": types, "bytes": lengths}
    texts = {key: json.dumps(value, sort_keys=True) for key, value in described.items()}
    return {"format": FORMAT, "layout": LAYOUT, **texts}


def padded(length: int) -> int:
    """Bytes that panels of `length` bytes take in the file."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def is_packed(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file()


class PackedCheckpoint:
    """An open packed folder. What `packed` and `matrix` return are views of the memory map.

    Raises CheckpointError, ConfigError or NotSupportedError when there is nothing to open; what is wrong
    with single tensors is left to `validate`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = load_config(folder / "config.json")
        self._file = SafetensorsFile(folder / FILE_NAME)
        metadata = self._file.metadata
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{folder / FILE_NAME} does not say that its format is {FORMAT}")
        if metadata.get("layout") != LAYOUT:
            raise NotSupportedError(
                f"{folder} holds panels of layout {shown(repr(metadata.get('layout')))}, and these kernels read "
                f"layout {LAYOUT}: run moonlet convert again on the original model"
            )
        self._types, self._lengths = (
            parse_json_object(metadata.get(key, "").encode(), f"{key} in {folder / FILE_NAME}")
            for key in ("types", "bytes")
        )
        self._is_valid = False

    is_quantized = True

    def validate(self) -> None:
        """Raises one CheckpointError that lists every tensor that is missing, unknown or misshaped.

        How many bytes the panels of a type have is known to the kernels, which refuse any other number.
        """
        if self._is_valid:
            return
        problems, known = Problems("loaded"), set()
        for spec in panel_specs(self.config):
            known.add(spec.name)
            self._compare_panels(spec, problems)
        for spec in plain_specs(self.config):
            known.add(spec.name)
            self._compare_plain(spec, problems)
        for name, entry in self._file.entries.items():
            if name not in known:
                problems.add("unknown", shown(name))
            elif entry.is_truncated:
                problems.add("cut off by the end of the file", shown(name))
        problems.raise_if_any(self.folder)
        self._is_valid = True

    @property
    def paths(self) -> list[Path]:
        """The file with the weights."""
        return [self._file.path]

    def bytes_by_part(self) -> dict[Part, dict[str, int]]:
        """Bytes of each part of the network by type, padding included. Validates first.

        The matrices of an expert lie in one piece: where their types differ, it counts as "Q2_K+Q3_K".
        """
        self.validate()
        parts: dict[str, Part] = {spec.name: spec.source.part for spec in panel_specs(self.config)}
        parts |= {spec.name: spec.part for spec in plain_specs(self.config)}
        found: dict[Part, dict[str, int]] = {}
        for spec in tensor_specs(self.config):  # in the order of the network
            found.setdefault(spec.part, {})
        for name, entry in self._file.entries.items():
            kind = "+".join(dict.fromkeys(self._types_of(name))) or entry.dtype
            types = found[parts[name]]
            types[kind] = types.get(kind, 0) + entry.end - entry.begin
        return found

    def packed(self, name: str) -> Panels:
        """The panels called `name` (see the top of the file). Validates first; KeyError for another name."""
        self.validate()
        data = self._bytes(self._file.entries[name]).reshape(-1)
        return Panels(self._types_of(name), data[: self._lengths.get(name)])

    def matrix(
        self, name: str, expert: int | None = None, block: str | None = None
    ) -> StoredMatrix:
        """The embedding or the router as stored. Raises KeyError for what is no matrix or is packed."""
        self.validate()
        entry = self._file.entries.get(name)
        if entry is None or expert is not None or block is not None or len(entry.shape) != 2:
            raise KeyError((name, expert, block))
        kind = self._types_of(name)[0] if entry.dtype == "U8" else entry.dtype
        rows, cols = next(s.shape for s in plain_specs(self.config) if s.name == name)
        return StoredMatrix(kind, rows, cols, self._bytes(entry).reshape(rows, -1))

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor that is stored as floats. Raises KeyError for another name and for what is packed."""
        self.validate()
        entry = self._file.entries[name]
        if entry.dtype == "U8":
            raise KeyError(name)
        found = self._file.tensor(entry)
        return found if dtype is None else found.to(dtype)

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Always raises NotSupportedError."""
        raise NotSupportedError(
            f"{self.folder} is packed for the CPU kernels, from which no weights can be taken back: use the "
            "model that it was made of"
        )

    def _bytes(self, entry: Entry) -> NDArray[np.uint8]:
        return self._file.tensor(entry).view(torch.uint8).numpy()

    def _types_of(self, name: str) -> tuple[str, ...]:
        """Those of a U8 tensor; none where the file names no texts."""
        entry, found = self._file.entries.get(name), self._types.get(name)
        if entry is None or entry.dtype != "U8" or not isinstance(found, list):
            return ()
        return tuple(found) if all(isinstance(kind, str) for kind in found) else ()

    def _compare_panels(self, spec: PanelSpec, problems: Problems) -> None:
        entry = self._file.entries.get(spec.name)
        if entry is None:
            problems.add("missing", spec.name)
            return
        dimensions, alignment = (2, EXPERT_ALIGNMENT) if spec.is_experts else (1, ALIGNMENT)
        shape = entry.shape
        fits = entry.dtype == "U8" and len(shape) == dimensions and shape[-1] > 0
        if not fits or (spec.is_experts and (shape[0] != spec.count or shape[1] % alignment)):
            problems.add("of the wrong shape", f"{spec.name} is {entry.dtype} {list(shape)}")
        length = self._lengths.get(spec.name)
        is_own = type(length) is int and fits and padded(length) == shape[0]
        if fits and not (length is None if spec.is_experts else is_own):
            problems.add("of an unknown length", spec.name)
        if entry.begin % alignment:
            problems.add("not aligned", f"{spec.name} begins at {entry.begin}")
        kinds = self._types_of(spec.name)
        if len(kinds) != (3 if spec.is_experts else 1) or not set(kinds) <= PANELS:
            problems.add("without a known type", spec.name)

    def _compare_plain(self, spec: TensorSpec, problems: Problems) -> None:
        entry = self._file.entries.get(spec.name)
        if entry is None:
            problems.add("missing", spec.name)
        elif entry.dtype == "U8" and spec.name == EMBEDDING:
            kinds, (rows, cols) = self._types_of(spec.name), spec.shape
            kind = TYPES.get(kinds[0]) if len(kinds) == 1 else None
            if kind is None or cols % kind.values:
                problems.add("without a known type", spec.name)
            elif entry.shape != (rows, kind.row_bytes(cols)):
                problems.add("of the wrong shape", f"{spec.name} is {list(entry.shape)}")
        elif entry.dtype not in FLOATS:
            problems.add("of the wrong type", f"{spec.name} is {entry.dtype}")
        elif entry.shape != spec.shape:
            both = f"{spec.name} is {list(entry.shape)}, wanted {list(spec.shape)}"
            problems.add("of the wrong shape", both)
