"""GGUF files with random weights in a family shape, for measuring speed: valid blocks, finite values, even routing.

Every matrix repeats rows of a small pool of encoded normal numbers, each from another place in it: speed does
not depend on what the weights say, and encoding ten billion of them would take hours.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moonlet.checkpoint.gguf_write import GgufWriter, TensorInfo, gguf_metadata
from moonlet.config import ModelConfig, TensorSpec, tensor_specs
from moonlet.config.gguf_tensors import GgufSlot, forms_of
from moonlet.quant import encode
from moonlet.quant.types import TYPES

POOL_VALUES = 1 << 20
EIGHT_BIT = ("attention", "embedding", "head")  # parts that are Q8_0 whatever the experts are

Pools = dict[tuple[str, int, float], NDArray[np.uint8]]


def write_random(
    path: Path, config: ModelConfig, kind: str, progress: Callable[[str], None]
) -> None:
    """A file whose feed-forward networks are of type `kind`, attention, embedding and head Q8_0.

    Rows that do not fill the blocks of `kind` are Q4_0 (Moonlight's down projections have 1,408 columns).
    """
    slots = [(spec, slot) for spec in tensor_specs(config) for slot in forms_of(spec, config)[0]]
    infos = [TensorInfo(slot.name, slot.shape, _type(spec, slot, kind)) for spec, slot in slots]
    metadata = gguf_metadata(config, path.stem, file_type=0)
    rng, pools = np.random.default_rng(0), Pools()
    with GgufWriter(path, metadata, infos) as writer:
        for number, (info, (spec, _)) in enumerate(zip(infos, slots, strict=True), 1):
            if number % 50 == 1:
                progress(f"writing {path.name}: tensor {number} of {len(infos)}")
            _write(writer, info, spec, rng, pools)


def _type(spec: TensorSpec, slot: GgufSlot, kind: str) -> str:
    if slot.float32 or spec.float32 or len(slot.shape) == 1:
        return "F32"
    if spec.part in EIGHT_BIT:
        return "Q8_0"
    return kind if slot.shape[-1] % TYPES[kind].values == 0 else "Q4_0"


def _write(
    writer: GgufWriter, info: TensorInfo, spec: TensorSpec, rng: np.random.Generator, pools: Pools
) -> None:
    if info.type == "F32":
        writer.write(_floats(info, spec, rng))
        return
    rows, cols = math.prod(info.shape[:-1]), info.shape[-1]
    # An embedding is of size 1; products keep the size of what they multiply.
    sigma = 1.0 if spec.part == "embedding" else 1 / math.sqrt(cols)
    pool = pools.get((info.type, cols, sigma))
    if pool is None:
        count = max(16, POOL_VALUES // cols)
        values = rng.standard_normal((count, cols), np.float32) * np.float32(sigma)
        pool = pools[info.type, cols, sigma] = encode(info.type, values)
    while rows:
        first = int(rng.integers(len(pool) // 2))
        piece = pool[first : first + rows]
        writer.write(piece)
        rows -= len(piece)


def _floats(info: TensorInfo, spec: TensorSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    if spec.part == "router":
        sigma = 0.01 if len(info.shape) == 1 else 1 / math.sqrt(info.shape[-1])
        return rng.standard_normal(info.shape, np.float32) * np.float32(sigma)
    return np.ones(info.shape, np.float32)
