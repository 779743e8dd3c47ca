"""Sizes by name of a quantization: against our own files, the network, and what others have published."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config import ModelConfig, load_config, preset
from moonlet.errors import ConfigError
from moonlet.plan.stored import quantizations, weights_as, weights_of_parts
from tests.shared import SHARED, needs_shared

K25, K2, V3 = preset("kimi-k2.5"), preset("kimi-k2"), preset("deepseek-v3")
TINY = preset("tiny")
assert TINY.vision is not None
KIMI_VL = replace(
    TINY, model_type="kimi_vl", q_lora_rank=None,
    vision=replace(TINY.vision, init_pos_emb_time=None, init_pos_emb_height=8, init_pos_emb_width=8),
)  # fmt: skip
BLOCKS = replace(
    TINY, hidden_size=256, moe_intermediate_size=256, num_hidden_layers=2, kv_lora_rank=256
)  # fmt: skip
CONFIGS = sorted((SHARED / "reference" / "configs").glob("*.json"))


@pytest.mark.parametrize(
    ("config", "name", "published_bytes", "tolerance"),
    [
        (K25, "native", 554.27 * 2**30, 1e-4),  # the sum of its index
        (K2, "native", 1029.2e9, 1e-3),
        (K2, "fp8", 1029.2e9, 1e-3),
        (K2, "bf16", 2.05e12, 2e-3),
        (
            replace(K25, vision=None),
            "native",
            594.2e9,
            1e-4,
        ),  # Kimi-K2-Thinking, the same text model
        (K2, "q8_0", 1.09e12, 5e-3),
        (K25, "q4_k_m", 578.6 * 2**30, 5e-3),  # llama.cpp's mix of this name, and its vision file
        (K25, "mxfp4", 557e9, 0.02),  # AMD's, as vLLM's recipes round it
        (K25, "q4_0", 539.3 * 2**30, 1e-3),  # IQ4_NL takes the same bytes
        (K2, "3.33bpw", 428.7e9, 5e-3),  # MLX, the peak of memory
    ],
)
def test_published_sizes(
    config: ModelConfig, name: str, published_bytes: float, tolerance: float
) -> None:
    assert weights_as(config, name).total_bytes == pytest.approx(published_bytes, rel=tolerance)


def test_experts_of_k25_by_hand() -> None:
    experts = 60 * 384 * 3 * 7168 * 2048
    assert weights_as(K25).stored["experts"] == {"int4": experts * 4.5 / 8}
    assert weights_as(K25, "MXFP4").stored["experts"] == {"mxfp4": experts * 4.25 / 8}
    nvfp4 = experts * 4.5 / 8 + 60 * 384 * 3 * 4
    assert weights_as(K25, "NVFP4").stored["experts"] == {"nvfp4": nvfp4}
    assert weights_as(K25, "bf16").stored["experts"] == {"bfloat16": experts * 2}
    assert weights_as(K25, "fp16").stored["experts"] == {"float16": experts * 2}


def test_what_deepseek_publishes_holds_one_layer_more() -> None:
    h, heads = 7168, 128
    attention = h * 1536 + 1536 * heads * 192 + h * 576 + 512 * heads * 256 + heads * 128 * h
    fp8 = attention + 257 * 3 * h * 2048  # scales: 1/4096 more
    bfloat16 = 2 * (2 * 129280 * h + 256 * h + 2 * h * h)  # embedding, head, router, eh_proj
    weights = weights_as(V3)
    assert weights.total_bytes + fp8 * (1 + 4 / 128**2) + bfloat16 == pytest.approx(
        688.59e9, rel=1e-3
    )
    assert "multi-token prediction" in weights.note


@pytest.mark.parametrize(
    ("model", "name", "size"),
    [("kimi-k2.5", "UD-TQ1_0", 240e9), ("kimi-k2.5", "UD-Q2_K_XL", 375e9), ("kimi-k2-thinking", "Q4_X", 583.7e9),
     ("deepseek-r1", "UD-Q2_K_XL", 212e9), ("kimi-k2", "smol-IQ1_KT", 235.6e9), ("kimi-k2", "IQ2_KL", 371.2e9)],
)  # fmt: skip
def test_files_of_others_have_their_size(model: str, name: str, size: float) -> None:
    weights = weights_as(preset(model), name)
    assert weights.total_bytes - weights.bytes_of("vision", "projector") == pytest.approx(size)
    assert "about" in weights.label
    assert weights.note.startswith("about: ")


def test_q4_x_is_q4_0_experts_beside_q8_0() -> None:
    experts = weights_as(preset("kimi-k2-thinking"), "q4_x").bytes_of("experts")
    assert experts == pytest.approx(weights_as(K25, "q4_0").bytes_of("experts"), rel=1e-3)


@pytest.mark.parametrize("config", [TINY, KIMI_VL, BLOCKS], ids=["tiny", "kimi_vl", "blocks"])
@pytest.mark.parametrize("name", ["native-int4", "q8_0", "q4_k_m", "q2_k_xl", "tq1_0"])
def test_mixes_are_what_convert_writes(tmp_path: Path, config: ModelConfig, name: str) -> None:
    torch = pytest.importorskip("torch")
    from moonlet.chat.tokenizer import BYTE_TOKENS, write_vocabulary
    from moonlet.checkpoint import GgufCheckpoint, save_checkpoint
    from moonlet.checkpoint.convert import Conversion, to_gguf
    from moonlet.checkpoint.parts import Wish
    from moonlet.quant.mixes import load_mix
    from tests.checkpoint.tiny import random_tensors

    save_checkpoint(tmp_path / "a", config, random_tensors(config, torch.bfloat16))
    write_vocabulary(tmp_path / "a" / "tiktoken.model", BYTE_TOKENS)
    target = tmp_path / "g" / "m.gguf"
    to_gguf(Conversion(tmp_path / "a", target, Wish(load_mix(name))), 2, lambda done, total: None)
    written = GgufCheckpoint(target).bytes_by_part()
    planned = weights_as(config, name)
    assert planned.stored == written
    assert weights_of_parts(config, name, written) == planned


def test_a_mix_of_ones_own(tmp_path: Path) -> None:
    table = tmp_path / "Mine.toml"
    table.write_text('[types]\n"*.mlp.experts.*" = "Q4_0"\n"*" = "F16"\n')
    weights = weights_as(K25, str(table))
    assert weights.label == "Mine"
    assert weights.stored["experts"] == {"Q4_0": 60 * 384 * 3 * 7168 * 2048 * 4.5 / 8}
    assert set(weights.stored["attention"]) == {"F16"}


@pytest.mark.parametrize("config", [K25, V3, TINY, KIMI_VL], ids=["k25", "v3", "tiny", "kimi_vl"])
def test_every_name_gives_every_part(config: ModelConfig) -> None:
    parts = set(weights_as(config).stored)
    for name in quantizations():
        weights = weights_as(config, name)
        assert set(weights.stored) == parts
        assert all(size > 0 for kinds in weights.stored.values() for size in kinds.values())
        assert weights_as(config, name.upper()).stored == weights.stored


@given(
    st.text(max_size=12) | st.sampled_from(["0bpw", "17bpw", "nowhere.toml", "\0.toml", "x" * 9999])
)
def test_other_names_are_one_sentence(name: str) -> None:
    if name.lower() in quantizations():
        return
    with pytest.raises(ConfigError) as error:
        weights_as(TINY, name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 20_000


def test_the_nearest_names_are_told() -> None:
    with pytest.raises(ConfigError, match="q4_k_m"):
        weights_as(K25, "q4km")


@needs_shared
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_bf16_is_the_network_s_own_tensors(path: Path) -> None:
    pytest.importorskip("torch")
    from moonlet.errors import NotSupportedError
    from moonlet.model import build_on_meta

    try:
        config = load_config(path)
    except NotSupportedError:
        pytest.skip("another class of network")
    counted: dict[str, int] = {}
    for name, tensor in build_on_meta(config).state_dict().items():
        counted[name] = tensor.numel() * (4 if name.endswith("correction_bias") else 2)
    assert weights_as(config, "bf16").total_bytes == sum(counted.values())
