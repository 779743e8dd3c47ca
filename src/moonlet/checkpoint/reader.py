"""Opening a checkpoint folder and streaming its tensors, decoded, under canonical names."""

from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch

from moonlet.checkpoint.check import Matrix, Parts, compare, sort_into_slots
from moonlet.checkpoint.convert_layout import blocks_of, rows_from_transformers
from moonlet.checkpoint.gguf_reader import GgufCheckpoint
from moonlet.checkpoint.index import weight_files
from moonlet.checkpoint.packed import PackedCheckpoint, is_packed
from moonlet.checkpoint.problems import Problems
from moonlet.checkpoint.safetensors import TYPE_NAMES, SafetensorsFile
from moonlet.checkpoint.stored import StoredMatrix
from moonlet.config import ModelConfig, TensorSpec, load_config, tensor_specs
from moonlet.errors import CheckpointError
from moonlet.quant import bf16, fp8, int4

# What INT4 and FP8 become when the caller asks for nothing else: the type their scales came from.
DECODED_TYPE = torch.bfloat16


def read_config(folder: Path) -> ModelConfig:
    """The configuration of the checkpoint in `folder`, or of a GGUF file.

    Raises CheckpointError when there is none, ConfigError or NotSupportedError when it cannot be used.
    """
    if is_gguf(folder):
        return GgufCheckpoint(folder).config
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json, which a checkpoint needs")
    return load_config(path)


def is_gguf(path: Path) -> bool:
    """Whether `path` is that of a GGUF file, by its name."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def open_checkpoint(folder: Path) -> "Checkpoint | GgufCheckpoint | PackedCheckpoint":
    """Reads the configuration, the index and the headers of a folder; no tensor is touched.

    `folder` may be packed, and it may be a GGUF file, or any part of a split one.

    Raises CheckpointError, ConfigError or NotSupportedError when there is nothing to open; all that is
    wrong with the weights themselves is left to `Checkpoint.validate`.
    """
    if is_gguf(folder):
        return GgufCheckpoint(folder)
    if is_packed(folder):
        return PackedCheckpoint(folder)
    return Checkpoint(folder, read_config(folder), weight_files(folder))


class Checkpoint:
    """An open folder: `config`, and the tensors behind it."""

    def __init__(self, folder: Path, config: ModelConfig, paths: Sequence[Path]) -> None:
        self.folder = folder
        self.config = config
        self.files: list[SafetensorsFile] = []
        self._problems = Problems("loaded")
        self._is_compared = False
        self._specs = {spec.name: spec for spec in tensor_specs(config)}
        self._lent: set[str] = set()  # what was given out as a view of the memory map
        for path in paths:
            try:
                self.files.append(SafetensorsFile(path))
            except CheckpointError as error:
                self._problems.add("unreadable", str(error))
        self._parts = sort_into_slots(self.files, config, self._problems)

    @property
    def is_quantized(self) -> bool:
        """Whether config.json says that weights are stored in less than floats."""
        return self.config.quantization is not None

    def validate(self) -> None:
        """Raises one CheckpointError that lists everything that is wrong with the weights.

        That is every unreadable file, and every tensor that is missing, unknown, stored twice, cut off, or of a
        wrong shape or type. Of the data only the few bytes of INT4 `weight_shape` are read.
        """
        if not self._is_compared:
            compare(self._parts, self.config, self._problems)
            self._is_compared = True
        self._problems.raise_if_any(self.folder)

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the model under its canonical name, in the order of the network.

        In `dtype`; without one as stored, INT4 and FP8 as bfloat16. What is stored in the right type is a
        view of the memory map, private to this process; everything else is new memory, and the pages it
        came from are given back. Validates first; raises CheckpointError.
        """
        self.validate()
        for spec in self._specs.values():
            yield spec.name, self._decoded(spec, dtype)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor of that canonical name, as `tensors` yields it. Raises KeyError for another name."""
        self.validate()
        return self._decoded(self._specs[name], dtype)

    def matrix(
        self, name: str, expert: int | None = None, block: str | None = None
    ) -> StoredMatrix:
        """One matrix of the canonical tensor `name` as the file stores it; FP8 is decoded to BF16.

        From a stack of experts `expert` takes one, and `block` "gate" or "up" its half of gate_up_proj.
        Validates first. Raises KeyError for a name or a block that no file stores as one matrix.
        """
        self.validate()
        parts = self._parts[name]
        stored_block = "down" if expert is not None and block is None else block
        if (expert, stored_block) in parts:
            self._lent.add(name)
            return _stored(parts[expert, stored_block])
        if expert is None or (None, None) not in parts:
            raise KeyError((name, expert, block))
        rows = blocks_of(self._specs[name])[stored_block or "down"]
        self._lent.add(name)
        entry = parts[None, None]["weight"]
        return _plain(entry.file.tensor(entry)[expert, rows])

    def _decoded(self, spec: TensorSpec, dtype: torch.dtype | None) -> torch.Tensor:
        wanted = torch.float32 if spec.float32 else dtype
        return self._tensor(spec, self._parts[spec.name], wanted)

    def _tensor(self, spec: TensorSpec, parts: Parts, dtype: torch.dtype | None) -> torch.Tensor:
        whole = parts.get((None, None))
        stored = reduce(torch.promote_types, {_decoded_type(matrix) for matrix in parts.values()})
        if whole is not None and _is_plain(whole) and dtype in (None, stored):
            self._lent.add(spec.name)
            return whole["weight"].file.tensor(whole["weight"])
        out = torch.empty(spec.shape, dtype=dtype or stored)
        blocks = blocks_of(spec)
        for (expert, block), matrix in parts.items():
            # Experts one by one into their place in the stack: never a second copy of a layer.
            target = out if expert is None else out[expert]
            target = target if block is None else target[blocks[block]]
            _decode_into(target, matrix, self._rotary_heads(block))
            if spec.name not in self._lent:  # else somebody may have written to these pages
                for entry in matrix.values():
                    entry.file.release(entry)
        return out

    def _rotary_heads(self, block: str | None) -> int | None:
        """Heads by which the rows of a vision q or k block are reordered; None for other blocks."""
        if block not in ("q", "k") or self.config.vision is None:
            return None
        return self.config.vision.vt_num_attention_heads


def _is_plain(matrix: Matrix) -> bool:
    return matrix.keys() == {"weight"}


def _decoded_type(matrix: Matrix) -> torch.dtype:
    return matrix["weight"].torch_dtype if _is_plain(matrix) else DECODED_TYPE


def _stored(matrix: Matrix) -> StoredMatrix:
    tensors = {role: entry.file.tensor(entry) for role, entry in matrix.items()}
    if _is_plain(matrix):
        return _plain(tensors["weight"])
    if "weight_packed" in tensors:
        packed, scale = tensors["weight_packed"], tensors["weight_scale"]
        # Scales that bfloat16 cannot hold are nobody's published file; their weights still load exactly.
        if torch.equal(scale.bfloat16().float(), scale.float()):
            rows, cols = tensors["weight_shape"].tolist()
            bits = scale.bfloat16().view(torch.int16).numpy().view(np.uint16)
            return StoredMatrix("INT4", rows, cols, packed.view(torch.uint8).numpy(), bits)
        values = torch.empty(tuple(tensors["weight_shape"].tolist()))
        _decode_into(values, matrix)
        return _plain(values)
    scale = tensors["weight_scale_inv"].float().numpy()
    bits = bf16.from_float32(fp8.decode(tensors["weight"].view(torch.uint8).numpy(), scale))
    return StoredMatrix("BF16", bits.shape[0], bits.shape[1], bits.view(np.uint8))


def _plain(values: torch.Tensor) -> StoredMatrix:
    if values.ndim != 2:
        raise KeyError(f"a tensor of shape {list(values.shape)} is not a matrix")
    rows, cols = values.shape
    data = values.contiguous().view(torch.uint8).numpy()
    return StoredMatrix(TYPE_NAMES[values.dtype], rows, cols, data)


def _decode_into(out: torch.Tensor, matrix: Matrix, rotary_heads: int | None = None) -> None:
    """Write the values of a stored matrix into `out`, in the type of `out`."""
    stored = {role: entry.file.tensor(entry) for role, entry in matrix.items()}
    if _is_plain(matrix):
        values = stored["weight"]
    else:
        direct = out.dtype == torch.float32 and out.is_contiguous()
        values = out if direct else torch.empty(out.shape, dtype=torch.float32)
        if "weight_packed" in stored:
            scale = stored["weight_scale"].float().numpy()
            int4.decode(stored["weight_packed"].numpy(), scale, out.shape[1], values.numpy())
        else:
            scale = stored["weight_scale_inv"].float().numpy()
            fp8.decode(stored["weight"].view(torch.uint8).numpy(), scale, values.numpy())
    if rotary_heads is not None:
        values = rows_from_transformers(values, rotary_heads)
    if values is not out:
        out.copy_(values)
