"""What `moonlet convert` writes is the same model to llama.cpp: its logits, frozen, against ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moonlet.checkpoint import open_checkpoint
from moonlet.model import Model
from tests.checkpoint.peer_convert import MIXES, MODELS, RESULTS, TOKENS, shown, write_cases

FLOAT = 1e-4  # the kept logits have five digits
# llama.cpp rounds activations to 8 bits before it meets a quantized matrix. Where that changes which expert
# is asked the answer is another one, so the bar is for the token in the middle.
EIGHT_BIT = 2e-2


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Our logits in float32, from the weights that each file decodes to."""
    found = {}
    for name, path in write_cases(tmp_path_factory.mktemp("cases")):
        found[name] = logits(path)
    return found


@torch.inference_mode()
def logits(path: Path) -> np.ndarray:
    checkpoint = open_checkpoint(path)
    checkpoint.validate()
    model = Model(checkpoint.config).eval()
    model.load_state_dict(dict(checkpoint.tensors(torch.float32)))
    return shown(model(torch.tensor([TOKENS]))[0].numpy())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mix", MIXES)
def test_logits_agree(ours: dict[str, np.ndarray], model: str, mix: str) -> None:
    theirs = np.array(json.loads(RESULTS.read_text())[f"{model} {mix}"])
    found = ours[f"{model} {mix}"]
    error = np.linalg.norm(found - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    if mix == "f32":
        assert error.max() < FLOAT
    else:
        assert np.median(error) < EIGHT_BIT
        assert (error < 2 * EIGHT_BIT).mean() > 0.7
