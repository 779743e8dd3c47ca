"""How large a model is, from its configuration alone: parameters, stored bytes, cache bytes per token.

Everything is counted over `tensor_specs`, so that it agrees with what is loaded. A multi-token
prediction layer (`num_nextn_predict_layers`) may lie beside the weights on disk; moonlet does not
load it and it is not counted.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal

from moonlet.config.model import ModelConfig
from moonlet.config.tensors import Part, TensorSpec, tensor_specs

Stored = Literal["int4", "fp8", "bfloat16", "float16", "float32"]

VISION_TOWER: tuple[Part, ...] = ("vision",)
PROJECTOR: tuple[Part, ...] = ("projector",)
# Everything else is the language model.

_FLOAT_BYTES: dict[Stored, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
_INT4_GROUP = 32  # columns that share a bf16 scale
_FP8_BLOCK = 128  # rows and columns that share a float32 scale
# DeepSeek's FP8 files keep embedding, head, router and norms as they were trained.
_FP8_PARTS = ("attention", "dense", "experts", "shared_experts")


@dataclass(frozen=True)
class PartSize:
    """One part of the model: its parameters, and the bytes of each type it is stored in."""

    parameters: int
    bytes_by_type: dict[Stored, int]

    @property
    def bytes_total(self) -> int:
        return sum(self.bytes_by_type.values())


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of the parts that the model has, in the order of the network."""

    parts: dict[Part, PartSize]
    parameters_active: int
    cache_bytes_per_token: int

    def parameters(self, *parts: Part) -> int:
        """Parameters of the named parts together."""
        return sum(self.parts[part].parameters for part in parts if part in self.parts)

    def bytes_stored(self, *parts: Part) -> int:
        """Bytes of the named parts together."""
        return sum(self.parts[part].bytes_total for part in parts if part in self.parts)

    @property
    def language_model(self) -> tuple[Part, ...]:
        """The parts that are neither vision tower nor projector."""
        return tuple(part for part in self.parts if part not in (*VISION_TOWER, *PROJECTOR))

    @property
    def parameters_active_with_embedding(self) -> int:
        return self.parameters_active + self.parameters("embedding")


def model_sizes(
    config: ModelConfig, stored: Literal["native", "int4", "fp8", "bfloat16"] = "native"
) -> ModelSizes:
    """Sizes of `config`: as published, or as if it were stored in INT4, in FP8 or in bfloat16.

    "int4" is Kimi's own recipe whatever the configuration says: routed experts in groups of 32 with
    a bf16 scale each (4.5 bits per weight), everything else in bfloat16. "fp8" is DeepSeek's: blocks
    of 128 x 128 with a float32 scale, but for embedding, head, router and norms. Active parameters
    are those that one token of text passes through, the input embedding (a lookup) left out.
    """
    method, dtype = stored, "bfloat16"
    if stored == "native":
        method = config.quantization.method if config.quantization else "float"
        dtype = config.dtype
    grouped: dict[Part, list[TensorSpec]] = {}
    for spec in tensor_specs(config):
        grouped.setdefault(spec.part, []).append(spec)
    parts: dict[Part, PartSize] = {
        part: _part_size(specs, method, dtype) for part, specs in grouped.items()
    }
    experts = parts["experts"].parameters if "experts" in parts else 0
    idle_share = 1 - Fraction(config.num_experts_per_tok, config.n_routed_experts)
    unused = ("embedding", *VISION_TOWER, *PROJECTOR)
    used = sum(size.parameters for part, size in parts.items() if part not in unused)
    return ModelSizes(
        parts=parts,
        parameters_active=used - int(experts * idle_share),
        cache_bytes_per_token=config.num_hidden_layers * config.latent_size * 2,  # bf16
    )


def _part_size(specs: list[TensorSpec], method: str, dtype: Stored) -> PartSize:
    by_type: dict[Stored, int] = {}
    for spec in specs:
        kind = _stored_type(spec, method, dtype)
        by_type[kind] = by_type.get(kind, 0) + _stored_bytes(kind, spec)
    return PartSize(sum(spec.numel for spec in specs), by_type)


def _stored_type(spec: TensorSpec, method: str, dtype: Stored) -> Stored:
    if spec.float32:
        return "float32"
    if method == "int4" and spec.part == "experts":
        return "int4"
    if method == "fp8" and spec.part in _FP8_PARTS:
        return "fp8"
    return dtype


def _stored_bytes(kind: Stored, spec: TensorSpec) -> int:
    """Bytes of the values and their scales; headers and the shape entries of INT4 are left out."""
    if kind in _FLOAT_BYTES:
        return spec.numel * _FLOAT_BYTES[kind]
    num, rows, columns = matrices(spec)
    if kind == "int4":
        return num * rows * (4 * ceil(columns / 8) + 2 * ceil(columns / _INT4_GROUP))
    return num * (rows * columns + 4 * ceil(rows / _FP8_BLOCK) * ceil(columns / _FP8_BLOCK))


def matrices(spec: TensorSpec) -> tuple[int, int, int]:
    """(how many, rows, columns) of the matrices as they are stored: experts one by one, gate apart from up."""
    if len(spec.shape) == 2:
        return 1, *spec.shape
    num, rows, columns = spec.shape
    if spec.name.endswith("gate_up_proj"):
        return 2 * num, rows // 2, columns
    return num, rows, columns
