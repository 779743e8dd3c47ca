"""Comparing what files hold with what the configuration asks for: every problem, before anything runs."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from moonlet.checkpoint.convert_layout import blocks_of
from moonlet.checkpoint.names import Role, Slot, file_name, slot_of
from moonlet.checkpoint.problems import Problems
from moonlet.checkpoint.safetensors import Entry, SafetensorsFile
from moonlet.checkpoint.untrusted import shown
from moonlet.config import ModelConfig, TensorSpec, tensor_specs
from moonlet.quant import fp8, int4

FLOATS = ("BF16", "F16", "F32")

# One stored matrix: its tensor, or the tensors of its quantized form.
Matrix = dict[Role, Entry]
# The matrices that make up a canonical tensor, by expert and block; (None, None) is the whole.
Parts = dict[tuple[int | None, str | None], Matrix]


def sort_into_slots(
    files: Iterable[SafetensorsFile], config: ModelConfig, problems: Problems
) -> dict[str, Parts]:
    """Every tensor of the files under its canonical name, but for those that nobody needs."""
    known = {spec.name for spec in tensor_specs(config)}
    found: dict[str, Parts] = defaultdict(dict)
    for file in files:
        for entry in file.entries.values():
            slot = slot_of(entry.name, config)
            if slot is None:
                continue
            if slot.name not in known:
                problems.add("unknown", shown(entry.name))
                continue
            matrix = found[slot.name].setdefault((slot.expert, slot.block), {})
            if slot.role in matrix:
                other = matrix[slot.role]
                both = f"{shown(entry.name)} in {file.path.name} and {other.file.path.name}"
                problems.add("stored twice", both)
            matrix[slot.role] = entry
    return found


def compare(found: Mapping[str, Parts], config: ModelConfig, problems: Problems) -> None:
    """Adds to `problems` whatever of `config` is missing, misshaped, truncated or of a wrong type."""
    for spec in tensor_specs(config):
        parts = found.get(spec.name, {})
        blocks = blocks_of(spec)
        if (None, None) in parts or not blocks or (not parts and spec.part != "experts"):
            _compare_whole(spec, parts, config, problems)
        else:
            _compare_blocks(spec, blocks, parts, config, problems)


def _compare_whole(spec: TensorSpec, parts: Parts, config: ModelConfig, problems: Problems) -> None:
    for key, matrix in parts.items():
        if key != (None, None):
            problems.add("stored twice", _first_name(matrix))
    whole = parts.get((None, None))
    if whole is None:
        problems.add("missing", file_name(Slot(spec.name), config, "kimi"))
    else:
        _compare_matrix(whole, spec.shape, problems)


def _compare_blocks(
    spec: TensorSpec,
    blocks: Mapping[str, slice],
    parts: Parts,
    config: ModelConfig,
    problems: Problems,
) -> None:
    experts = range(spec.shape[0]) if spec.part == "experts" else (None,)
    columns = spec.shape[2:] if spec.part == "experts" else spec.shape[1:]
    present = 0
    for (expert, block), matrix in parts.items():
        if block is None or block not in blocks or expert not in experts:
            problems.add("unknown", _first_name(matrix))
            continue
        present += 1
        rows = blocks[block]
        _compare_matrix(matrix, (rows.stop - rows.start, *columns), problems)

    def missing() -> Iterator[str]:
        for expert in experts:
            for block in blocks:
                if (expert, block) not in parts:
                    yield file_name(Slot(spec.name, expert, block), config, "kimi")

    # Counted, not listed: a hostile configuration may ask for billions of experts.
    if present < len(experts) * len(blocks):
        problems.add_many("missing", len(experts) * len(blocks) - present, missing())


def _compare_matrix(matrix: Matrix, shape: tuple[int, ...], problems: Problems) -> None:
    """One matrix of `shape`, in the form that its tensors show: plain, INT4 triple or FP8 pair."""
    first = _first_name(matrix)
    base = first.removesuffix("." + next(iter(matrix)))
    packed: tuple[Role, ...] = ("weight_packed", "weight_scale", "weight_shape")
    wanted: dict[Role, tuple[tuple[int, ...], tuple[str, ...]]]
    if any(role in matrix for role in packed):
        rows, cols = shape if len(shape) == 2 else (0, 0)
        wanted = {
            "weight_packed": (int4.packed_shape(rows, cols), ("I32",)),
            "weight_scale": (int4.scale_shape(rows, cols), FLOATS),
            "weight_shape": ((2,), ("I64", "I32")),
        }
    elif "weight_scale_inv" in matrix or matrix["weight"].dtype == "F8_E4M3":
        rows, cols = shape if len(shape) == 2 else (0, 0)
        wanted = {
            "weight": (shape, ("F8_E4M3",)),
            "weight_scale_inv": (fp8.scale_shape(rows, cols), ("F32", "BF16")),
        }
    else:
        wanted = {"weight": (shape, FLOATS)}
    for role, entry in matrix.items():
        if role not in wanted:
            problems.add("stored in two forms", shown(entry.name))
    for role, (role_shape, types) in wanted.items():
        if role not in matrix:
            problems.add("missing", f"{base}.{role}")
        else:
            _compare_entry(matrix[role], role_shape, types, problems)
    shape_entry = matrix.get("weight_shape")
    if shape_entry is not None and not shape_entry.is_truncated and shape_entry.shape == (2,):
        itemsize = shape_entry.torch_dtype.itemsize
        data = shape_entry.file.read_bytes(shape_entry)
        stored = [
            int.from_bytes(half, "little", signed=True)
            for half in (data[:itemsize], data[itemsize:])
        ]
        if stored != list(shape):
            name = shown(shape_entry.name)
            problems.add("of the wrong shape", f"{name} says {stored}, wanted {list(shape)}")


def _compare_entry(
    entry: Entry, shape: tuple[int, ...], types: tuple[str, ...], problems: Problems
) -> None:
    name = shown(entry.name)
    if entry.dtype not in types:
        problems.add("of the wrong type", f"{name} is {entry.dtype}, wanted {' or '.join(types)}")
    elif entry.shape != shape:
        problems.add("of the wrong shape", f"{name} is {list(entry.shape)}, wanted {list(shape)}")
    if entry.is_truncated:
        problems.add("cut off by the end of a file", f"{name} in {entry.file.path.name}")


def _first_name(matrix: Matrix) -> str:
    return shown(next(iter(matrix.values())).name)
