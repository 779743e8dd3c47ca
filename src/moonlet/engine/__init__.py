"""Runs a model: requests in, streams of token ids out; and the provider that joins it to text."""

from moonlet.engine.disk import DiskTier
from moonlet.engine.engine import Engine
from moonlet.engine.local import CacheFolder, load
from moonlet.engine.provider import LocalProvider
from moonlet.engine.sampler import Drawn, SamplingParams
from moonlet.engine.stream import Finished, GenerateRequest, Stream

__all__ = [
    "CacheFolder",
    "DiskTier",
    "Drawn",
    "Engine",
    "Finished",
    "GenerateRequest",
    "LocalProvider",
    "SamplingParams",
    "Stream",
    "load",
]
