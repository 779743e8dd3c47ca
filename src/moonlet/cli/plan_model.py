"""What MODEL and a quantization mean to `moonlet plan`: the bytes of the model's parts.

Where files can be looked at (a folder, a .gguf file, a repository), theirs are counted, from headers alone; a
quantization that they do not have is computed from the configuration, as for a preset or a config.json.
"""

from pathlib import Path

from moonlet.cli.console import busy
from moonlet.cli.inspect import PACKED
from moonlet.cli.models import Described, describe
from moonlet.config import PRESETS
from moonlet.plan.stored import weights_as, weights_of_parts
from moonlet.plan.weights import Weights

_NATIVE = "native"


def planned(model: str | None, quantization: str | None = None) -> Weights:
    """The weights that MODEL names, as stored or as `quantization` (see `moonlet.plan.stored`).

    Of a repository only the starts of files are fetched; where it holds several GGUF models, `quantization` says
    which. Raises what `describe` raises, and ConfigError for an unknown quantization.
    """
    wanted = None if quantization is None or quantization.lower() == _NATIVE else quantization
    if model is not None and _is_repository(model) and not _is_offline():
        return _on_hub(model, wanted)
    described = describe(model)
    if wanted is not None or described.weights is None:
        return weights_as(described.config, wanted or _NATIVE)
    return _in_files(described, described.weights)


def _is_repository(model: str) -> bool:
    is_name = model.count("/") == 1 and not model.startswith("random:") and model not in PRESETS
    try:
        return (
            is_name
            and not model.endswith((".json", ".gguf"))
            and not Path(model).expanduser().exists()
        )
    except (OSError, RuntimeError, ValueError):  # `describe` says what is wrong with it
        return False


def _is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set: then the config.json of an earlier download has to do."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _on_hub(repository: str, wanted: str | None) -> Weights:
    with busy(f"reading the headers of {repository}"):
        from moonlet.checkpoint.remote import stored_on_hub

        found = stored_on_hub(repository, wanted)
    if not found.stored:
        return weights_as(found.config, wanted or _NATIVE)
    label = _NATIVE if found.name == repository else found.name
    return weights_of_parts(found.config, label, found.stored)


def _in_files(described: Described, weights: Path) -> Weights:
    if weights.is_file():
        from moonlet.checkpoint.gguf_model import GgufModel, open_files

        model = GgufModel(weights, *open_files(weights))
        return weights_of_parts(model.config, described.name, model.bytes_by_part())
    if (weights / PACKED).is_file():
        from moonlet.checkpoint import PackedCheckpoint

        packed = PackedCheckpoint(weights)
        return weights_of_parts(packed.config, "packed", packed.bytes_by_part())
    if not any(weights.glob("*.safetensors*")):  # a configuration alone
        return weights_as(described.config)
    from moonlet.checkpoint.tally import stored_in_folder

    stored = stored_in_folder(weights, described.config)
    return weights_of_parts(described.config, _NATIVE, stored)
