"""What MODEL means on the command line.

| MODEL               | inspect                    | serve, chat                       |
| ------------------- | -------------------------- | --------------------------------- |
| nothing             | the embedded model, nano   | the embedded model, nano          |
| a folder            | its config.json            | a Hugging Face checkpoint         |
| a packed folder     | its config.json and header | the folder                        |
| a .json file        | that config.json           | -                                 |
| a preset's name     | the preset                 | -                                 |
| `random:PRESET`     | the preset                 | -                                 |
| `org/name`          | its config.json (fetched)  | the checkpoint (fetched)          |
| a .gguf file        | all but the weights        | the file, and its other parts     |
"""

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moonlet import nano
from moonlet.cli.console import UsageError, busy
from moonlet.config import PRESETS, ModelConfig, load_config, preset
from moonlet.errors import NotSupportedError

if TYPE_CHECKING:
    from moonlet.chat.provider import Provider
    from moonlet.chat.sources import MediaAccess

EMBEDDED = "nano"


@dataclass(frozen=True)
class Described:
    """A model to look at: `weights` is its folder or GGUF file, when that is on this machine."""

    name: str
    config: ModelConfig
    weights: Path | None = None


def describe(model: str | None) -> Described:
    """The configuration that MODEL names; of a repository only config.json is fetched.

    Raises UsageError, ConfigError, CheckpointError or NotSupportedError.
    """
    if model is None:
        return Described(EMBEDDED, load_config(nano.folder() / "config.json"), nano.folder())
    path = _path(model)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        from moonlet.checkpoint.gguf_model import GgufModel, open_files
        from moonlet.checkpoint.hub import resolve

        resolve(model)  # raises CheckpointError when it is not there

        return Described(path.stem, GgufModel(path, *open_files(path)).config, path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            ggufs = sorted(path.glob("*.gguf"))
            hint = f"; it holds {ggufs[0].name}, which can be named itself" if ggufs else ""
            raise UsageError(f"{path} has no config.json, which a model folder needs{hint}")
        return Described(path.resolve().name, load_config(path / "config.json"), path)
    if path.suffix == ".json" or path.is_file():
        return Described(path.stem, load_config(path))
    name = model.removeprefix("random:")
    if name != model or name.lower() in PRESETS:
        return Described(name, preset(name))
    if model.count("/") == 1:
        with busy(f"fetching config.json of {model}"):
            from moonlet.checkpoint.hub import fetch_config

            return Described(model, load_config(fetch_config(model)))
    raise UsageError(
        f"{model!r} is no folder, no config.json, no repository name (org/name) "
        f"and none of the presets {', '.join(PRESETS)}"
    )


def add_model_options(parser: ArgumentParser) -> None:
    """What can be said about how MODEL is loaded."""
    parser.add_argument(
        "--keep-floats",
        action="store_true",
        help="compute with float weights beside quantized ones as stored (default: rounded to 8 bits)",
    )


def load_provider(
    model: str | None,
    keep_floats: bool = False,
    cache: tuple[Path, int] | None = None,
    access: "MediaAccess | None" = None,
) -> "Provider":
    """The model that MODEL names, loaded and ready to answer.

    `keep_floats`: float weights beside quantized ones stay as stored. cache: a folder where the latents of
    prompts outlive the process, and at most how many bytes of them. access: where media may come from
    besides data URLs. Raises what `describe` raises,
    and CheckpointError for weights that cannot be used.
    """
    if model is not None:
        _refuse_without_weights(model)
    with busy(f"loading {model or EMBEDDED}"):
        from moonlet.chat.sources import DATA_URLS_ONLY
        from moonlet.checkpoint import resolve
        from moonlet.checkpoint.packed import is_packed
        from moonlet.engine import CacheFolder, load

        folder = None if cache is None else CacheFolder(*cache)
        floats = "stored" if keep_floats else "Q8_0"
        if model is None:
            return load(nano.folder(), EMBEDDED, floats, folder, access or DATA_URLS_ONLY)
        path, weights = _path(model), resolve(model)
        if keep_floats and is_packed(weights):
            raise UsageError(
                f"{model} was packed with its floats as they are to be: pack it again with moonlet convert "
                "--dtype bf16 in place of --keep-floats"
            )
        name = path.resolve().stem if path.is_file() else path.resolve().name
        return load(
            weights, name if path.exists() else model, floats, folder, access or DATA_URLS_ONLY
        )


def checkpoint_path(model: str | None) -> Path:
    """Where the weights that MODEL names lie, fetched if need be. Raises as `load_provider` does."""
    from moonlet.checkpoint import resolve

    if model is None:
        return nano.folder()
    _refuse_without_weights(model)
    _path(model)
    return resolve(model)


def _path(model: str) -> Path:
    """`model` as a path that can be asked whether it exists. Raises UsageError."""
    try:
        path = Path(model).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null character
        raise UsageError(f"{model[:80]!r} is no MODEL: {error.args[-1]}") from error
    return path


def _refuse_without_weights(model: str) -> None:
    if model.startswith("random:"):
        raise NotSupportedError(f"{model}: random weights can only be inspected so far")
    if model.lower() in PRESETS and not _path(model).exists():
        raise UsageError(
            f"{model} is a preset, a shape without weights; give a folder or a repository name"
        )
