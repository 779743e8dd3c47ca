"""Files <-> named tensors: Hugging Face folders and GGUF files, read without trust and streamed."""

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
