"""Files <-> named tensors: Hugging Face folders of safetensors, read without trust and streamed."""

from moonlet.checkpoint.convert_layout import from_state_dict, to_state_dict
from moonlet.checkpoint.hub import resolve
from moonlet.checkpoint.reader import Checkpoint, open_checkpoint, read_config
from moonlet.checkpoint.writer import save_checkpoint

__all__ = [
    "Checkpoint",
    "from_state_dict",
    "open_checkpoint",
    "read_config",
    "resolve",
    "save_checkpoint",
    "to_state_dict",
]
