"""A checkpoint folder -> a model that is ready to run."""

from pathlib import Path

import torch

from moonlet.checkpoint import open_checkpoint
from moonlet.config import ModelConfig
from moonlet.model.network import Model


def load_model(folder: Path, dtype: torch.dtype | None = None) -> Model:
    """The model in `folder`, in evaluation mode, in the stored type or in `dtype`.

    Weights whose stored type is already right stay in the memory-mapped file until they are used.
    Raises CheckpointError listing everything that is missing, extra or misshaped, before anything
    is built; ConfigError and NotSupportedError for the configuration.
    """
    checkpoint = open_checkpoint(folder)
    checkpoint.validate()
    model = build_on_meta(checkpoint.config)
    model.load_state_dict(dict(checkpoint.tensors(dtype)), strict=True, assign=True)
    return model.eval().requires_grad_(False)


def build_on_meta(config: ModelConfig) -> Model:
    """The network without memory for its weights: for counting, and for loading into."""
    with torch.device("meta"):
        return Model(config)
