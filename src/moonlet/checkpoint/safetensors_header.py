"""The header of a safetensors file: which tensors it has and where, checked before anything is believed.

No torch here: whoever only counts bytes reads no more than this.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from moonlet.checkpoint.untrusted import shown
from moonlet.errors import CheckpointError

# Also the limit of the original library; the header of K2.5 in a single file would be 30 MB.
HEADER_BYTES_LIMIT = 100_000_000
DIMENSIONS_LIMIT = 8


class Described(NamedTuple):
    """One tensor: bytes `begin` to `end` of the file, counted from its start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_length(
    length: int, size_bytes: int, source: str, limit: int = HEADER_BYTES_LIMIT
) -> None:
    """Refuses the length of a header that does not fit into a file of `size_bytes`, or is above `limit`."""
    if length > limit:
        raise CheckpointError(
            f"{source} claims a header of {length} bytes; at most {limit} are read"
        )
    if length > size_bytes - 8:
        raise CheckpointError(
            f"{source} claims a header of {length} bytes but has only {size_bytes - 8} "
            "after its start: it is truncated, or not a safetensors file"
        )


def read_header(
    header: Mapping[str, Any],
    source: str,
    data_start: int,
    size_bytes: int,
    item_bytes: Mapping[str, int],
) -> tuple[dict[str, str], list[Described]]:
    """The texts of `__metadata__`, and the tensors in the order of the data.

    item_bytes: of the types that are known. Raises CheckpointError, with `source` and the first tensor that is
    described wrongly. A tensor may end beyond the file, which is then truncated.
    """
    metadata = header.get("__metadata__")
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    described = [
        _described(name, value, source, data_start, item_bytes)
        for name, value in header.items()
        if name != "__metadata__"
    ]
    described.sort(key=lambda one: (one.begin, one.end))
    _check_tiling(described, source, data_start, size_bytes)
    return {name: value for name, value in pairs if isinstance(value, str)}, described


def _described(
    name: str, value: Any, source: str, data_start: int, item_bytes: Mapping[str, int]
) -> Described:
    where = f"{source}: tensor {shown(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in item_bytes:
        raise CheckpointError(f"{where} has the unknown type {shown(repr(dtype))}")
    if not _are_sizes(shape) or len(shape) > DIMENSIONS_LIMIT:
        raise CheckpointError(
            f"{where} has the shape {shown(repr(shape))}, not up to {DIMENSIONS_LIMIT} sizes"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where} has the data_offsets {shown(repr(offsets))}, not [begin, end]"
        )
    begin, end = offsets
    item = item_bytes[dtype]
    # Sizes beside a zero count too: a shape must fit 64 bits even when the tensor is empty.
    if math.prod(max(size, 1) for size in shape) * item >= 2**63 or end >= 2**62:
        raise CheckpointError(f"{where} of shape {shown(repr(shape))} is larger than any memory")
    wanted = math.prod(shape) * item
    if end - begin != wanted:
        raise CheckpointError(
            f"{where} has {end - begin} bytes, but {dtype} of shape {shape} needs {wanted}"
        )
    return Described(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _check_tiling(
    described: list[Described], source: str, data_start: int, size_bytes: int
) -> None:
    end = data_start
    for one in described:
        if one.begin != end:
            kind = "overlaps the tensor before it" if one.begin < end else "leaves a gap"
            raise CheckpointError(
                f"{source}: tensor {shown(one.name)} {kind}: it begins at byte {one.begin}, not {end}"
            )
        end = one.end
    if end < size_bytes:
        raise CheckpointError(f"{source} has {size_bytes - end} bytes after its last tensor")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
