"""The arithmetic against a real step of moonlet's own trainer: bytes that torch really holds."""

from dataclasses import replace

import pytest
import torch

from moonlet.config import ModelConfig, preset
from moonlet.config.tensors import tensor_specs
from moonlet.model import Model
from moonlet.plan.split import is_matrix, is_trained
from moonlet.plan.training import moonlet_run, training_memory
from moonlet.train import MuonClip
from moonlet.train import muonclip as trainer
from moonlet.train.batch import Batch
from moonlet.train.loop import loss_sum, track_logits

BATCH, LENGTH = 3, 64
CONFIGS = {
    "tiny": preset("tiny"),
    "nano": preset("nano"),
    "no query latent, no shared experts": replace(
        preset("tiny"), q_lora_rank=None, n_shared_experts=0, v_head_dim=24
    ),
    "wide values": replace(preset("nano"), v_head_dim=64),
}


def text(config: ModelConfig) -> Batch:
    ids = torch.randint(0, 200, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    return Batch(ids, ids.clone(), None)


def nbytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_of_a_real_step(name: str) -> None:
    """Parameters, gradients and optimizer state to the byte; activations to half a percent."""
    config = CONFIGS[name]
    model = Model(config)
    model.train()
    track_logits(model)
    optimizer = MuonClip(model, dtype=torch.bfloat16)
    kept: dict[int, torch.Tensor] = {}  # by storage: views of one tensor are held once
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_sum(model, text(config))
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    loss.backward()
    for (
        parameter
    ) in model.parameters():  # the tower saw no image; a run with images gives it gradients
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = nbytes([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step(1e-3)
    moments = [t for state in optimizer.adamw.state.values() for t in state.values()]

    predicted = training_memory(moonlet_run(config, BATCH, LENGTH)).worst.bytes
    assert predicted["parameters"] == nbytes(list(model.parameters()))
    assert predicted["gradients"] == gradients
    assert predicted["optimizer"] == nbytes(list(optimizer.buffers.values())) + nbytes(moments)
    assert predicted["activations"] == pytest.approx(activations, rel=0.005)


@pytest.mark.parametrize("name", ["tiny", "nano", "moonlight-16b-a3b", "kimi-k2.5"])
def test_muon_has_the_same_tensors_as_in_the_trainer(name: str) -> None:
    for spec in tensor_specs(preset(name)):
        if is_trained(spec):
            stand_in = torch.empty(spec.shape, device="meta")
            assert is_matrix(spec) == trainer.is_matrix(spec.name, stand_in), spec.name
