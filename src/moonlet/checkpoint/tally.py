"""Bytes of each part of a network by type, from the headers of its safetensors files. Imports no torch.

Types are called as in `moonlet.config.sizes`; scales and shapes count with the values that they belong to.
More is understood here than can be loaded: 4-bit floats of other tools ("fp4") have their size, too.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from moonlet.checkpoint.index import weight_files
from moonlet.checkpoint.names import Slot, slot_of
from moonlet.checkpoint.safetensors_header import Described, check_length, read_header
from moonlet.checkpoint.untrusted import parse_json_object, shown
from moonlet.config import ModelConfig, tensor_specs
from moonlet.config.tensors import Part
from moonlet.errors import CheckpointError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_INT4_ROLES = ("weight_packed", "weight_scale", "weight_shape")


class Tally:
    """Adds up files, one header after the other, of which nothing else is kept."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._specs = {spec.name: spec for spec in tensor_specs(config)}
        self._found: dict[Part, dict[str, int]] = {spec.part: {} for spec in self._specs.values()}
        self._matrices: Counter[str] = Counter()  # of each tensor, without scales

    def add(self, described: Iterable[Described], source: str) -> None:
        """The tensors of one file. Raises CheckpointError for one that is none of the network's."""
        for one in described:
            slot = self._slot(one.name)
            if slot is None:
                continue
            if slot.name not in self._specs:
                raise CheckpointError(
                    f"{source} holds {shown(one.name)}, which is no tensor of this network"
                )
            kind, types = _kind(one, slot), self._found[self._specs[slot.name].part]
            types[kind] = types.get(kind, 0) + one.end - one.begin
            if slot.role in ("weight", "weight_packed") and _is_main(one.name):
                self._matrices[slot.name] += 1

    def _slot(self, name: str) -> Slot | None:
        slot = slot_of(name, self._config)
        if slot is None or slot.name in self._specs:
            return slot
        # A scale of some other tool's quantization lies beside the weight that it belongs to.
        beside = slot_of(name.rpartition(".")[0] + ".weight", self._config)
        return slot if beside is None or beside.name not in self._specs else beside

    def bytes_by_part(self, source: str) -> dict[Part, dict[str, int]]:
        """Raises CheckpointError when tensors are missing or there twice."""
        wrong = [name for name in self._specs if self._matrices[name] not in self._counts(name)]
        if wrong:
            raise CheckpointError(
                f"{source} lacks {len(wrong)} of the network's {len(self._specs)} tensors or parts of them, "
                f"or holds them twice; the first is {wrong[0]}"
            )
        return self._found

    def _counts(self, name: str) -> tuple[int, ...]:
        """In how many pieces files may store the tensor."""
        if self._specs[name].part == "experts":
            experts = self._config.n_routed_experts
            return 1, experts * (2 if name.endswith("gate_up_proj") else 1)
        return (1, 3) if ".wqkv." in name else (1,)


def _is_main(name: str) -> bool:
    return name.endswith(
        (".weight", ".bias", ".weight_packed", "_proj", "_correction_bias", "position_embeddings")
    )


def _kind(one: Described, slot: Slot) -> str:
    is_scale = slot.role == "weight_scale" or not _is_main(one.name)
    if one.dtype == "U8" or (is_scale and slot.role != "weight_scale_inv" and one.dtype in ("F8_E4M3", "F8_E8M0")):  # fmt: skip
        return "fp4"
    if slot.role in _INT4_ROLES:
        return "int4"
    if slot.role == "weight_scale_inv" or one.dtype == "F8_E4M3":
        return "fp8"
    return _FLOATS.get(one.dtype, one.dtype.lower())


def stored_in_folder(folder: Path, config: ModelConfig) -> dict[Part, dict[str, int]]:
    """Of a folder with safetensors files; reads headers only. Raises CheckpointError."""
    tally = Tally(config)
    for path in weight_files(folder):
        try:
            if not path.is_file():
                raise CheckpointError(f"{path} is missing or not a regular file")
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                check_length(length, size, str(path))
                header = parse_json_object(file.read(length), f"the header of {path}")
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        tally.add(described_in(header, str(path), length, size), str(path))
    return tally.bytes_by_part(str(folder))


def described_in(
    header: dict[str, object], source: str, length: int, size_bytes: int
) -> list[Described]:
    """The tensors of a header of `length` bytes, none of which may lie beyond the end of the file."""
    _, described = read_header(header, source, 8 + length, size_bytes, ITEM_BYTES)
    if described and described[-1].end > size_bytes:
        raise CheckpointError(
            f"{source} ends at byte {size_bytes}, but its tensors go on until {described[-1].end}: "
            "it is truncated"
        )
    return described
