"""Single matrices of a folder as they are stored: plain, INT4, FP8, and stacks of experts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moonlet.checkpoint import open_checkpoint, save_checkpoint
from moonlet.quant import bf16, fp8, int4
from tests.checkpoint.tiny import TEXT, edit_tensors, random_tensors

LAYER = "language_model.model.layers.1."
GATE_UP, DOWN = LAYER + "mlp.experts.gate_up_proj", LAYER + "mlp.experts.down_proj"
O_PROJ = LAYER + "self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")],
)
def test_plain_matrices_come_as_their_bytes(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    tensors = random_tensors(TEXT, dtype)
    save_checkpoint(tmp_path / "m", TEXT, tensors)
    checkpoint = open_checkpoint(tmp_path / "m")
    half = TEXT.moe_intermediate_size
    for stored, wanted in (
        (checkpoint.matrix(O_PROJ), tensors[O_PROJ]),
        (checkpoint.matrix(GATE_UP, 1, "gate"), tensors[GATE_UP][1, :half]),
        (checkpoint.matrix(GATE_UP, 1, "up"), tensors[GATE_UP][1, half:]),
        (checkpoint.matrix(DOWN, 0), tensors[DOWN][0]),
    ):
        assert stored.type == name
        assert (stored.rows, stored.cols) == wanted.shape
        assert stored.data.flags.c_contiguous
        assert stored.data.tobytes() == wanted.contiguous().view(torch.uint8).numpy().tobytes()
    assert torch.equal(checkpoint.tensor(O_PROJ), tensors[O_PROJ])
    for wrong in (("nothing",), (GATE_UP,), (GATE_UP, 2, "gate"), (GATE_UP, 0)):
        with pytest.raises(KeyError):
            checkpoint.matrix(*wrong)  # type: ignore[arg-type]
    kv_b = LAYER + "self_attn.kv_b_proj.weight"
    with pytest.raises(KeyError):
        checkpoint.matrix(kv_b, 0, "k")


def test_a_whole_stack_in_one_tensor_is_cut(tmp_path: Path) -> None:
    tensors = random_tensors(TEXT)
    save_checkpoint(tmp_path / "m", TEXT, tensors)

    def stack(stored: dict[str, tuple[str, list[int], bytes]]) -> None:
        for name in [name for name in stored if ".mlp.experts." in name]:
            del stored[name]
        for name in (GATE_UP, DOWN):
            tensor = tensors[name]
            stored[name] = ("F32", list(tensor.shape), tensor.numpy().tobytes())

    edit_tensors(tmp_path / "m" / "model.safetensors", stack)
    checkpoint = open_checkpoint(tmp_path / "m")
    up = tensors[GATE_UP][1, TEXT.moe_intermediate_size :]
    assert checkpoint.matrix(GATE_UP, 1, "up").data.tobytes() == up.numpy().tobytes()
    assert checkpoint.matrix(DOWN, 1).data.tobytes() == tensors[DOWN][1].numpy().tobytes()


def test_int4_keeps_words_and_scales(tmp_path: Path) -> None:
    # 72 columns: neither the words nor the groups of 32 end with the row.
    config = replace(TEXT, hidden_size=72)
    tensors = random_tensors(config)
    save_checkpoint(tmp_path / "m", config, tensors, quantize="int4")
    stored = open_checkpoint(tmp_path / "m").matrix(GATE_UP, 1, "gate")
    assert (stored.type, stored.rows, stored.cols) == ("INT4", 32, 72)
    assert stored.scale is not None
    assert (stored.data.shape, stored.scale.shape) == ((32, 36), (32, 3))
    decoded = int4.decode(stored.data.view(np.int32), bf16.to_float32(stored.scale), 72)
    packed, scale = int4.encode(tensors[GATE_UP][1, :32].numpy())
    assert np.array_equal(decoded, int4.decode(packed, scale, 72))


def test_int4_with_scales_that_bfloat16_cannot_hold_is_decoded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", TEXT, random_tensors(TEXT), quantize="int4")

    def widen(stored: dict[str, tuple[str, list[int], bytes]]) -> None:
        for name in [name for name in stored if name.endswith("weight_scale")]:
            _, shape, data = stored[name]
            scale = bf16.to_float32(np.frombuffer(data, np.uint16)) * np.float32(1.001)
            stored[name] = ("F32", shape, scale.tobytes())

    edit_tensors(tmp_path / "m" / "model.safetensors", widen)
    checkpoint = open_checkpoint(tmp_path / "m")
    stored = checkpoint.matrix(DOWN, 1)
    assert stored.type == "F32"
    wanted = checkpoint.tensor(DOWN, torch.float32)[1]
    assert stored.data.tobytes() == wanted.numpy().tobytes()


def test_fp8_is_decoded_to_bfloat16(tmp_path: Path) -> None:
    tensors = random_tensors(TEXT)
    save_checkpoint(tmp_path / "m", TEXT, tensors)
    codes, scale = fp8.encode(tensors[O_PROJ].numpy())

    def to_fp8(stored: dict[str, tuple[str, list[int], bytes]]) -> None:
        name = O_PROJ.removeprefix("language_model.")
        stored[name] = ("F8_E4M3", list(codes.shape), codes.tobytes())
        stored[name + "_scale_inv"] = ("F32", list(scale.shape), scale.tobytes())

    edit_tensors(tmp_path / "m" / "model.safetensors", to_fp8)
    stored = open_checkpoint(tmp_path / "m").matrix(O_PROJ)
    assert stored.type == "BF16"
    wanted = bf16.from_float32(fp8.decode(codes, scale))
    assert np.array_equal(stored.data.view(np.uint16), wanted)
