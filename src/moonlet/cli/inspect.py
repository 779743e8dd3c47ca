"""`moonlet inspect MODEL`: how large a model is, part by part.

From its configuration alone, but for GGUF files and packed folders, which say themselves how each tensor
is stored.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Literal

from moonlet.cli.console import add_json_flag, print_json
from moonlet.cli.models import Described, describe
from moonlet.config import ModelConfig
from moonlet.config.sizes import PROJECTOR, VISION_TOWER, model_sizes
from moonlet.config.tensors import Part

PACKED = "packed.safetensors"  # what makes a folder a packed one; `checkpoint` would load torch


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "inspect",
        help="parameters, bytes by part and type, cache bytes per token",
        description="Count a model's parameters and bytes. Reads its configuration, and of GGUF files and "
        "packed folders how tensors are stored; never weights.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="folder, .gguf file, config.json, preset, random:PRESET or org/name (default: the embedded "
        "model)",
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    described = describe(args.model)
    document = report(described)
    if args.json:
        print_json(document)
    else:
        _print_tables(document)
    return 0


def report(described: Described) -> dict[str, Any]:
    """The JSON document. Bytes are counted from the shapes; only `files` is what lies on the disk.

    `bytes` is the model as published, `bytes_if` as if its experts were INT4 and the rest bfloat16
    (Kimi's recipe), or as if all were bfloat16. Of a GGUF file or a packed folder `bytes` and those of
    `parts` are what its tensors take, by the types in it.
    """
    config = described.config
    native = model_sizes(config)
    text = native.language_model
    stored: dict[Part, dict[str, int]] = {
        part: {**size.bytes_by_type} for part, size in native.parts.items()
    }
    files = None
    if described.weights is not None:
        stored, files = _in_files(described.weights, stored)

    def total(*parts: Part) -> int:
        return sum(sum(stored.get(part, {}).values()) for part in parts)

    return {
        "model": described.name,
        "model_type": config.model_type,
        "parameters": {
            "language_model": {
                "total": native.parameters(*text),
                "active": native.parameters_active,
                "active_with_embedding": native.parameters_active_with_embedding,
            },
            "vision_tower": native.parameters(*VISION_TOWER),
            "projector": native.parameters(*PROJECTOR),
            "total": native.parameters(*native.parts),
        },
        "bytes": {
            "language_model": total(*text),
            "vision_tower": total(*VISION_TOWER),
            "projector": total(*PROJECTOR),
            "total": total(*native.parts),
        },
        "bytes_if": {kind: _bytes_if(config, kind) for kind in ("int4", "bfloat16")},
        "parts": {
            part: {"parameters": size.parameters, "bytes": stored[part]}
            for part, size in native.parts.items()
        },
        "cache_bytes_per_token": native.cache_bytes_per_token,
        "context_length": config.max_position_embeddings,
        "files": files,
    }


def _bytes_if(config: ModelConfig, kind: Literal["int4", "bfloat16"]) -> int:
    sizes = model_sizes(config, kind)
    return sizes.bytes_stored(*sizes.parts)


def _in_files(
    weights: Path, published: dict[Part, dict[str, int]]
) -> tuple[dict[Part, dict[str, int]], dict[str, int]]:
    """Bytes by part and type as `weights` holds them, or as `published` for a folder, and the files' size."""
    stored, paths = published, list(weights.glob("*.safetensors"))
    if weights.is_file():
        from moonlet.checkpoint.gguf_model import GgufModel, open_files

        opened = GgufModel(weights, *open_files(weights))
        stored, paths = opened.bytes_by_part(), opened.paths
    elif weights / PACKED in paths:
        from moonlet.checkpoint import PackedCheckpoint

        opened = PackedCheckpoint(weights)
        stored, paths = opened.bytes_by_part(), opened.paths
    sizes = [path.stat().st_size for path in paths]
    return stored, {"count": len(sizes), "bytes": sum(sizes)}


def _print_tables(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    parts = Table("part", "stored as", title=f"{document['model']} ({document['model_type']})")
    for column in ("parameters", "bytes"):
        parts.add_column(column, justify="right")
    for name, part in document["parts"].items():
        name = {"vision": "vision tower"}.get(name, name.replace("_", " "))
        kinds = ", ".join(part["bytes"])
        parts.add_row(name, kinds, count(part["parameters"]), size(sum(part["bytes"].values())))
    parts.add_section()
    parameters, stored = document["parameters"], document["bytes"]
    if parameters["vision_tower"]:
        whole = parameters["language_model"]["total"]
        parts.add_row("language model", "", count(whole), size(stored["language_model"]))
    parts.add_row("all", "", count(parameters["total"]), size(stored["total"]), style="bold")

    text = parameters["language_model"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("active per token", f"{count(text['active'])} without the input embedding, "
                  f"{count(text['active_with_embedding'])} with it")  # fmt: skip
    for kind, number in document["bytes_if"].items():
        facts.add_row(f"as {kind}", size(number))
    if document["files"]:
        facts.add_row(
            "weight files", f"{size(document['files']['bytes'])} in {document['files']['count']}"
        )
    facts.add_row("cache per token", f"{document['cache_bytes_per_token']:,} bytes in bfloat16")
    whole = document["cache_bytes_per_token"] * document["context_length"]
    facts.add_row("context", f"{document['context_length']:,} tokens, {size(whole)} of cache")
    console = Console(highlight=False)
    console.print(parts)
    console.print(facts)


def count(number: int) -> str:
    """1026408232448 -> "1,026.4 B"."""
    return _scaled(number, ((10**9, "B"), (10**6, "M"), (10**3, "K")))


def size(num_bytes: int) -> str:
    """594195292672 -> "594.2 GB", in powers of ten."""
    return _scaled(num_bytes, ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")), " bytes")


def _scaled(number: int, units: tuple[tuple[int, str], ...], plain: str = "") -> str:
    for scale, unit in units:
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number}{plain}"
