"""The network in plain PyTorch: the one definition that trains and serves."""

from moonlet.model.cache import LatentCache
from moonlet.model.loading import build_on_meta, load_model
from moonlet.model.network import Media, Model

__all__ = ["LatentCache", "Media", "Model", "build_on_meta", "load_model"]
