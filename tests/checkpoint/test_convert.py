"""Models from every form into every other: the same values, the same tokenizer, one plan each."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moonlet import nano
from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer, write_vocabulary
from moonlet.checkpoint import Checkpoint, GgufCheckpoint, open_checkpoint, save_checkpoint
from moonlet.checkpoint.convert import Conversion, Summary, to_gguf, to_hf
from moonlet.checkpoint.imatrix import ImportanceMatrix, write_imatrix
from moonlet.checkpoint.parts import Wish
from moonlet.config import ModelConfig, preset, tensor_specs
from moonlet.errors import CheckpointError, NotSupportedError
from moonlet.quant.mixes import load_mix
from tests.checkpoint.tiny import TEXT, random_tensors

K25 = preset("tiny")
assert K25.vision is not None
KIMI_VL = replace(
    K25, model_type="kimi_vl", q_lora_rank=None,
    vision=replace(K25.vision, init_pos_emb_time=None, init_pos_emb_height=8, init_pos_emb_width=8),
)  # fmt: skip
# Rows that fill the groups of INT4 and Q4_0, experts included.
EVEN = replace(
    K25, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2
)


def convert(source: Path, target: Path, mix: str | None = None, **more: Any) -> Summary:
    imatrix, overwrite = more.pop("imatrix", None), more.pop("overwrite", False)
    wish = Wish(load_mix(mix) if mix else None, **more)
    write = to_gguf if target.suffix == ".gguf" else to_hf
    conversion = Conversion(source, target, wish, imatrix, overwrite=overwrite)
    return write(conversion, 2, lambda done, total: None)


def values(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(path)
    checkpoint.validate()
    return dict(checkpoint.tensors(torch.float32))


def save(path: Path, config: ModelConfig = EVEN, **more: Any) -> Path:
    save_checkpoint(path, config, random_tensors(config, torch.bfloat16), **more)
    if config.vocab_size == len(BYTE_TOKENS) + 256:
        write_vocabulary(path / "tiktoken.model", BYTE_TOKENS)
    return path


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different


@pytest.mark.parametrize("config", [K25, KIMI_VL, TEXT], ids=["k25", "kimi_vl", "text"])
@pytest.mark.parametrize("dtype", [None, "F32"])
def test_floats_travel_without_loss(tmp_path: Path, config: ModelConfig, dtype: str | None) -> None:
    source = save(tmp_path / "a", config)
    wanted = values(source)
    convert(source, tmp_path / "g" / "m.gguf", dtype=dtype)
    convert(tmp_path / "g" / "m.gguf", tmp_path / "h" / "m.gguf")
    convert(tmp_path / "h" / "m.gguf", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c")
    for path in ("g/m.gguf", "h/m.gguf", "b", "c"):
        assert_equal(values(tmp_path / path), wanted)
    assert (tmp_path / "g" / "mmproj-m.gguf").exists() == (config.vision is not None)
    again = open_checkpoint(tmp_path / "c").config
    assert replace(again, latent_norm_eps=1e-6) == replace(
        config, dtype="float32" if dtype else "bfloat16", model_type=again.model_type
    )


def test_int4_goes_to_gguf_and_back_bit_by_bit(tmp_path: Path) -> None:
    source = save(tmp_path / "a", quantize="int4")
    summary = convert(source, tmp_path / "g" / "m.gguf")
    assert summary.types["Q4_0"] > 0
    assert summary.rounded == 0
    convert(tmp_path / "g" / "m.gguf", tmp_path / "b")
    convert(source, tmp_path / "c")
    for name in ("b", "c"):
        found, wanted = open_checkpoint(tmp_path / name), open_checkpoint(source)
        assert isinstance(found, Checkpoint)
        assert isinstance(wanted, Checkpoint)
        assert found.config.quantization == wanted.config.quantization
        for spec in tensor_specs(EVEN):
            if spec.part == "experts":
                block = "up" if "gate_up" in spec.name else None
                ours, theirs = (c.matrix(spec.name, 1, block) for c in (found, wanted))
                assert ours.type == "INT4"
                assert np.array_equal(ours.data, theirs.data)
                assert np.array_equal(ours.scale, theirs.scale)  # type: ignore[arg-type]
    assert_equal(values(tmp_path / "b"), values(source))
    content = (tmp_path / "c" / "model.safetensors").read_bytes()
    assert content == (source / "model.safetensors").read_bytes()


def test_native_int4_equals_what_a_save_writes(tmp_path: Path) -> None:
    source = save(tmp_path / "a")
    save(tmp_path / "b", quantize="int4")
    convert(source, tmp_path / "c", "native-int4")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    convert(source, tmp_path / "d" / "m.gguf", "native-int4")
    assert_equal(values(tmp_path / "d" / "m.gguf"), values(tmp_path / "b"))


@pytest.mark.parametrize("mix", ["q8_0", "q4_k_m", "q2_k_xl", "tq1_0"])
def test_mixes_from_any_source(tmp_path: Path, mix: str) -> None:
    config = replace(
        K25, vision=None, media_placeholder_token_id=None, model_type="kimi_k2", hidden_size=256,
        moe_intermediate_size=256, num_hidden_layers=2, n_routed_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    source = save(tmp_path / "a", config)
    convert(source, tmp_path / "f" / "m.gguf", dtype="F32")
    summary = convert(source, tmp_path / "m.gguf", mix)
    convert(tmp_path / "f" / "m.gguf", tmp_path / "n.gguf", mix)
    assert_equal(values(tmp_path / "m.gguf"), values(tmp_path / "n.gguf"))
    table = load_mix(mix)
    found = open_checkpoint(tmp_path / "m.gguf")
    assert isinstance(found, GgufCheckpoint)
    assert found.metadata["general.file_type"] == table.file_type
    name = "language_model.model.layers.1.mlp.experts.down_proj"
    assert found.matrix(name, 0).type == table.type_for(name, 256, 256) in summary.types
    for name, wanted in values(source).items():
        error = (found.tensor(name, torch.float32) - wanted).norm() / wanted.norm()
        assert error < (0.85 if mix == "tq1_0" else 0.5), name


def test_fp8_is_read(tmp_path: Path) -> None:
    """DeepSeek's form: e4m3 in blocks of 128, decoded on the way."""
    from moonlet.quant import fp8
    from tests.checkpoint.tiny import edit_tensors

    source = save(tmp_path / "a", TEXT)
    name = "model.layers.0.self_attn.o_proj.weight"

    def store_as_fp8(tensors: dict[str, Any]) -> None:
        _, shape, _ = tensors[name]
        codes = np.random.default_rng(0).integers(0, 120, shape, np.uint8)
        tensors[name] = ("F8_E4M3", shape, codes.tobytes())
        scale = list(fp8.scale_shape(*shape))
        tensors[name + "_scale_inv"] = ("F32", scale, np.float32([0.25]).tobytes())

    edit_tensors(source / "model.safetensors", store_as_fp8)
    wanted = values(source)
    assert wanted["language_model." + name].unique().numel() > 50
    convert(source, tmp_path / "m.gguf")
    convert(source, tmp_path / "b")
    for target in ("m.gguf", "b"):
        assert_equal(values(tmp_path / target), wanted)


def test_nano_brings_its_tokenizer_along(tmp_path: Path) -> None:
    wish = Wish(load_mix("q8_0"))
    conversion = Conversion(nano.folder(), tmp_path / "g" / "nano.gguf", wish, name="Nano")
    to_gguf(conversion, 1, lambda done, total: None)
    convert(tmp_path / "g" / "nano.gguf", tmp_path / "h" / "other.gguf", "q4_k_m")
    convert(tmp_path / "h" / "other.gguf", tmp_path / "b")
    ours, theirs = Tokenizer.from_folder(tmp_path / "b"), Tokenizer.from_folder(nano.folder())
    assert ours.special == theirs.special
    text = "What is 12 + 34?  <think>naïve 你好"
    assert ours.encode(text) == theirs.encode(text)
    first = open_checkpoint(tmp_path / "h" / "other.gguf")
    assert isinstance(first, GgufCheckpoint)
    assert first.metadata["general.name"] == "Nano"
    generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert set(generation["eos_token_id"]) == {769, 770, 777}
    images = json.loads((tmp_path / "b" / "preprocessor_config.json").read_text())
    assert images["media_proc_cfg"]["patch_size"] == 14
    convert(nano.folder(), tmp_path / "c")
    for name in ("tiktoken.model", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "c" / name).read_bytes() == (nano.folder() / name).read_bytes()


def test_template_and_sampling_travel(tmp_path: Path) -> None:
    from tests.tiny_checkpoint import write_tiny_checkpoint

    source = write_tiny_checkpoint(tmp_path / "a")
    (source / "chat_template.jinja").write_text("{{ messages }} é")
    settings = {"temperature": 0.5, "top_p": 0.75, "top_k": 20, "max_length": 5}
    (source / "generation_config.json").write_text(json.dumps(settings))
    convert(source, tmp_path / "g" / "m.gguf")
    convert(tmp_path / "g" / "m.gguf", tmp_path / "b")
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == "{{ messages }} é"
    found = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    del settings["max_length"]
    assert settings.items() <= found.items()


def test_shards_are_written_with_their_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moonlet.checkpoint.convert_hf.MAX_SHARD_BYTES", 100_000)
    source = save(tmp_path / "a")
    summary = convert(source, tmp_path / "b", "native-int4")
    assert len(summary.files) > 2
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in summary.files}
    assert_equal(values(tmp_path / "b"), values(save(tmp_path / "c", quantize="int4")))


def test_a_mix_that_a_folder_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "a")
    with pytest.raises(NotSupportedError, match="the mix q4_k_m asks for"):
        convert(source, tmp_path / "b", "q4_k_m")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    source = save(tmp_path / "a", TEXT)
    convert(source, tmp_path / "m.gguf")
    (tmp_path / "link").symlink_to(source)
    for origin, target in (
        (source, source),
        (source, tmp_path / "link"),
        (tmp_path / "m.gguf", tmp_path / "m.gguf"),
        (tmp_path / "m.gguf", tmp_path),
    ):
        with pytest.raises(CheckpointError, match="is what is converted from"):
            convert(origin, target)


def test_a_second_vision_file_in_a_folder_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "a")
    convert(source, tmp_path / "one.gguf")
    with pytest.raises(CheckpointError, match="already holds the vision file mmproj-one"):
        convert(source, tmp_path / "two.gguf")
    with pytest.raises(CheckpointError, match="already holds the vision file mmproj-one"):
        convert(
            save(tmp_path / "t", TEXT), tmp_path / "three.gguf"
        )  # it would be taken for its own
    convert(source, tmp_path / "one.gguf", "q8_0", overwrite=True)


def test_what_is_there_is_replaced_only_when_that_is_said(tmp_path: Path) -> None:
    source = save(tmp_path / "a", TEXT)
    (tmp_path / "notes.gguf").write_text("precious")
    targets = [tmp_path / "notes.gguf", save(tmp_path / "b", TEXT)]
    for target in targets:
        before = [path.stat().st_mtime_ns for path in (target, *target.glob("*"))]
        with pytest.raises(CheckpointError, match=r"exists already.*--overwrite"):
            convert(source, target)
        assert [path.stat().st_mtime_ns for path in (target, *target.glob("*"))] == before
        convert(source, target, overwrite=True)
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty")


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    source = save(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not empty and holds no checkpoint"):
        convert(source, tmp_path / "b", overwrite=True)
    (tmp_path / "c.gguf").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        convert(source, tmp_path / "c.gguf")


def test_a_vision_model_needs_its_tokenizer_in_a_gguf(tmp_path: Path) -> None:
    source = save(tmp_path / "a")
    (source / "tiktoken.model").unlink()
    with pytest.raises(CheckpointError, match="beside its weights"):
        convert(source, tmp_path / "m.gguf")


def test_links_out_of_a_folder_do_not_come_along(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    source = save(tmp_path / "a")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="outside of the folder"):
        convert(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_importance_changes_what_is_written(tmp_path: Path) -> None:
    config = replace(TEXT, hidden_size=256)
    source = save(tmp_path / "a", config)
    convert(source, tmp_path / "plain.gguf", "q2_k_xl")
    sums = np.random.default_rng(0).random((2, 256), np.float32) ** 8
    counts = np.float32([7, 0])
    path = tmp_path / "im.gguf"
    write_imatrix(path, {"blk.1.ffn_gate_exps.weight": (sums, counts)}, "a text", 1, 7)
    asked = ImportanceMatrix(path)
    assert np.allclose(asked("blk.1.ffn_gate_exps.weight", 0, 256), sums[0] / 7)  # type: ignore[arg-type]
    assert asked("blk.1.ffn_gate_exps.weight", 1, 256) is None  # never asked
    assert asked("blk.1.ffn_up_exps.weight", 0, 256) is None  # not there
    convert(source, tmp_path / "weighed.gguf", "q2_k_xl", imatrix=path)
    plain, weighed = (open_checkpoint(tmp_path / f"{n}.gguf") for n in ("plain", "weighed"))
    assert isinstance(plain, GgufCheckpoint)
    assert isinstance(weighed, GgufCheckpoint)
    name = "language_model.model.layers.1.mlp.experts.gate_up_proj"
    same = [
        np.array_equal(*(c.matrix(name, e, block).data for c in (plain, weighed)))
        for e in (0, 1)
        for block in ("gate", "up")
    ]
    assert same == [False, True, True, True]


def test_importance_of_stacks(tmp_path: Path) -> None:
    """One row for each expert with its own count; or, as llama.cpp has it for heads, all in one row."""
    sums = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    statistics = {
        "experts": (sums, np.float32([2, 4])),
        "heads": (sums.reshape(1, 6), np.float32([2])),
    }
    write_imatrix(tmp_path / "im.gguf", statistics, "a text", 1, 7)
    asked = ImportanceMatrix(tmp_path / "im.gguf")
    found = [[asked(name, i, 3) for i in (0, 1)] for name in ("experts", "heads")]
    assert np.array_equal(found, [[sums[0] / 2, sums[1] / 4], [sums[0] / 2, sums[1] / 2]])  # type: ignore[arg-type]
    asked.check({"experts": (2, 5, 3), "heads": (2, 5, 3)})
    with pytest.raises(CheckpointError, match="another model"):
        asked.check({"heads": (5, 3)})


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"blk.1.ffn_gate_exps.weight": (np.ones((2, 9)), np.ones(2))}, "another model"),
        ({"blk.1.ffn_gate_exps.weight": (np.ones((3, 32)), np.ones(3))}, "another model"),
        ({"blk.77.attn_q.weight": (np.ones((1, 32)), np.ones(1))}, "names no tensor"),
        ({"output.weight": (np.full((1, 32), np.nan), np.ones(1))}, "not finite"),
        ({"output.weight": (np.full((1, 32), -1.0), np.ones(1))}, "negative"),
        ({"output.weight": (np.ones((2, 32)), np.ones(3))}, "3 counts for 2 matrices"),
    ],
)
def test_foreign_importance_is_refused(
    tmp_path: Path, statistics: dict[str, Any], message: str
) -> None:
    source = save(tmp_path / "a", replace(TEXT, hidden_size=32))
    write_imatrix(tmp_path / "im.gguf", statistics, "a text", 1, 7)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "m.gguf", "q8_0", imatrix=tmp_path / "im.gguf")


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    source = save(tmp_path / "a", TEXT)
    convert(source, tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="is no importance matrix"):
        convert(source, tmp_path / "n.gguf", "q8_0", imatrix=tmp_path / "m.gguf")
