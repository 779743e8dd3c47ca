"""Which tensors a GGUF model has, from what stands before the data of its files. Imports no torch."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from moonlet.checkpoint.gguf import GgufFile, GgufTensor, open_parts
from moonlet.checkpoint.gguf_config import config_from_gguf
from moonlet.checkpoint.gguf_vision import find_mmproj, vision_from_gguf
from moonlet.checkpoint.problems import Problems
from moonlet.checkpoint.untrusted import shown
from moonlet.config import TensorSpec, tensor_specs
from moonlet.config.gguf_tensors import Form, GgufSlot, forms_of, is_left_out
from moonlet.config.tensors import Part
from moonlet.errors import CheckpointError, ConfigError, NotSupportedError, TokenizerError

FLOATS = ("F32", "F16", "BF16")
_LEAST_TENSORS = 9  # of a layer, so that a claim of many layers is known to be wrong at once


def open_files(path: Path, mmproj: Path | None = None) -> tuple[list[GgufFile], GgufFile | None]:
    """All parts of the model in `path`, and the vision file `mmproj` or the one beside it. Raises as GgufFile does."""
    files, mmproj = open_parts(path), mmproj or find_mmproj(path)
    return files, None if mmproj is None else GgufFile(mmproj)


class GgufModel:
    """The files of a model, and its vision file when there is one, held against the network they describe.

    Raises CheckpointError, ConfigError or NotSupportedError for files that describe none; what is wrong with
    single tensors is left to `validate`.
    """

    def __init__(
        self, path: Path, files: Sequence[GgufFile], vision_file: GgufFile | None = None
    ) -> None:
        self.path = path
        self.metadata = files[0].metadata
        self._files = [*files]
        vision, self._vision_metadata = None, {}
        if vision_file is not None:
            self._vision_metadata = vision_file.metadata
            with told_of(vision_file.path):
                vision = vision_from_gguf(vision_file.metadata)
            self._files.append(vision_file)
        with told_of(path):
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

    @property
    def is_quantized(self) -> bool:
        """Whether any tensor is stored in less than floats."""
        return any(tensor.type.name not in FLOATS for tensor in self._tensors.values())

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


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` from its first number above 1 on: llama.cpp does not store a stack of one as a stack."""
    first = next((i for i, size in enumerate(shape[:-1]) if size > 1), len(shape) - 1)
    return shape[first:]


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Puts the name of the file before what is wrong with its metadata."""
    try:
        yield
    except (ConfigError, NotSupportedError, TokenizerError) as error:
        raise type(error)(f"{path}: {error}") from error
