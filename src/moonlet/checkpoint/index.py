"""Which safetensors files make up a folder. The index is only believed about their names."""

import os
import re
from pathlib import Path

from moonlet.checkpoint.untrusted import parse_json_object, shown
from moonlet.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
INDEX_BYTES_LIMIT = 100_000_000  # the index of K2.5 has 23 MB
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,200}\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """The files of the index; without one `model.safetensors`; without that, all safetensors files.

    A file of the index need not exist. Raises CheckpointError when the index is not one, when a name
    leaves the folder, or when there are no weights at all.
    """
    index = folder / INDEX_NAME
    if index.exists() or index.is_symlink():
        names = _names_in(index)
    elif (folder / SINGLE_NAME).exists():
        names = [SINGLE_NAME]
    else:
        names = sorted(path.name for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name))
        if not names:
            raise CheckpointError(f"{folder} holds no safetensors files")
    for name in names:
        check_inside(folder, name)
    return [folder / name for name in names]


def _names_in(index: Path) -> list[str]:
    check_inside(index.parent, index.name)
    try:
        if not index.is_file():
            raise CheckpointError(f"{index} is not a regular file")
        if index.stat().st_size > INDEX_BYTES_LIMIT:
            raise CheckpointError(f"{index} is larger than {INDEX_BYTES_LIMIT} bytes")
        content = parse_json_object(index.read_bytes(), str(index))
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror}") from error
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map from tensor names to files")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise CheckpointError(
                f"{index} puts {shown(tensor)} into {shown(repr(name))}, which is not the name of a "
                "safetensors file beside it"
            )
    return sorted(set(weight_map.values()))


def check_inside(folder: Path, name: str) -> None:
    """Refuses a link that leaves the folder; the hub's cache, all links to `../../blobs`, is fine."""
    home = os.path.realpath(folder)
    roots = [home]
    if os.path.basename(os.path.dirname(home)) == "snapshots":
        roots.append(os.path.join(os.path.dirname(os.path.dirname(home)), "blobs"))
    target = os.path.realpath(os.path.join(home, name))
    if not any(os.path.commonpath([root, target]) == root for root in roots):
        raise CheckpointError(
            f"{folder / name} is a link to {shown(target)}, outside of the folder; copy the file here"
        )
