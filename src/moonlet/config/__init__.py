"""What a model is: shapes and constants, read from and written to config.json. Imports no torch."""

from moonlet.config.model import ModelConfig, QuantConfig, RopeConfig, VisionConfig
from moonlet.config.presets import PRESETS, REPOSITORIES, preset
from moonlet.config.read import from_hf, load_config
from moonlet.config.tensors import TensorSpec, tensor_specs
from moonlet.config.write import to_hf

__all__ = [
    "PRESETS",
    "REPOSITORIES",
    "ModelConfig",
    "QuantConfig",
    "RopeConfig",
    "TensorSpec",
    "VisionConfig",
    "from_hf",
    "load_config",
    "preset",
    "tensor_specs",
    "to_hf",
]
