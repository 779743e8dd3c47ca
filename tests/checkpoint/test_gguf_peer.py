"""Our files in llama.cpp and its file here: logits, a picture, token ids, against what it computed.

`peer_gguf.py` says how the results were made; the digests tell that they are of the files written today.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moonlet import nano
from moonlet.chat.tokenizer import Tokenizer
from moonlet.checkpoint import GgufCheckpoint
from moonlet.config import ModelConfig
from moonlet.model import Model
from moonlet.model.network import Media
from tests.checkpoint.peer_gguf import (
    CASES,
    K25,
    QUANTIZED,
    RESULTS,
    TEXTS,
    TOKENS,
    picture,
    shown,
    weights_of,
    write_case,
    write_nano,
)
from tests.checkpoint.tiny_gguf import write_mmproj

FLOAT, EIGHT_BIT = (
    1e-5,
    2e-2,
)  # llama.cpp rounds activations to 8 bits before it meets a Q8_0 matrix


@pytest.fixture(scope="module")
def frozen() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())


def difference(ours: torch.Tensor, theirs: list[list[float]]) -> float:
    found, wanted = shown(ours.numpy()), np.array(theirs)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def loaded(checkpoint: GgufCheckpoint, config: ModelConfig | None = None) -> Model:
    model = Model(config or checkpoint.config)
    model.load_state_dict(dict(checkpoint.tensors(torch.float32)))
    return model


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    return model(torch.tensor([TOKENS]))[0]


@pytest.mark.parametrize("name", [name for name in CASES if name != "quantized"])
def test_llama_cpp_computes_our_logits(tmp_path: Path, frozen: dict[str, Any], name: str) -> None:
    digest = write_case(tmp_path / "m.gguf", CASES[name])
    assert digest == frozen["digest"][name]
    checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
    found = difference(logits(loaded(checkpoint)), frozen["logits"][name])
    assert found < FLOAT
    # The reason for reading latent_norm_eps as rms_norm_eps: the other choice is several times further off.
    other = loaded(checkpoint, replace(checkpoint.config, latent_norm_eps=1e-6))
    assert difference(logits(other), frozen["logits"][name]) > 2 * found


def test_a_file_of_llama_cpps_quantizer_loads_here(frozen: dict[str, Any]) -> None:
    checkpoint = GgufCheckpoint(QUANTIZED)
    assert checkpoint.config == replace(CASES["quantized"], dtype="bfloat16")
    stack = "language_model.model.layers.0.mlp.experts.down_proj"
    assert checkpoint.matrix(stack, 1).type == "Q8_0"
    model = loaded(checkpoint)
    assert difference(logits(model), frozen["logits"]["quantized"]) < EIGHT_BIT
    plain = Model(checkpoint.config)
    plain.load_state_dict(weights_of(CASES["quantized"]))
    assert 0 < difference(logits(plain), shown(logits(model).numpy()).tolist()) < EIGHT_BIT


@torch.no_grad()
def test_llama_cpp_sees_what_our_tower_sees(tmp_path: Path, frozen: dict[str, Any]) -> None:
    assert write_case(tmp_path / "m.gguf", K25) == frozen["digest"]["picture"]
    write_mmproj(tmp_path / "mmproj.gguf", K25, weights_of(K25))
    model = loaded(GgufCheckpoint(tmp_path / "m.gguf"))
    assert model.vision_tower is not None
    assert model.mm_projector is not None
    pixels = torch.from_numpy(picture()).float() / 255 * 2 - 1
    patches = pixels.view(8, 14, 8, 14, 3).permute(0, 2, 4, 1, 3).reshape(64, 3, 14, 14)
    media = Media(patches, [(1, 8, 8)])
    found = model.mm_projector(model.vision_tower(media.patches, media.grids))
    # llama.cpp's projector has the tanh form of GELU, ours (as published) the exact one.
    assert difference(found, frozen["logits"]["picture"]) < 1e-3


def test_llama_cpp_splits_text_as_nano_does(tmp_path: Path, frozen: dict[str, Any]) -> None:
    write_nano(tmp_path / "m.gguf")
    tokenizer = Tokenizer.from_folder(nano.folder())
    assert [tokenizer.encode(text) for text in TEXTS] == frozen["nano ids"]
