"""What a model takes in a quantization, by its name. Four kinds of names:

* a form that repositories publish: native, bf16, fp16, fp8, int4, nvfp4, mxfp4
* a mix of moonlet's (q8_0, q4_k_m, ..., or a .toml file) or a single GGUF type (q6_k, iq4_xs): the bytes
  that `moonlet convert` writes into GGUF files, tensor by tensor
* somebody's file of which only the size is known (`published.toml`): about, see `_as_published`
* "3.33bpw": every matrix of the text model at so many bits a weight, as MLX converts
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet.config import ModelConfig, preset, tensor_specs
from moonlet.config.gguf_tensors import GgufSlot, forms_of
from moonlet.config.sizes import ModelSizes, matrices, model_sizes
from moonlet.config.tensors import Part, TensorSpec
from moonlet.errors import ConfigError
from moonlet.plan.weights import Weights

if TYPE_CHECKING:
    from moonlet.quant.mixes import Mix

_FORMS = ("native", "bf16", "fp16", "fp8", "int4", "nvfp4", "mxfp4")
# Values and bytes of a block, and bytes of the scale that a whole matrix has.
_BLOCKS = {"nvfp4": (16, 9, 4), "mxfp4": (32, 17, 0)}
_BITS = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,4})?) ?bpw")
_AS_F16 = (("vision_tower.*", "F16"), ("mm_projector.*", "F16"))
_MTP_NOTE = "without the layer for multi-token prediction that the repository holds as well"
_Stored = dict[Part, dict[str, float]]


def quantizations() -> tuple[str, ...]:
    """The names that `weights_as` knows; besides them it takes a .toml file and "3.33bpw"."""
    from moonlet.quant.mixes import NAMES
    from moonlet.quant.types import TYPES

    types = (kind.lower() for kind in TYPES)
    return tuple(dict.fromkeys((*_FORMS, *NAMES, *_published(), *types)))


def weights_as(config: ModelConfig, quantization: str = "native") -> Weights:
    """`config` stored as `quantization` says; upper and lower case are the same.

    Headers, alignment and files beside the weights are not counted, nor is a layer for multi-token
    prediction. Raises ConfigError for an unknown name and for a mix's file that is not one.
    """
    name = quantization.lower()
    if name in _BLOCKS:
        return _as_fp4(config, name)
    if name in _FORMS:
        note = _MTP_NOTE if config.num_nextn_predict_layers else ""
        return Weights(config, name, _stored(_form_sizes(config, name)), note)
    if bits := _BITS.fullmatch(name):
        return _at_bits(config, name, float(bits[1]))
    from moonlet.quant.mixes import NAMES, Mix, load_mix
    from moonlet.quant.types import TYPES

    if name in NAMES or name.endswith(".toml"):
        mix = load_mix(quantization)
        return Weights(config, mix.name, _as_mix(config, mix))
    if name in _published():
        return _as_published(config, name)
    if name.upper() in TYPES:
        return Weights(config, name, _as_mix(config, Mix(name, (*_AS_F16, ("*", name.upper())))))
    near = get_close_matches(name, quantizations(), n=3, cutoff=0.3) or _FORMS
    raise ConfigError(
        f"{quantization[:80]!r} is no quantization that moonlet knows; the nearest are {', '.join(near)}, "
        'and "3.5bpw" or a .toml file with the table of a mix are taken, too'
    )


def weights_of_parts(
    config: ModelConfig, label: str, bytes_by_part: Mapping[Part, Mapping[str, float]]
) -> Weights:
    """Weights as a reader found them in files: bytes by part and type."""
    return Weights(config, label, {part: dict(kinds) for part, kinds in bytes_by_part.items()})


def _form_sizes(config: ModelConfig, name: str) -> ModelSizes:
    if name == "fp16":
        return model_sizes(replace(config, dtype="float16", quantization=None))
    if name in ("fp8", "int4"):
        return model_sizes(config, name)
    return model_sizes(config, "bfloat16" if name == "bf16" else "native")


def _stored(sizes: ModelSizes) -> _Stored:
    return {
        part: {kind: float(size) for kind, size in found.bytes_by_type.items()}
        for part, found in sizes.parts.items()
    }


def _as_fp4(config: ModelConfig, name: str) -> Weights:
    """4-bit floats: NVFP4 in groups of 16 with an FP8 scale, and a float32 scale for every matrix (NVIDIA,
    Transformer Engine); MXFP4 in groups of 32 with an 8-bit exponent (OCP Microscaling 1.0).
    """
    values, block_bytes, own_scale = _BLOCKS[name]
    stored = _stored(model_sizes(config, "bfloat16"))
    size = 0
    for spec in tensor_specs(config):
        if spec.part == "experts":
            count, rows, cols = matrices(spec)
            size += count * (rows * math.ceil(cols / values) * block_bytes + own_scale)
    if size:
        stored["experts"] = {name: float(size)}
    return Weights(config, name, stored, "everything but the routed experts is assumed in bfloat16")


def _as_mix(config: ModelConfig, mix: "Mix") -> _Stored:
    """Bytes of the tensors of the GGUF files (model and vision) that `moonlet convert` makes with `mix`."""
    from moonlet.quant.types import TYPES

    stored: _Stored = {}
    for spec in tensor_specs(config):
        kinds = stored.setdefault(spec.part, {})
        for slot in forms_of(spec, config)[0]:
            kind = _type_in_gguf(mix, spec, slot)
            size = math.prod(slot.shape[:-1]) * TYPES[kind].row_bytes(slot.shape[-1])
            kinds[kind] = kinds.get(kind, 0.0) + size
    return stored


def _type_in_gguf(mix: "Mix", spec: TensorSpec, slot: GgufSlot) -> str:
    if slot.float32 or spec.float32 or len(slot.shape) == 1:
        return "F32"
    kind = mix.type_for(spec.name, slot.shape[-2], slot.shape[-1])
    if kind == "INT4":  # Q4_0 has the same groups and codes
        return "F16" if slot.shape[-1] % 32 else "Q4_0"
    return kind


@cache
def _published() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text("utf-8"))


def _as_published(config: ModelConfig, name: str) -> Weights:
    """Somebody's file by its size: all but the routed experts at 8.5 bits a weight, experts what is left.

    The bits that this gives the experts of the published model are taken for any other.
    """
    entry = _published()[name]
    sizes = {preset(model): float(size) for model, size in entry["bytes"].items()}
    same = (one for one in sizes if one.n_routed_experts == config.n_routed_experts)
    model = next(same, next(iter(sizes)))
    bits = 8 * (sizes[model] - _bytes_beside(_as_q8_0(model))) / _num_weights(model, "experts")
    stored = _as_q8_0(config)
    if "experts" in stored:
        stored["experts"] = {f"{bits:.2f} bits": _num_weights(config, "experts") * bits / 8}
    note = (
        f"about: of {name} only the size is known ({entry['source']}); all but the routed experts is assumed "
        f"at 8.5 bits a weight, which leaves these {bits:.2f}"
    )
    return Weights(config, f"{name} (about)", stored, note)


def _as_q8_0(config: ModelConfig) -> _Stored:
    from moonlet.quant.mixes import load_mix

    return _as_mix(config, load_mix("q8_0"))


def _bytes_beside(stored: _Stored) -> float:
    """Of the text model without its routed experts."""
    left_out = ("experts", "vision", "projector")
    return sum(sum(kinds.values()) for part, kinds in stored.items() if part not in left_out)


def _num_weights(config: ModelConfig, part: Part) -> int:
    return sum(spec.numel for spec in tensor_specs(config) if spec.part == part)


def _at_bits(config: ModelConfig, name: str, bits: float) -> Weights:
    if not 1 <= bits <= 16:
        raise ConfigError(f"{name} is not a size of weights that exists: give 1bpw to 16bpw")
    stored = _stored(model_sizes(config, "bfloat16"))
    for part in stored:
        if part not in ("vision", "projector"):
            stored[part] = {f"{bits:g} bits": _num_weights(config, part) * bits / 8}
    note = (
        f"every weight of the text model is assumed at {bits:g} bits, the vision tower in bfloat16"
    )
    return Weights(config, name, stored, note)
