"""Converting a model on disk: opening the source, and carrying out a plan with everything that goes along.

Nothing is decoded before its turn: memory holds a few pieces of matrices, however large the model. What
is interrupted goes on where it stopped (`resume.py`).
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from moonlet import __version__
from moonlet.checkpoint.companions import (
    carried_files,
    has_vocabulary,
    text_metadata,
    vision_metadata,
    write_files,
)
from moonlet.checkpoint.convert_gguf import file_type, gguf_output, gguf_tensors
from moonlet.checkpoint.convert_hf import hf_config, hf_files, hf_outputs
from moonlet.checkpoint.gguf import open_parts
from moonlet.checkpoint.gguf_reader import GgufCheckpoint
from moonlet.checkpoint.gguf_vision import find_mmproj
from moonlet.checkpoint.imatrix import ImportanceMatrix
from moonlet.checkpoint.index import weight_files
from moonlet.checkpoint.packed import PackedCheckpoint
from moonlet.checkpoint.parts import Source, Wish, no_importance
from moonlet.checkpoint.reader import open_checkpoint
from moonlet.checkpoint.resume import Output, Progress, WorkFolder
from moonlet.checkpoint.writer import check_replaceable
from moonlet.config import tensor_specs
from moonlet.config.gguf_tensors import forms_of
from moonlet.errors import CheckpointError, NotSupportedError


@dataclass(frozen=True)
class Summary:
    """What has been written. `types`: bytes by type; `rounded`: groups of 32 whose scale was not exact."""

    files: tuple[Path, ...]
    size_bytes: int
    types: dict[str, int]
    rounded: int
    notes: tuple[str, ...] = ()


class Conversion:
    """A source, open and checked, and where it shall go. `name` is what a model without one is called.

    Raises what `open_checkpoint` and `validate` raise, CheckpointError when source and target are the same
    or when something is at the target that shall not be replaced, and NotSupportedError for a packed source.
    """

    def __init__(
        self,
        source: Path,
        target: Path,
        wish: Wish,
        imatrix: Path | None = None,
        name: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path, self.wish = source, wish
        self.target = Path(os.path.realpath(target))
        opened = open_checkpoint(source)
        if isinstance(opened, PackedCheckpoint):
            raise NotSupportedError(
                f"{source} is packed, from which no weights can be taken back: convert the model that it "
                "was made of"
            )
        opened.validate()
        self.source: Source = opened
        given = opened.metadata.get("general.name") if isinstance(opened, GgufCheckpoint) else None
        self.name = (
            given if isinstance(given, str) else name or source.resolve().name.removesuffix(".gguf")
        )
        self.importance = ImportanceMatrix(imatrix) if imatrix else None
        if self.importance is not None:
            forms = (forms_of(spec, opened.config)[0] for spec in tensor_specs(opened.config))
            self.importance.check({slot.name: slot.shape for form in forms for slot in form})
        self._files = [*source_files(source), *([imatrix] if imatrix else [])]
        taken = [source.resolve(), *(path.resolve() for path in self._files)]
        if self.target in taken or any(path.parent == self.target for path in taken):
            raise CheckpointError(f"{target} is what is converted from: choose another name")
        if not overwrite and _is_taken(self.target):
            raise CheckpointError(
                f"{target} exists already: choose another name, or have it replaced with --overwrite"
            )

    def work_folder(self, outputs: list[Output]) -> WorkFolder:
        return WorkFolder(self.target, outputs, [__version__, repr(self.wish), *self._stamps()])

    def _stamps(self) -> Iterable[str]:
        """Name, size and time of whatever is read: a source that has changed is converted anew."""
        for path in self._files:
            status = path.stat()
            yield f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def source_files(path: Path) -> list[Path]:
    """The files that hold the weights of a model, its vision file included."""
    if path.is_dir():
        return [path / "config.json", *weight_files(path)]
    mmproj = find_mmproj(path)
    return [*(part.path for part in open_parts(path)), *([mmproj] if mmproj else [])]


def to_gguf(conversion: Conversion, workers: int, progress: Progress) -> Summary:
    """Writes `target`, and `mmproj-NAME.gguf` beside it when the model has a vision tower."""
    source, wish, target = conversion.source, conversion.wish, conversion.target
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder; give the name of a .gguf file to write")
    folder = conversion.path
    tensors = gguf_tensors(source, wish, is_vision=False)
    metadata = text_metadata(source, folder, conversion.name, file_type(tensors, wish))
    importance = conversion.importance or no_importance
    outputs = [gguf_output(source, target.name, metadata, tensors, importance)]
    if source.config.vision is not None:
        tower = gguf_tensors(source, wish, is_vision=True)
        vision = vision_metadata(source, folder) | {"general.name": conversion.name}
        outputs.append(gguf_output(source, f"mmproj-{target.name}", vision, tower))
    _check_alone(target, {output.name for output in outputs})
    work = conversion.work_folder(outputs)
    rounded = work.write(workers, progress)
    work.put_files()
    no_vocabulary = metadata["tokenizer.ggml.model"] == "none"
    notes = ("the source has no tokenizer that a GGUF can hold",) if no_vocabulary else ()
    return summary(target.parent, outputs, rounded, notes)


def to_hf(conversion: Conversion, workers: int, progress: Progress) -> Summary:
    """Writes the folder `target`. Raises NotSupportedError for mixes that it cannot hold."""
    source, wish = conversion.source, conversion.wish
    outputs = hf_outputs(source, wish)
    files = hf_files(hf_config(source, wish), outputs)
    return write_folder(conversion, outputs, files, workers, progress)


def write_folder(
    conversion: Conversion,
    outputs: list[Output],
    files: dict[str, bytes],
    workers: int,
    progress: Progress,
) -> Summary:
    """Writes `outputs`, `files` and what goes along with the model as the folder `target`."""
    check_replaceable(conversion.target)
    source, path = conversion.source, conversion.path
    along = carried_files(path) if path.is_dir() else []
    work = conversion.work_folder(outputs)
    rounded = work.write(workers, progress)

    def fill(folder: Path) -> None:
        for file in along:
            copyfile(file, folder / file.name)
        if isinstance(source, GgufCheckpoint):
            write_files(source, folder)
        for name, content in files.items():
            (folder / name).write_bytes(content)

    work.put_folder(fill)
    notes: tuple[str, ...] = ()
    if isinstance(source, GgufCheckpoint) and not has_vocabulary(source):
        notes = ("the source's vocabulary is not Kimi's, so there is no tiktoken.model",)
    return summary(conversion.target, outputs, rounded, notes)


def summary(
    folder: Path, outputs: Sequence[Output], rounded: int, notes: tuple[str, ...]
) -> Summary:
    """What `outputs`, now in `folder`, amount to."""
    types: Counter[str] = Counter()
    for output in outputs:
        for job in output.jobs:
            types[job.kind] += job.size_bytes
    files = tuple(folder / output.name for output in outputs)
    return Summary(files, sum(o.size_bytes for o in outputs), dict(types), rounded, notes)


def _is_taken(target: Path) -> bool:
    """Whether something of worth may be there; an empty folder is a place to write to."""
    return any(target.iterdir()) if target.is_dir() else target.exists()


def _check_alone(target: Path, written: set[str]) -> None:
    """A GGUF finds its vision file by looking into its folder, where there must be no other."""
    others = [p for p in target.parent.glob("mmproj*.gguf") if p.name not in written]
    if others:
        raise CheckpointError(
            f"{target.parent} already holds the vision file {others[0].name} of another model; write into a "
            "folder of its own"
        )
