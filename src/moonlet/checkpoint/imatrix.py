"""Importance matrices in llama.cpp's file form: how large the inputs of every matrix are, column by column.

A GGUF with `general.type` "imatrix" holds, for each tensor NAME of a model's GGUF, `NAME.in_sum2` [matrices,
cols], the sums of squares of what was multiplied with each column, and `NAME.counts` [matrices, 1], over how
many tokens. An expert that was never asked has the count 0.

Source: tools/imatrix in llama.cpp's repository.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moonlet.checkpoint.gguf import GgufFile, GgufTensor
from moonlet.checkpoint.gguf_write import GgufWriter, TensorInfo
from moonlet.checkpoint.untrusted import shown
from moonlet.errors import CheckpointError

SUMS, COUNTS = ".in_sum2", ".counts"
Statistics = tuple[
    NDArray[np.float32], NDArray[np.float32]
]  # sums [matrices, cols], counts [matrices]


def write_imatrix(
    path: Path, statistics: Mapping[str, Statistics], dataset: str, chunks: int, chunk_size: int
) -> None:
    """Writes the sums and counts of each tensor. Raises CheckpointError when the disk refuses."""
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": [dataset],
        "imatrix.chunk_count": chunks,
        "imatrix.chunk_size": chunk_size,
    }
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, (sums, counts) in sorted(statistics.items()):
        arrays[name + SUMS] = sums.astype(np.float32)
        arrays[name + COUNTS] = counts.astype(np.float32)[:, None]
    infos = [TensorInfo(name, array.shape, "F32") for name, array in arrays.items()]
    with GgufWriter(path, metadata, infos) as writer:
        for array in arrays.values():
            writer.write(array)


class ImportanceMatrix:
    """An open file: called with a GGUF tensor, the index of its matrix and its columns, mean squares [cols].

    None where the file says nothing: of tensors that it lacks, and of experts that were never asked.
    Raises CheckpointError when the file is none, or a tensor of it has another form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = GgufFile(path)
        if file.metadata.get("general.type") != "imatrix":
            raise CheckpointError(
                f"{path} is no importance matrix: its general.type is "
                f"{shown(repr(file.metadata.get('general.type')))}, not 'imatrix'"
            )
        self._found: dict[str, Statistics] = {}
        for name, tensor in file.tensors.items():
            if name.endswith(SUMS):
                base = name.removesuffix(SUMS)
                self._found[base] = self._statistics(base, tensor, file.tensors.get(base + COUNTS))

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises CheckpointError unless the file fits a model with tensors of these GGUF shapes."""
        for name, shape in shapes.items():
            if name not in self._found:
                continue
            cols, stack = shape[len(shape) - 1], shape[0] if len(shape) > 2 else 1
            found = self._found[name][0].shape
            if found not in ((1, cols), (stack, cols), (1, stack * cols)):
                raise CheckpointError(
                    f"{self.path} has values {list(found)} for {name}, which has {stack} matrices with {cols} "
                    "columns: it belongs to another model"
                )
        if not self._found.keys() & shapes.keys():
            raise CheckpointError(f"{self.path} names no tensor of this model")

    def __call__(self, name: str, index: int, cols: int) -> NDArray[np.float32] | None:
        if name not in self._found:
            return None
        sums, counts = self._found[name]
        # Where all matrices of a stack see the same tokens llama.cpp keeps one count for all of them.
        sums = sums.reshape(-1, cols)
        count = counts[index if len(counts) > 1 else 0]
        return None if count <= 0 else sums[index if len(sums) > 1 else 0] / count

    def _statistics(self, name: str, sums: GgufTensor, counts: GgufTensor | None) -> Statistics:
        shape = sums.shape if len(sums.shape) == 2 else (1, *sums.shape)
        types = {sums.type.name, counts.type.name if counts else "F32"}
        if counts is None or types != {"F32"} or len(shape) != 2:
            raise CheckpointError(f"{self.path}: {shown(name)} has no sums and counts in F32")
        found = sums.blocks().view(np.float32).reshape(shape)
        numbers = counts.blocks().view(np.float32).reshape(-1)
        if (
            len(numbers) != shape[0]
            or not np.isfinite(found).all()
            or not np.isfinite(numbers).all()
        ):
            raise CheckpointError(
                f"{self.path}: {shown(name)} has {len(numbers)} counts for {shape[0]} matrices, or values "
                "that are not finite"
            )
        if (found < 0).any() or (numbers < 0).any():
            raise CheckpointError(f"{self.path}: {shown(name)} has negative sums or counts")
        return found, numbers
