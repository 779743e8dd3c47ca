"""Spoiled GGUF files: 1,200 of them, each of which loads or ends in one of our errors, in little memory."""

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer
from moonlet.checkpoint import GgufCheckpoint
from moonlet.checkpoint.gguf import GgufFile
from moonlet.checkpoint.gguf_write import gguf_metadata
from moonlet.config import preset
from moonlet.errors import CheckpointError, ConfigError, NotSupportedError, TokenizerError
from tests.checkpoint.tiny import random_tensors
from tests.checkpoint.tiny_gguf import slots_of, write_mmproj, write_slots

CONFIG = replace(preset("tiny"), num_hidden_layers=1, first_k_dense_replace=0, n_routed_experts=2)
NUMBERS = [0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
ROUNDS = 600  # for either file
# Of Python and numpy, for a file of some 200 KB: what reading the unspoiled file takes is half of it.
MEMORY_LIMIT = 4 << 20


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tensors = tmp_path_factory.mktemp("valid"), random_tensors(CONFIG)
    metadata = gguf_metadata(CONFIG, "tiny", 7, (BYTE_TOKENS, Tokenizer(BYTE_TOKENS).special), "{}")
    slots = slots_of(CONFIG, is_vision=False)
    write_slots(folder / "m.gguf", metadata, slots, tensors, CONFIG, "Q8_0")
    write_mmproj(folder / "mmproj.gguf", CONFIG, tensors)
    return folder


def load(folder: Path) -> None:
    checkpoint = GgufCheckpoint(folder / "m.gguf")
    for _, tensor in checkpoint.tensors(torch.bfloat16):
        assert tensor.numel()
    checkpoint.matrix("language_model.lm_head.weight")
    assert checkpoint.preprocessor is not None
    Tokenizer(*checkpoint.vocabulary())


def spoiled(content: bytes, start: int, rng: np.random.Generator) -> bytes:
    """`content` with one or two things wrong, most of them in the `start` bytes before the data."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 3)):
        end = start if rng.random() < 0.8 else len(data)
        at = int(rng.integers(0, max(1, min(end, len(data)) - 8)))
        match rng.integers(0, 7):
            case 0:
                data[at] ^= 1 << rng.integers(0, 8)
            case 1:
                data[at] = rng.integers(0, 256)
            case 2:
                data[at : at + 8] = struct.pack("<Q", NUMBERS[rng.integers(0, len(NUMBERS))])
            case 3:
                data[at : at + 4] = struct.pack("<I", int(rng.integers(0, 40)))
            case 4:
                del data[at + 8 :]
            case 5:
                del data[at : at + int(rng.integers(1, 64))]
            case _:
                data[at:at] = data[at : at + int(rng.integers(1, 64))]
    return bytes(data)


@pytest.mark.parametrize("name", ["m.gguf", "mmproj.gguf"])
def test_spoiled_files_never_do_worse_than_an_error(valid: Path, tmp_path: Path, name: str) -> None:
    for path in valid.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (valid / name).read_bytes()
    start = min(tensor.begin for tensor in GgufFile(valid / name).tensors.values())
    load(tmp_path)
    refusals: list[str] = []
    rng = np.random.default_rng(0)
    for number in range(ROUNDS):
        (tmp_path / name).write_bytes(spoiled(content, start, rng))
        tracemalloc.start()
        try:
            load(tmp_path)
        except (CheckpointError, ConfigError, NotSupportedError, TokenizerError) as error:
            refusals.append(str(error))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_LIMIT, number
    assert max(map(len, refusals)) < 4000
    assert not any("\n" in text for text in refusals)
    # Else the spoiling is too gentle, or too rough.
    assert ROUNDS // 20 < len(refusals) < ROUNDS - ROUNDS // 20
