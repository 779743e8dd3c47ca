"""Runs a model: requests in, streams of token ids out; and the provider that joins it to text."""

from moonlet.engine.engine import Engine, Finished, GenerateRequest, Stream
from moonlet.engine.local import LocalProvider, load
from moonlet.engine.sampler import SamplingParams

__all__ = [
    "Engine",
    "Finished",
    "GenerateRequest",
    "LocalProvider",
    "SamplingParams",
    "Stream",
    "load",
]
