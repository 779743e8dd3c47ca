"""A deployment as a start command needs it: which engine runs which weights, split and placed how.

`command.toml` beside this file says of which version of each engine the options of its commands are, and what
has to be known of a model by its name.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from moonlet.errors import ConfigError
from moonlet.plan.shell import last_part

GGUF_MIX = "gguf_mix"  # the label of a mix that somebody's .toml file describes
_TABLE = Path(__file__).with_name("command.toml")


@dataclass(frozen=True)
class Launch:
    """A deployment. Counts are of one node where nothing else is said.

    model: a repository, a folder or a .gguf file. quantization: what is to run, a name or
    the .toml file of a mix; stored: what `model` holds;
    "native" is as it was published. context: tokens of one stream. tensor, pipeline, expert: GPUs that share
    each, of all nodes together. gpu_experts: routed experts of each layer on the GPUs (KTransformers).
    cpu_layers: the first layers, dense ones counted, whose routed experts stay in RAM (llama.cpp). chunk:
    tokens of a prefill step; it and threads are 0 for the engine's own. numa: memory nodes. head: address of
    the first of several nodes.
    """

    engine: str
    model: str
    quantization: str = "native"
    stored: str = "native"
    context: int = 32_768
    streams: int = 1
    cache_dtype: str = "bf16"
    gpus: int = 0
    nodes: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    gpu_experts: int = 0
    cpu_layers: int = 0
    chunk: int = 0
    threads: int = 0
    numa: int = 1
    head: str = "FIRST_NODE"
    port: int = 8000

    def __post_init__(self) -> None:
        """Raises ConfigError for what no command can be made of."""
        if self.engine not in engines():
            raise ConfigError(
                f"no start command is known for the engine {self.engine!r:.40}: "
                f"name one of {', '.join(engines())}"
            )
        if not self.model or "\0" in self.model + self.head + self.quantization:
            raise ConfigError(f"{self.model!r:.80} is no model that a command can name")
        from_one = ("context", "streams", "nodes", "tensor", "pipeline", "expert", "numa", "port")
        for name in (*from_one, "gpus", "gpu_experts", "cpu_layers", "chunk", "threads"):
            value, least = getattr(self, name), 1 if name in from_one else 0
            if not least <= value < 1 << 31:
                raise ConfigError(f"{name} is {value}, but it must be a number from {least}")

    @property
    def label(self) -> str:
        """What is to run, as "native_int4" or "q4_k_m"; "native" when that is what `model` holds."""
        wanted = _label(self.quantization)
        return "native" if wanted == self.holds else wanted

    @property
    def holds(self) -> str:
        """What `model` holds; where "native" is said, what is published under its name."""
        stored = _label(self.stored)
        return family(self.model)["published"] if stored == "native" else stored


def engines() -> tuple[str, ...]:
    """Those that start commands are known for."""
    return tuple(_data()["engines"])


def made_for(engine: str) -> dict[str, str]:
    """`version`, `as_of` and `source` of the options that commands for this engine use."""
    return {name: str(value) for name, value in _data()["engines"][engine].items()}


def family(model: str) -> dict[str, Any]:
    """What command.toml says of a model of this name: "published", parsers by engine, "vision"."""
    name = last_part(model).lower()
    families = _data()["family"]
    return next(
        one for one in families if any(fnmatchcase(name, pattern) for pattern in one["names"])
    )


def published_file(model: str, label: str) -> str | None:
    """The repository where `model` was published as `label`, if command.toml knows one."""
    return _data()["published_as"].get(label, {}).get(model.lower())


def _label(quantization: str) -> str:
    if quantization.lower().endswith(".toml"):
        return GGUF_MIX
    label = quantization.strip().lower().replace("-", "_")
    return "native_int4" if label == "int4" else label or "native"


@cache
def _data() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(_TABLE.read_text("utf-8"))
