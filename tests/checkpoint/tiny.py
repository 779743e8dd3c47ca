"""Small checkpoints, and the means to spoil them byte by byte."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moonlet.config import ModelConfig, preset, tensor_specs

Header = dict[str, Any]

VISION = preset("tiny")
TEXT = replace(
    VISION, model_type="deepseek_v3", vision=None, media_placeholder_token_id=None, vocab_size=32,
    num_hidden_layers=2, n_routed_experts=2, num_experts_per_tok=1, pad_token_id=None,
    bos_token_id=None, eos_token_ids=(),
)  # fmt: skip


def random_tensors(
    config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A value for every canonical tensor of `config`."""
    torch.manual_seed(seed)
    return {
        spec.name: torch.randn(spec.shape).to(torch.float32 if spec.float32 else dtype)
        for spec in tensor_specs(config)
    }


def read_raw(path: Path) -> tuple[Header, bytes]:
    """Header and data of a safetensors file, read the plain way."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def edit_header(path: Path, change: Callable[[Header], object]) -> None:
    """Apply `change` to the header and leave the data as they are."""
    header, data = read_raw(path)
    change(header)
    write_raw(path, json.dumps(header).encode(), data)


def read_plainly(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor of a file."""
    header, data = read_raw(path)
    header.pop("__metadata__", None)
    return {
        name: (value["dtype"], value["shape"], data[slice(*value["data_offsets"])])
        for name, value in header.items()
    }


def write_plainly(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """The inverse of `read_plainly`."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    write_raw(path, json.dumps(header).encode(), data)


def edit_tensors(
    path: Path, change: Callable[[dict[str, tuple[str, list[int], bytes]]], object]
) -> None:
    """Apply `change` to the tensors of a file and lay them out again."""
    tensors = read_plainly(path)
    change(tensors)
    write_plainly(path, tensors)
