"""Writing a model as a Hugging Face folder: config.json, safetensors shards, their index.

The folder is built beside its final place and renamed when it is complete, so a save that fails or is
interrupted leaves what was there before. Tensors are converted and written one by one.

A process that is killed cannot tidy up, and to replace a folder takes two renames. It may leave, beside
the folder `m` (TAG is eight hexadecimal digits, the same for the two):

| killed while it was | left                                                                       |
| ------------------- | -------------------------------------------------------------------------- |
| writing             | `m` as before, `.m.TAG.partial` incomplete                                 |
| renaming            | no `m`; `.m.TAG.old` is what was there before, `.m.TAG.partial` what is new, both whole |
| deleting            | `m` is what is new, `.m.TAG.old` the rest of what was there before         |

The next save to `m` puts a folder that was caught between the renames back and removes the rest, so two
processes must not save to one folder at once. To use a folder before that, rename it by hand.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from moonlet.checkpoint.convert_layout import blocks_of
from moonlet.checkpoint.index import INDEX_NAME, SINGLE_NAME
from moonlet.checkpoint.names import Naming, Slot, file_name
from moonlet.checkpoint.problems import Problems
from moonlet.checkpoint.safetensors_write import Piece, split_into_shards, write_safetensors
from moonlet.config import ModelConfig, QuantConfig, TensorSpec, preset, tensor_specs, to_hf
from moonlet.errors import CheckpointError
from moonlet.quant import int4

MAX_SHARD_BYTES = 5_000_000_000  # what huggingface_hub recommends for uploads
EMBEDDING = "language_model.model.embed_tokens.weight"


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    naming: Naming = "kimi",
    dtype: torch.dtype | None = None,
    quantize: Literal["int4"] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    extra_files: Iterable[Path] = (),
) -> None:
    """Save `tensors`, by canonical name, as a checkpoint in `folder`.

    `dtype` None keeps every tensor's own type; router biases are float32 in any case. `quantize` packs
    the routed experts. `extra_files` (tokenizer, templates) are copied under their own names. A
    checkpoint that is already in `folder` is replaced, except for such files.

    Raises CheckpointError, before anything is written, when tensors are missing, unknown or misshaped,
    when an extra file has a name that is written here, or when `folder` holds something else than a
    checkpoint; and when the disk refuses.
    """
    folder = Path(os.path.realpath(folder))
    extra_files = list(extra_files)
    _check_tensors(folder, config, tensors)
    _check_extra_files(extra_files)
    _clear_up(folder)
    check_replaceable(folder)
    groups = [
        group
        for spec in tensor_specs(config)
        for group in _groups(spec, tensors[spec.name], config, naming, dtype, quantize)
    ]
    quantization = experts_as_int4() if quantize else None
    type_name = str(dtype or tensors[EMBEDDING].dtype).removeprefix("torch.")
    header = to_hf(replace(config, quantization=quantization, dtype=type_name))  # type: ignore[arg-type]
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        unfinished.mkdir(parents=True)
        write_json(unfinished / "config.json", header)
        _write_weights(unfinished, split_into_shards(groups, max_shard_bytes))
        for path in extra_files:
            shutil.copyfile(path, unfinished / path.name)
        move_into_place(unfinished, folder)
    except OSError as error:
        at = f" ({error.filename})" if error.filename else ""
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}{at}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_tensors(folder: Path, config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    problems = Problems("saved")
    specs = {spec.name: spec for spec in tensor_specs(config)}
    for name, spec in specs.items():
        if name not in tensors:
            problems.add("missing", name)
        elif tensors[name].shape != spec.shape:
            found = f"{name} is {list(tensors[name].shape)}, wanted {list(spec.shape)}"
            problems.add("of the wrong shape", found)
        elif tensors[name].dtype not in (torch.float32, torch.bfloat16, torch.float16):
            problems.add("of the wrong type", f"{name} is {tensors[name].dtype}")
    for name in tensors:
        if name not in specs:
            problems.add("unknown", name)
    problems.raise_if_any(folder)


def _check_extra_files(paths: Iterable[Path]) -> None:
    for path in paths:
        if _is_ours(path):
            raise CheckpointError(
                f"{path} cannot come along: {path.name} is written by the save itself"
            )


def _clear_up(folder: Path) -> None:
    """Remove what killed saves to `folder` left beside it; see the top of the file."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.(old|partial)")
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    left = sorted(path for path in beside if pattern.fullmatch(path.name))
    for path in left:
        if path.suffix == ".old" and path.with_suffix(".partial") in left and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give the name of a folder to write")
    content = list(folder.iterdir()) if folder.exists() else []
    if content and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is not empty and holds no checkpoint: choose another folder"
        )
    for path in content:
        if not path.is_file():
            raise CheckpointError(
                f"{folder} also holds {path.name}, which would be lost: move it away"
            )


def _groups(
    spec: TensorSpec,
    tensor: torch.Tensor,
    config: ModelConfig,
    naming: Naming,
    dtype: torch.dtype | None,
    quantize: Literal["int4"] | None,
) -> Iterator[list[Piece]]:
    """What a canonical tensor becomes in a file; the pieces of a group stay in one shard."""
    dtype = torch.float32 if spec.float32 else dtype or tensor.dtype
    if spec.part != "experts":
        yield [_plain(file_name(Slot(spec.name), config, naming), tensor, dtype)]
        return
    for expert in range(spec.shape[0]):
        for block, rows in blocks_of(spec).items():
            slot, matrix = Slot(spec.name, expert, block), tensor[expert, rows]
            if quantize:
                yield PackedMatrix(slot, matrix).pieces(config, naming)
            else:
                yield [_plain(file_name(slot, config, naming), matrix, dtype)]


def _plain(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> Piece:
    return Piece(name, dtype, tuple(tensor.shape), partial(tensor.to, dtype))


class PackedMatrix:
    """An expert's matrix on its way to INT4: packed when the file asks, its scales kept until they are."""

    def __init__(self, slot: Slot, matrix: torch.Tensor) -> None:
        self.slot = slot
        self.matrix = matrix
        self._scale: torch.Tensor | None = None

    def pieces(self, config: ModelConfig, naming: Naming) -> list[Piece]:
        rows, cols = self.matrix.shape

        def name(role: Any) -> str:
            return file_name(self.slot._replace(role=role), config, naming)

        return [
            Piece(name("weight_shape"), torch.int64, (2,), lambda: torch.tensor([rows, cols])),
            Piece(name("weight_packed"), torch.int32, int4.packed_shape(rows, cols), self._packed),
            Piece(name("weight_scale"), torch.bfloat16, int4.scale_shape(rows, cols), self._scales),
        ]

    def _packed(self) -> torch.Tensor:
        try:
            packed, scale = int4.encode(self.matrix.detach().float().cpu().numpy())
        except ValueError as error:
            raise CheckpointError(
                f"{self.slot.name}, expert {self.slot.expert}: {error}"
            ) from error
        self._scale = torch.from_numpy(scale).bfloat16()
        return torch.from_numpy(packed)

    def _scales(self) -> torch.Tensor:
        assert self._scale is not None, "scales are narrower than codes, so they are written later"
        scale, self._scale = self._scale, None
        return scale


def experts_as_int4() -> QuantConfig | None:
    """The published description: all linear layers but for attention, shared experts, dense MLPs, head."""
    return preset("kimi-k2-thinking").quantization


def _write_weights(folder: Path, shards: Sequence[Sequence[Piece]]) -> None:
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_NAME, shards[0])
        return
    weight_map = {}
    for number, pieces in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, pieces)
        weight_map |= {piece.name: name for piece in pieces}
    total = sum(piece.size_bytes for pieces in shards for piece in pieces)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX_NAME, index)


def write_json(path: Path, value: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def move_into_place(unfinished: Path, folder: Path) -> None:
    """Rename the finished folder; one that was there is first set aside, then deleted."""
    if not folder.exists():
        unfinished.rename(folder)
        return
    for path in folder.iterdir():
        kept = unfinished / path.name
        if not _is_ours(path) and not kept.exists():
            shutil.copyfile(path, kept)
    aside = unfinished.with_suffix(".old")
    try:
        folder.rename(aside)
        unfinished.rename(folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name in ("config.json", INDEX_NAME)
