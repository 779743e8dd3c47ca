"""Files <-> named tensors: Hugging Face folders and GGUF files, read without trust and streamed.

What is listed here is loaded when it is first asked for: `hub`, `gguf_model` and `remote` work without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moonlet.checkpoint.convert_layout import from_state_dict, to_state_dict
    from moonlet.checkpoint.gguf_reader import GgufCheckpoint
    from moonlet.checkpoint.hub import resolve
    from moonlet.checkpoint.packed import PackedCheckpoint
    from moonlet.checkpoint.reader import Checkpoint, is_gguf, open_checkpoint, read_config
    from moonlet.checkpoint.stored import StoredMatrix
    from moonlet.checkpoint.writer import save_checkpoint

__all__ = [
    "Checkpoint",
    "GgufCheckpoint",
    "PackedCheckpoint",
    "StoredMatrix",
    "from_state_dict",
    "is_gguf",
    "open_checkpoint",
    "read_config",
    "resolve",
    "save_checkpoint",
    "to_state_dict",
]
_HOMES = {
    "convert_layout": ("from_state_dict", "to_state_dict"),
    "gguf_reader": ("GgufCheckpoint",),
    "hub": ("resolve",),
    "packed": ("PackedCheckpoint",),
    "reader": ("Checkpoint", "is_gguf", "open_checkpoint", "read_config"),
    "stored": ("StoredMatrix",),
    "writer": ("save_checkpoint",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"moonlet.checkpoint.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
