"""Opening a GGUF model: its configuration, and its tensors decoded or as they are stored."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moonlet.checkpoint.convert_layout import blocks_of
from moonlet.checkpoint.gguf import GgufTensor
from moonlet.checkpoint.gguf_model import GgufModel, open_files, told_of
from moonlet.checkpoint.gguf_rows import from_gguf
from moonlet.checkpoint.gguf_tokenizer import vocabulary_from_gguf
from moonlet.checkpoint.gguf_vision import preprocessor_from_gguf
from moonlet.checkpoint.stored import StoredMatrix
from moonlet.config import TensorSpec
from moonlet.quant import decode

_TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_VALUES = 1 << 22  # decoded at a time: 16 MB of float32


class GgufCheckpoint(GgufModel):
    """An open GGUF model: `config`, `metadata`, and the tensors of all its files.

    The vision file is `mmproj`, or the one that `find_mmproj` sees beside the model. Raises
    CheckpointError, ConfigError or NotSupportedError when there is nothing to open; what is wrong with
    single tensors is left to `validate`.
    """

    def __init__(self, path: Path, mmproj: Path | None = None) -> None:
        super().__init__(path, *open_files(path, mmproj))
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
        with told_of(self.path):
            return vocabulary_from_gguf(self.metadata)

    @property
    def preprocessor(self) -> dict[str, object] | None:
        """What the vision file says of image sizes, spelled as in a preprocessor_config.json."""
        if self.config.vision is None:
            return None
        return preprocessor_from_gguf(self._vision_metadata, self.config.vision)

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


def _fill(out: torch.Tensor, tensor: GgufTensor, blocks: NDArray[np.uint8]) -> None:
    """Decode `blocks` [..., row_bytes] of a tensor into `out` [..., cols], a chunk of rows at a time."""
    cols = out.shape[-1]
    out, blocks = out.view(-1, cols), blocks.reshape(-1, blocks.shape[-1])
    step = max(1, _CHUNK_VALUES // cols)
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        out[part].copy_(torch.from_numpy(decode(tensor.type.name, blocks[part])))
