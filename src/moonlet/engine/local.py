"""A checkpoint on this machine -> a provider that answers with it."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from moonlet import __version__
from moonlet.chat.jinja import load_template
from moonlet.chat.media import MERGE, PATCH
from moonlet.chat.provider import ModelCard
from moonlet.chat.sources import DATA_URLS_ONLY, MediaAccess
from moonlet.chat.tokenizer import Tokenizer
from moonlet.checkpoint import GgufCheckpoint, read_config
from moonlet.checkpoint.companions import write_files
from moonlet.config import ModelConfig
from moonlet.config.sizes import model_sizes
from moonlet.engine.disk import DiskTier
from moonlet.engine.engine import Engine
from moonlet.engine.provider import LocalProvider, SamplingDefaults
from moonlet.engine.sampler import SamplingParams
from moonlet.errors import CheckpointError, MoonletError, NotSupportedError, TokenizerError
from moonlet.model import FloatForm, is_quantized, load_model, load_packed

SMALL_BYTES = 10**9
# Up to so many, torch's threads wait for each other longer than they compute.
SERIAL_PARAMETERS = 20_000_000
_SAMPLE = 2**20  # bytes


@dataclass(frozen=True)
class CacheFolder:
    """Where the latents of prompts outlive the process, and how many bytes of them."""

    path: Path
    max_bytes: int


def load(
    path: Path,
    name: str,
    floats: FloatForm = "Q8_0",
    cache_folder: CacheFolder | None = None,
    access: MediaAccess = DATA_URLS_ONLY,
) -> LocalProvider:
    """The checkpoint at `path`, a folder or a GGUF file, ready to answer under the model name `name`.

    Quantized weights run as they are, on the kernels; `floats` says what becomes of float weights beside
    them. access: where images and videos may come from besides data URLs. Raises CheckpointError, ConfigError, TokenizerError or NotSupportedError, each saying what is wrong.
    """
    config = read_config(path)
    with companions(path) as folder:
        try:
            tokenizer = Tokenizer.from_folder(folder)
            template = load_template(folder, tokenizer, config.max_position_embeddings, access)
            defaults = sampling_defaults(folder)
        except (CheckpointError, TokenizerError) as error:  # who gave a GGUF knows no such folder
            raise type(error)(str(error).replace(str(folder), str(path))) from error
    _check_fit(config, tokenizer)  # before the weights come, which may take long
    if is_quantized(path):
        model = load_packed(path, floats)
    else:
        model = load_model(path, compute_type(config))
        if _parameters(config) <= SERIAL_PARAMETERS:
            torch.set_num_threads(1)  # in the whole process, which is there to serve this model
    disk = None
    if cache_folder is not None:
        made_by = fingerprint(path, config, floats, str(compute_type(config)))
        disk = DiskTier(cache_folder.path, made_by, cache_folder.max_bytes)
    engine = Engine(model, tokenizer.end_ids | set(config.eos_token_ids), disk=disk)
    vision = config.vision
    card = ModelCard(
        id=name,
        created=int((path / "config.json" if path.is_dir() else path).stat().st_mtime),
        context_length=engine.max_seq_len,
        supports_images=vision is not None and template.reads_images,
        supports_video=vision is not None
        and bool(vision.init_pos_emb_time)
        and template.reads_video,
        supports_reasoning=template.reasons,
    )
    return LocalProvider(engine, tokenizer, template, card, defaults)


def sampling_defaults(folder: Path) -> SamplingDefaults:
    """generation_config.json decides when it says anything about sampling. Raises CheckpointError."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return SamplingDefaults()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("do_sample") is False:
            return SamplingDefaults(SamplingParams(0.0), SamplingParams(0.0))
        if raw.get("temperature") is None:
            return SamplingDefaults()
        params = SamplingParams(
            float(raw["temperature"]), float(raw.get("top_p", 1.0)), int(raw.get("top_k", 0))
        )
    except (ValueError, TypeError, AttributeError, RecursionError, MoonletError) as error:
        raise CheckpointError(
            f"{path} does not hold usable generation settings: {error}"
        ) from error
    return SamplingDefaults(params, params)


def fingerprint(path: Path, config: ModelConfig, *computed: str) -> str:
    """Names the weights at `path` and how they are computed with, without reading them all.

    Two models share it only if their files have the same names and sizes and agree at both ends.
    """
    digest = sha256(repr((config, computed, __version__)).encode())
    weights = (
        sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")]) if path.is_dir() else [path]
    )
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as data:
            digest.update(data.read(_SAMPLE))
            data.seek(max(size - _SAMPLE, 0))
            digest.update(data.read(_SAMPLE))
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def companions(path: Path) -> Iterator[Path]:
    """A folder with the tokenizer, template and settings of a checkpoint; a GGUF's are written to one."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="moonlet-") as folder:
        write_files(GgufCheckpoint(path), Path(folder))
        yield Path(folder)


def compute_type(config: ModelConfig) -> torch.dtype | None:
    """float32 for a float model that is small in any case; None, the stored type, for all others.

    Where a CPU has no bfloat16 units float32 is faster, and it is always more exact; what it costs is
    memory.
    """
    return torch.float32 if 4 * _parameters(config) < SMALL_BYTES else None


def _parameters(config: ModelConfig) -> int:
    sizes = model_sizes(config)
    return sizes.parameters(*sizes.parts)


def _check_fit(config: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {config.vocab_size}: "
            "the files belong to different models"
        )
    if (
        config.vision
        and tokenizer.special.get("<|media_pad|>") != config.media_placeholder_token_id
    ):
        raise CheckpointError(
            f"media_placeholder_token_id is {config.media_placeholder_token_id} in config.json but "
            f"{tokenizer.special.get('<|media_pad|>')} in the tokenizer: the files belong to different models"
        )
    vision = config.vision
    if vision and (vision.patch_size, vision.merge_kernel_size) != (PATCH, (MERGE, MERGE)):
        raise NotSupportedError(
            f"images are cut into {PATCH}x{PATCH} patches merged {MERGE}x{MERGE}; this model wants "
            f"{vision.patch_size} and {vision.merge_kernel_size}"
        )
