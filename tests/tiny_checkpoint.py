"""A whole checkpoint folder of the preset `tiny`: random weights, one token per byte, K2.5's image rules."""

import json
from pathlib import Path

from moonlet.chat.tokenizer import BYTE_TOKENS, write_vocabulary
from moonlet.checkpoint import save_checkpoint
from moonlet.config import preset
from moonlet.model import Model


def write_tiny_checkpoint(folder: Path) -> Path:
    """Writes the folder and returns it. The same weights every time."""
    model = Model(preset("tiny"))
    save_checkpoint(folder, model.config, model.state_dict())
    write_vocabulary(folder / "tiktoken.model", BYTE_TOKENS)
    media = {"patch_size": 14, "merge_kernel_size": 2, "in_patch_limit": 64}
    media |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_limit_on_one_side": 512}
    (folder / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": media}))
    return folder
