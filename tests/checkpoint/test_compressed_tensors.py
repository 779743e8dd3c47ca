"""INT4 between us and the makers of the format: their package packs for us, their loader reads ours."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moonlet.chat.tokenizer import BYTE_TOKENS, write_vocabulary
from moonlet.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from moonlet.config import preset, to_hf
from moonlet.model import Model, load_model, load_packed
from tests.checkpoint.test_convert import EVEN, convert
from tests.checkpoint.tiny import edit_tensors, random_tensors

pytest.importorskip("compressed_tensors")
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

SCHEME = QuantizationScheme(
    targets=["Linear"],
    weights=QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=32
    ),
)
TEXT = replace(
    EVEN, model_type="deepseek_v3", vision=None, media_placeholder_token_id=None,
    n_routed_experts=4, num_experts_per_tok=2,
)  # fmt: skip


@pytest.fixture(scope="module", params=[EVEN, TEXT], ids=["k25", "text"])
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder in Kimi's names whose experts their package has packed, and what it takes them for."""
    folder = tmp_path_factory.mktemp("theirs") / "m"
    config, weights = request.param, {}
    weights_of = Model(replace(config, initializer_range=0.1)).state_dict()
    save_checkpoint(folder, config, weights_of, dtype=torch.bfloat16)

    def pack(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".mlp.experts." in name]:
            _, shape, content = tensors.pop(name)
            bits = torch.frombuffer(bytearray(content), dtype=torch.bfloat16)
            groups = bits.view(shape[0], -1, 32)
            # Their observer uses all 16 codes: half a step more range than Kimi's training does.
            scale = (groups.abs().amax(-1).float() / 7.5).bfloat16()
            state = {"weight": bits.view(shape), "weight_scale": scale}
            packed = PackedQuantizationCompressor.compress(state, SCHEME)
            weights[name] = PackedQuantizationCompressor.decompress(packed, SCHEME)["weight"]
            kinds = {torch.int32: "I32", torch.int64: "I64", torch.bfloat16: "BF16"}
            for role, value in packed.items():
                data = value.contiguous().view(torch.uint8).numpy().tobytes()
                entry = (kinds[value.dtype], list(value.shape), data)
                tensors[name.removesuffix("weight") + role] = entry

    edit_tensors(folder / "model.safetensors", pack)
    description = to_hf(preset("kimi-k2-thinking"))["quantization_config"]
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = description
    (folder / "config.json").write_text(json.dumps(content))
    return folder, weights


def test_what_their_package_packed_is_int4_here(theirs: Any) -> None:
    folder, weights = theirs
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, Checkpoint)
    checkpoint.validate()
    prefix = "" if checkpoint.config.vision is None else "language_model."
    codes = set()
    for expert in range(checkpoint.config.n_routed_experts):
        for which in ("gate", "up", "down"):
            stack, block = ("down_proj", None) if which == "down" else ("gate_up_proj", which)
            name = f"language_model.model.layers.1.mlp.experts.{stack}"
            stored = checkpoint.matrix(name, expert, block)
            assert stored.type == "INT4"
            codes |= set(np.unique(stored.data & 15))
            whole = checkpoint.tensor(name, torch.bfloat16)[expert]
            half = whole.shape[0] // 2
            ours = whole if block is None else whole[:half] if block == "gate" else whole[half:]
            wanted = weights[f"{prefix}model.layers.1.mlp.experts.{expert}.{which}_proj.weight"]
            assert torch.equal(ours, wanted.to(torch.bfloat16))
    assert codes == set(range(16))


@torch.inference_mode()
def test_it_runs_as_it_is(theirs: Any) -> None:
    folder, _ = theirs
    ids = torch.arange(5, 45, 2)[None]
    wanted, found = load_model(folder, torch.float32)(ids), load_packed(folder)(ids)
    error = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert float(error.median()) < 4e-2


def test_it_goes_to_gguf_without_loss(theirs: Any, tmp_path: Path) -> None:
    folder, _ = theirs
    write_vocabulary(folder / "tiktoken.model", BYTE_TOKENS)
    summary = convert(folder, tmp_path / "m.gguf")
    assert summary.rounded == 0
    ours, source = (
        dict(open_checkpoint(p).tensors(torch.float32)) for p in (tmp_path / "m.gguf", folder)
    )
    assert all(torch.equal(ours[name], source[name]) for name in source)


def test_transformers_loads_what_convert_exports(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = replace(TEXT, rope=replace(TEXT.rope, factor=2.0))
    save_checkpoint(tmp_path / "a", config, random_tensors(config, torch.bfloat16))
    convert(tmp_path / "a", tmp_path / "b", "native-int4")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "b", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values())
    found = model.state_dict()
    for name, wanted in open_checkpoint(tmp_path / "b").tensors(torch.float32):
        ours = found[name.removeprefix("language_model.")].float()
        assert torch.allclose(ours, wanted, rtol=2**-8, atol=0), name
