"""What travels beside the weights: tokenizer, chat template, ways to sample and to cut images.

In a folder these are files, in a GGUF metadata; here they go from either form to either.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moonlet.chat.jinja import read_source
from moonlet.chat.tokenizer import NUM_SPECIAL, Tokenizer, write_vocabulary
from moonlet.checkpoint.gguf_reader import GgufCheckpoint
from moonlet.checkpoint.gguf_vision import vision_to_gguf
from moonlet.checkpoint.gguf_write import gguf_metadata
from moonlet.checkpoint.index import INDEX_NAME, check_inside
from moonlet.checkpoint.parts import Source
from moonlet.checkpoint.untrusted import parse_json_object
from moonlet.config import ModelConfig
from moonlet.errors import CheckpointError, TokenizerError

# Small files of a model's repository. Code comes along from a folder of the user's own, and is never run here.
PATTERNS = ("*.json", "*.jinja", "*.txt", "*.md", "*.py", "tiktoken.model", "LICENSE*")
LARGEST_FILE = 64 << 20
_CARRIED = ("tokenizer.", "general.sampling.")
_SAMPLING = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
_END_TOKENS = ("[EOS]", "<|im_end|>", "[EOT]")


def carried_files(folder: Path) -> list[Path]:
    """The files of `folder` that go along into another folder.

    Raises CheckpointError for one that is a link out of the folder.
    """
    ours = ("config.json", INDEX_NAME)
    found = {path for pattern in PATTERNS for path in folder.glob(pattern)}
    found = {p for p in found if p.is_file() and p.name not in ours and not p.name.startswith(".")}
    for path in found:
        check_inside(folder, path.name)
    return sorted(path for path in found if path.stat().st_size <= LARGEST_FILE)


def write_files(source: GgufCheckpoint, folder: Path) -> None:
    """Writes what a GGUF carries as the files of a folder; a vocabulary that is not Kimi's is left out."""
    config = source.config
    if has_vocabulary(source):
        tokens, special = source.vocabulary()
        write_vocabulary(folder / "tiktoken.model", tokens)
        added = {str(index): {"content": text, "special": True} for text, index in special.items()}
        _write(folder / "tokenizer_config.json", {"added_tokens_decoder": added})
        named = [special[text] for text in _END_TOKENS if text in special]
    else:
        named = []
    if source.chat_template is not None:
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
    ends = list(dict.fromkeys((*config.eos_token_ids, *named)))
    _write(folder / "generation_config.json", _generation(source.metadata, ends))
    if source.preprocessor is not None:
        _write(folder / "preprocessor_config.json", source.preprocessor)


def has_vocabulary(source: GgufCheckpoint) -> bool:
    """Whether the file carries a vocabulary that becomes a tiktoken.model."""
    try:
        source.vocabulary()
    except ValueError:  # NotSupportedError, TokenizerError
        return False
    return True


def text_metadata(source: Source, folder: Path, name: str, file_type: int) -> dict[str, Any]:
    """The metadata of the text model's file. `folder` is where the source lies, if it is one.

    A GGUF's vocabulary, template and sampling are kept as they are. Raises NotSupportedError and
    TokenizerError for what a GGUF cannot hold.
    """
    if isinstance(source, GgufCheckpoint):
        kept = {k: v for k, v in source.metadata.items() if k.startswith(_CARRIED)}
        return gguf_metadata(source.config, name, file_type) | kept
    vocabulary = _vocabulary(folder, source.config)
    if vocabulary is None and source.config.vision is not None:
        raise CheckpointError(
            f"{folder} needs tiktoken.model beside its weights: a GGUF finds the place of images in a prompt "
            "by the vocabulary"
        )
    metadata = gguf_metadata(source.config, name, file_type, vocabulary, read_source(folder))
    return metadata | _sampling(folder / "generation_config.json")


def vision_metadata(source: Source, folder: Path) -> dict[str, Any]:
    """The metadata of the vision file."""
    if isinstance(source, GgufCheckpoint):
        return vision_to_gguf(source.config, source.preprocessor)
    path = folder / "preprocessor_config.json"
    preprocessor = parse_json_object(path.read_bytes(), str(path)) if path.is_file() else None
    return vision_to_gguf(source.config, preprocessor)


def _vocabulary(folder: Path, config: ModelConfig) -> tuple[list[bytes], Mapping[str, int]] | None:
    """The tokenizer of a folder; None where there is none of Kimi's kind."""
    if not (folder / "tiktoken.model").is_file():
        return None
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise TokenizerError(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} tokens and a model of {config.vocab_size}; "
            "a GGUF needs as many tokens as the model: take tiktoken.model away to write it without any"
        )
    base = tokenizer.vocab_size - NUM_SPECIAL
    return [tokenizer.decode_bytes([i]) for i in range(base)], tokenizer.special


def _sampling(path: Path) -> dict[str, Any]:
    """What generation_config.json says of sampling, as llama.cpp spells it."""
    if not path.is_file():
        return {}
    raw = parse_json_object(path.read_bytes(), str(path))
    if raw.get("do_sample") is False:
        return {"general.sampling.temp": 0.0}
    found: dict[str, Any] = {}
    for name, key in _SAMPLING.items():
        value = raw.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e6:
            raise CheckpointError(f"{path} gives {name} the value {value!r}, not a usable number")
        found["general.sampling." + key] = int(value) if key == "top_k" else float(value)
    return found


def _generation(metadata: Mapping[str, Any], ends: list[int]) -> dict[str, Any]:
    values: dict[str, Any] = {"eos_token_id": ends} if ends else {}
    found = {name: metadata.get("general.sampling." + key) for name, key in _SAMPLING.items()}
    if found["temperature"] == 0.0:
        return values | {"do_sample": False}
    return values | {name: value for name, value in found.items() if isinstance(value, int | float)}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
