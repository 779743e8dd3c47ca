"""The network in plain PyTorch: the one definition that trains and serves; its quantized leaves."""

from moonlet.model.cache import LatentCache
from moonlet.model.loading import build_on_meta, load_model
from moonlet.model.network import Media, Model
from moonlet.model.packing import is_quantized, load_packed
from moonlet.model.sources import FloatForm

__all__ = [
    "FloatForm",
    "LatentCache",
    "Media",
    "Model",
    "build_on_meta",
    "is_quantized",
    "load_model",
    "load_packed",
]
