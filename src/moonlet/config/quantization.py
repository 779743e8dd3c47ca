"""The `quantization_config` of a config.json: the two schemes the family is published in, both ways."""

from typing import Any

from moonlet.config.keys import Keys
from moonlet.config.model import QuantConfig
from moonlet.errors import ConfigError, NotSupportedError


def read_quantization(raw: Any) -> QuantConfig | None:
    """Raises ConfigError or NotSupportedError for anything but INT4 in groups of 32 and FP8 in 128x128 blocks."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise ConfigError(f"quantization_config is a {type(raw).__name__}, not a JSON object")
    keys = Keys(
        raw,
        frozenset({"quantization_status", "version", "global_compression_ratio"}),
        "quantization_config.",
    )
    method = keys.take("quant_method", None)
    if method == "fp8":
        keys.only(
            {
                "fmt": ("e4m3",),
                "weight_block_size": ([128, 128],),
                "activation_scheme": ("dynamic",),
            }
        )
        keys.finish()
        return QuantConfig("fp8")
    if method != "compressed-tensors":
        raise NotSupportedError(
            f"quantization method {method!r} is not supported (compressed-tensors and fp8 are)"
        )
    keys.only({
        "format": ("pack-quantized",), "kv_cache_scheme": (None,), "transform_config": (None, {}), "sparsity_config": (None, {}),
    })  # fmt: skip
    groups = keys.take("config_groups", None)
    if (
        not isinstance(groups, dict)
        or len(groups) != 1
        or not isinstance(next(iter(groups.values())), dict)
    ):
        raise NotSupportedError(
            "compressed-tensors weights are supported in exactly one config group"
        )
    _int4_group(
        Keys(
            next(iter(groups.values())), frozenset({"format"}), "quantization_config.config_groups."
        )
    )
    ignore = keys.take("ignore", None) or []
    if not isinstance(ignore, list) or not all(isinstance(item, str) for item in ignore):
        raise ConfigError("quantization_config.ignore is not a list of strings")
    keys.finish()
    return QuantConfig("int4", tuple(ignore))


def _int4_group(keys: Keys) -> None:
    """Refuses every scheme but 4-bit integers, symmetric, in groups of 32, weights only."""
    keys.only(
        {"targets": (["Linear"],), "input_activations": (None,), "output_activations": (None,)}
    )
    weights = keys.take("weights")
    if not isinstance(weights, dict):
        raise ConfigError(
            f"the weights of a quantization group are a {type(weights).__name__}, not a JSON object"
        )
    keys.finish()
    inner = Keys(
        weights,
        frozenset({"observer", "observer_kwargs", "scale_dtype", "zp_dtype"}),
        f"{keys.prefix}weights.",
    )
    for name, value in (
        ("num_bits", 4),
        ("type", "int"),
        ("symmetric", True),
        ("strategy", "group"),
        ("group_size", 32),
    ):
        if (found := inner.take(name)) != value:
            raise NotSupportedError(
                f"{inner.prefix}{name} {found!r} is not supported (only {value!r} is)"
            )
    inner.only({"dynamic": (False,), "actorder": (None,), "block_structure": (None,)})
    inner.finish()


def write_quantization(quant: QuantConfig) -> dict[str, Any]:
    """The published description of the scheme."""
    if quant.method == "fp8":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
        }
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
               "dynamic": False, "observer": "minmax", "actorder": None, "block_structure": None}  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": list(quant.ignore),
    }
