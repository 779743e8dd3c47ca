"""Opening a GGUF model: its configuration, and its tensors decoded or as they are stored."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from moonlet.checkpoint.check import Problems
from moonlet.checkpoint.convert_layout import blocks_of
from moonlet.checkpoint.gguf import GgufFile, GgufTensor, open_parts
from moonlet.checkpoint.gguf_config import config_from_gguf
from moonlet.checkpoint.gguf_rows import from_gguf
from moonlet.checkpoint.gguf_tokenizer import vocabulary_from_gguf
from moonlet.checkpoint.gguf_vision import find_mmproj, preprocessor_from_gguf, vision_from_gguf
from moonlet.checkpoint.stored import StoredMatrix
from moonlet.checkpoint.untrusted import shown
from moonlet.config import TensorSpec, tensor_specs
from moonlet.config.gguf_tensors import Form, GgufSlot, forms_of, is_left_out
from moonlet.config.tensors import Part
from moonlet.errors import CheckpointError, ConfigError, NotSupportedError, TokenizerError
from moonlet.quant import decode

_TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_VALUES = 1 << 22  # decoded at a time: 16 MB of float32
_LEAST_TENSORS = 9  # of a layer, so that a claim of many layers is known to be wrong at once


class GgufCheckpoint:
    """An open GGUF model: `config`, `metadata`, and the tensors of all its files.

    The vision file is `mmproj`, or the one that `find_mmproj` sees beside the model. Raises
    CheckpointError, ConfigError or NotSupportedError when there is nothing to open; what is wrong with
    single tensors is left to `validate`.
    """

    def __init__(self, path: Path, mmproj: Path | None = None) -> None:
        self.path = path
        self._files = open_parts(path)
        self.metadata = self._files[0].metadata
        vision, self._vision_metadata = None, {}
        mmproj = mmproj or find_mmproj(path)
        if mmproj is not None:
            file = GgufFile(mmproj)
            self._vision_metadata = file.metadata
            with _told_of(mmproj):
                vision = vision_from_gguf(file.metadata)
            self._files.append(file)
        with _told_of(path):
            config = config_from_gguf(self.metadata, vision)
        self._tensors = {name: t for file in self._files for name, t in file.tensors.items()}
        blocks = config.num_hidden_layers + (vision.vt_num_hidden_layers if vision else 0)
        if len(self._tensors) < _LEAST_TENSORS * blocks:
            raise CheckpointError(
                f"{path} has {len(self._tensors)} tensors, too few for {blocks} layers"
            )
        self.config = replace(config, dtype=self._dtype())
        self._specs = {spec.name: spec for spec in tensor_specs(self.config)}
        self._forms = {spec.name: self._form(spec) for spec in self._specs.values()}
        self._problems: Problems | None = None
        self._lent: set[str] = set()  # what was given out as a view of the memory map

    @property
    def chat_template(self) -> str | None:
        """The template in Jinja that the file carries."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    def vocabulary(self) -> tuple[list[bytes], dict[str, int]]:
        """The tokens in order of rank and the ids of the special ones, as `chat.Tokenizer` takes them.

        Raises NotSupportedError or TokenizerError when it is not Kimi's vocabulary, or damaged.
        """
        with _told_of(self.path):
            return vocabulary_from_gguf(self.metadata)

    @property
    def preprocessor(self) -> dict[str, object] | None:
        """What the vision file says of image sizes, spelled as in a preprocessor_config.json."""
        if self.config.vision is None:
            return None
        return preprocessor_from_gguf(self._vision_metadata, self.config.vision)

    @property
    def is_quantized(self) -> bool:
        """Whether any tensor is stored in less than floats."""
        return any(tensor.type.name not in _TORCH_TYPES for tensor in self._tensors.values())

    @property
    def paths(self) -> list[Path]:
        """The files of the model, its vision file last."""
        return [file.path for file in self._files]

    def bytes_by_part(self) -> dict[Part, dict[str, int]]:
        """Bytes of each part of the network by the type they are stored in. Validates first."""
        self.validate()
        found: dict[Part, dict[str, int]] = {}
        for spec in self._specs.values():
            types = found.setdefault(spec.part, {})
            for tensor in self._stored(spec.name).values():
                size = tensor.end - tensor.begin
                types[tensor.type.name] = types.get(tensor.type.name, 0) + size
        return found

    def validate(self) -> None:
        """Raises one CheckpointError that lists every tensor that is missing, unknown or misshaped."""
        if self._problems is None:
            self._problems = self._compare()
        self._problems.raise_if_any(self.path)

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the model under its canonical name, decoded, in the order of the network.

        In `dtype`, without one in that of the configuration. What is stored like that already is a view of
        the memory map, private to this process; everything else is new memory, and the pages it came from
        are given back. Validates first; raises CheckpointError.
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
        """One matrix of the canonical tensor `name` as the file stores it.

        From a stack of experts `expert` takes one, and `block` "gate" or "up" its half of gate_up_proj; of
        kv_b `block` "k" or "v" and `expert` give one head (see gguf_tensors). Validates first. Raises KeyError
        for a name or a block that the file does not store as one matrix.
        """
        self.validate()
        stored = self._stored(name)
        key = (name, expert, block)
        spec, rows = self._specs[name], slice(None)
        if None in stored and expert is not None and block is not None:
            rows, block = blocks_of(spec).get(block), None  # gate above up in one stack
        if rows is None or block not in stored or (".wqkv." in name and None in stored):
            raise KeyError(key)
        tensor = stored[block]
        wanted = 2 if expert is None else 3
        if len(tensor.shape) != wanted or not 0 <= (expert or 0) < tensor.shape[0]:
            raise KeyError(key)
        self._lent.add(name)
        data = tensor.blocks() if expert is None else tensor.blocks()[expert, rows]
        return StoredMatrix(tensor.type.name, len(data), tensor.shape[-1], data)

    def _dtype(self) -> Literal["bfloat16", "float16", "float32"]:
        """The type of the embedding; bfloat16 when that is quantized, as norms are float32 in any file."""
        embedding = self._tensors.get("token_embd.weight")
        stored = embedding.type.name if embedding else ""
        return "float32" if stored == "F32" else "float16" if stored == "F16" else "bfloat16"

    def _form(self, spec: TensorSpec) -> Form:
        """The form in which the tensor is stored; where there is none, the one that is missed."""
        forms = forms_of(spec, self.config)
        whole = [form for form in forms if all(self._fits(slot) for slot in form)]
        begun = [form for form in forms if any(slot.name in self._tensors for slot in form)]
        return (whole or begun or forms)[0]

    def _fits(self, slot: GgufSlot) -> bool:
        found = self._tensors.get(slot.name)
        # ik_llama.cpp stores the heads of kv_b below each other: the same bytes, one number less.
        rows = math.prod(slot.shape[:-1]), slot.shape[-1]
        wanted = _without_ones(slot.shape), _without_ones(rows) if slot.block else None
        return found is not None and _without_ones(found.shape) in wanted

    def _stored(self, name: str) -> dict[str | None, GgufTensor]:
        """What a file has of a canonical tensor, by block, in the shapes of its form."""
        return {
            slot.block: replace(self._tensors[slot.name], shape=slot.shape)
            for slot in self._forms[name]
        }

    def _compare(self) -> Problems:
        problems = Problems("loaded")
        for form in self._forms.values():
            for slot in form:
                found = self._tensors.get(slot.name)
                if found is None:
                    problems.add("missing", slot.name)
                elif not self._fits(slot):
                    both = f"{slot.name} is {list(found.shape)}, wanted {list(slot.shape)}"
                    problems.add("of the wrong shape", both)
        known = {
            slot.name
            for spec in self._specs.values()
            for form in forms_of(spec, self.config)
            for slot in form
        }
        for name in self._tensors:
            if name not in known and not is_left_out(name, self.config):
                problems.add("unknown", shown(name))
        names = [name for file in self._files for name in file.tensors]
        if len(names) != len(self._tensors):
            problems.add("in both files", "a tensor of the model is in the vision file as well")
        return problems

    def _decoded(self, spec: TensorSpec, dtype: torch.dtype | None) -> torch.Tensor:
        wanted = dtype or getattr(torch, self.config.dtype)
        wanted = torch.float32 if spec.float32 else wanted
        stored = self._stored(spec.name)
        if spec.part == "experts":
            out = torch.empty(spec.shape, dtype=wanted)
            for block, tensor in stored.items():
                rows = slice(None) if block is None else blocks_of(spec)[block]
                for expert, blocks in enumerate(tensor.blocks()):
                    # One by one into their place in the stack: never a second copy of a layer.
                    _fill(out[expert, rows], tensor, blocks)
        else:
            parts = {block: self._values(spec, t, wanted) for block, t in stored.items()}
            out = from_gguf(parts, spec, self.config)
        if spec.name not in self._lent:  # else somebody may have written to these pages
            for tensor in stored.values():
                tensor.release()
        return out

    def _values(self, spec: TensorSpec, tensor: GgufTensor, dtype: torch.dtype) -> torch.Tensor:
        if _TORCH_TYPES.get(tensor.type.name) == dtype and tensor.begin % dtype.itemsize == 0:
            self._lent.add(spec.name)
            count = math.prod(tensor.shape)
            flat = torch.frombuffer(
                tensor.file.mapped, dtype=dtype, count=count, offset=tensor.begin
            )
            return flat.view(tensor.shape)
        out = torch.empty(tensor.shape, dtype=dtype)
        _fill(out, tensor, tensor.blocks())
        return out


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` from its first number above 1 on: llama.cpp does not store a stack of one as a stack."""
    first = next((i for i, size in enumerate(shape[:-1]) if size > 1), len(shape) - 1)
    return shape[first:]


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Puts the name of the file before what is wrong with its metadata."""
    try:
        yield
    except (ConfigError, NotSupportedError, TokenizerError) as error:
        raise type(error)(f"{path}: {error}") from error


def _fill(out: torch.Tensor, tensor: GgufTensor, blocks: NDArray[np.uint8]) -> None:
    """Decode `blocks` [..., row_bytes] of a tensor into `out` [..., cols], a chunk of rows at a time."""
    cols = out.shape[-1]
    out, blocks = out.view(-1, cols), blocks.reshape(-1, blocks.shape[-1])
    step = max(1, _CHUNK_VALUES // cols)
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        out[part].copy_(torch.from_numpy(decode(tensor.type.name, blocks[part])))
