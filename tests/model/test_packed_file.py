"""The packed layout: what is read back without a copy are the panels that the source makes, or an error."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moonlet import kernels
from moonlet.checkpoint import Checkpoint, GgufCheckpoint, open_checkpoint, save_checkpoint
from moonlet.checkpoint.convert import Conversion, to_gguf
from moonlet.checkpoint.packed import (
    FILE_NAME,
    PANELS,
    PackedCheckpoint,
    panel_specs,
    plain_specs,
)
from moonlet.checkpoint.parts import Wish
from moonlet.config import preset
from moonlet.errors import CheckpointError, MoonletError, NotSupportedError
from moonlet.model import load_packed
from moonlet.model.packed_file import to_packed
from moonlet.quant.mixes import load_mix
from moonlet.quant.types import TYPES
from tests.checkpoint.tiny import edit_header, random_tensors, read_raw, write_raw

K25 = replace(preset("tiny"), hidden_size=64, moe_intermediate_size=32, num_hidden_layers=2)
TEXT = replace(
    K25, model_type="deepseek_v3", vision=None, media_placeholder_token_id=None, q_lora_rank=None,
    vocab_size=300, bos_token_id=None, eos_token_ids=(), pad_token_id=None,
)  # fmt: skip
EXPERTS = "language_model.model.layers.1.mlp.experts"
HEAD = "language_model.lm_head.weight"


def silent(done: int, total: int) -> None:
    pass


def pack(source: Path, target: Path, wish: Wish = Wish()) -> PackedCheckpoint:  # noqa: B008  frozen
    to_packed(Conversion(source, target, wish), 2, silent)
    return PackedCheckpoint(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """INT4 experts, the rest in bfloat16."""
    folder = tmp_path_factory.mktemp("source") / "m"
    save_checkpoint(folder, TEXT, random_tensors(TEXT, torch.bfloat16), quantize="int4")
    return folder


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    target = folder.with_name("packed")
    pack(folder, target)
    return target


def experts_of(source: Checkpoint | GgufCheckpoint, name: str, types: tuple[str, ...]) -> Any:
    config = source.config
    gate, up, down = types
    count, hidden = config.n_routed_experts, config.hidden_size
    made = kernels.Experts(count, hidden, config.moe_intermediate_size, gate, up, down)
    for expert in range(count):
        for which in ("gate", "up", "down"):
            stack, block = ("down_proj", None) if which == "down" else ("gate_up_proj", which)
            stored = source.matrix(f"{name}.{stack}", expert, block)
            made.pack(expert, which, stored.type, stored.data, stored.scale)
    return made


def test_panels_are_those_of_the_source(folder: Path, packed: Path) -> None:
    source, found = open_checkpoint(folder), PackedCheckpoint(packed)
    assert isinstance(source, Checkpoint)
    found.validate()
    for spec in panel_specs(TEXT):
        panels = found.packed(spec.name)
        assert panels.data.ctypes.data % (4096 if spec.is_experts else 64) == 0
        if spec.is_experts:
            assert panels.types == ("INT4", "INT4", "INT4")
            made = experts_of(source, spec.name, panels.types)
        else:
            assert panels.types == ("Q8_0",)
            made = kernels.Matrix("Q8_0", spec.rows, spec.cols, spec.count)
            if spec.block is None:
                stored = source.matrix(spec.name)
                made.pack(stored.type, stored.data, stored.scale)
            else:
                whole = source.tensor(spec.source.name, torch.float32).unflatten(
                    0, (spec.count, -1)
                )
                for head in range(spec.count):
                    nope = TEXT.qk_nope_head_dim
                    half = whole[head, :nope].T if spec.block == "k" else whole[head, nope:]
                    rows = half.contiguous().numpy().view(np.uint8)
                    made.pack("F32", rows, index=head)
        assert np.array_equal(panels.data, np.asarray(made.bytes)), spec.name
        assert panels.data.size == made.nbytes


def test_rows_packed_in_pieces_are_the_whole(
    folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has 300 rows: pieces of 16 or 32, the last one 12."""
    monkeypatch.setattr("moonlet.checkpoint.parts.CHUNK_VALUES", 40 * 64)
    pack(folder, tmp_path / "p")
    assert (tmp_path / "p" / FILE_NAME).read_bytes() == (packed / FILE_NAME).read_bytes()


def test_kernels_take_the_memory_map_itself(packed: Path) -> None:
    found = PackedCheckpoint(packed)
    head = found.packed(HEAD)
    matrix = kernels.Matrix("Q8_0", TEXT.vocab_size, TEXT.hidden_size, data=head.data)
    x = np.random.default_rng(0).standard_normal((3, TEXT.hidden_size), np.float32)
    assert np.isfinite(matrix(x)).all()
    assert np.asarray(matrix.bytes).ctypes.data == head.data.ctypes.data
    del found  # the views stay valid
    assert np.isfinite(matrix(x)).all()


def test_the_rest_is_as_it_was(folder: Path, packed: Path) -> None:
    source, found = open_checkpoint(folder), PackedCheckpoint(packed)
    for spec in plain_specs(TEXT):
        assert torch.equal(
            found.tensor(spec.name, torch.float32), source.tensor(spec.name, torch.float32)
        )
    router = found.matrix("language_model.model.layers.1.mlp.gate.weight")
    assert (router.type, router.rows, router.cols) == ("BF16", TEXT.n_routed_experts, 64)
    with pytest.raises(KeyError):
        found.matrix(HEAD)
    with pytest.raises(KeyError):
        found.tensor(HEAD)
    with pytest.raises(NotSupportedError, match="no weights can be taken back"):
        next(found.tensors())
    with pytest.raises(NotSupportedError, match="no weights can be taken back"):
        Conversion(packed, packed.with_name("other"), Wish())


def test_mixes_dtypes_and_a_gguf_with_a_quantized_embedding(folder: Path, tmp_path: Path) -> None:
    to_gguf(Conversion(folder, tmp_path / "m.gguf", Wish(load_mix("q8_0"))), 2, silent)
    found = pack(tmp_path / "m.gguf", tmp_path / "p")
    embedding = found.matrix("language_model.model.embed_tokens.weight")
    assert (embedding.type, embedding.data.shape) == ("Q8_0", (300, 2 * 34))
    again = open_checkpoint(tmp_path / "m.gguf")
    assert isinstance(again, GgufCheckpoint)
    assert np.array_equal(
        embedding.data, again.matrix("language_model.model.embed_tokens.weight").data
    )
    made = experts_of(again, EXPERTS, ("Q8_0",) * 3)
    assert np.array_equal(found.packed(EXPERTS).data, np.asarray(made.bytes))
    mixed = pack(folder, tmp_path / "q", Wish(load_mix("q8_0"), "BF16"))
    assert mixed.packed(EXPERTS).types == ("Q8_0",) * 3
    kept = pack(folder, tmp_path / "r", Wish(None, "F32"))
    assert kept.packed(HEAD).types == ("F32",)
    assert kept.packed(EXPERTS).types == ("INT4",) * 3


def test_a_vision_model_packs(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", K25, random_tensors(K25))
    found = pack(tmp_path / "m", tmp_path / "p")
    found.validate()
    source = open_checkpoint(tmp_path / "m")
    name = "vision_tower.patch_embed.pos_emb.weight"
    assert torch.equal(found.tensor(name), source.tensor(name))
    assert found.config == source.config


@torch.inference_mode()
def test_it_computes_what_its_source_does(folder: Path, packed: Path) -> None:
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(load_packed(packed)(ids), load_packed(folder)(ids))


def test_every_kind_of_panels_is_known() -> None:
    assert {kernels.panel_type(name) for name in (*TYPES, "INT4")} <= PANELS


def types_of(header: dict[str, Any]) -> dict[str, Any]:
    return json.loads(header["__metadata__"]["types"])


def set_types(header: dict[str, Any], **types: Any) -> None:
    header["__metadata__"]["types"] = json.dumps(types_of(header) | types)


def with_length(header: dict[str, Any], name: str, length: int) -> str:
    return json.dumps(json.loads(header["__metadata__"]["bytes"]) | {name: length})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(format="x"), "does not say that its format"),
        (lambda h: h["__metadata__"].update(layout="99"), "run moonlet convert again"),
        (lambda h: h["__metadata__"].update(types="[]"), "not a JSON object"),
        (lambda h: h["__metadata__"].update(types='{"a"'), "not valid JSON"),
        (lambda h: h["__metadata__"].update(bytes="{}"), "of an unknown length"),
        (lambda h: h["__metadata__"].update(bytes=json.dumps({HEAD: -64})), "unknown length"),
        (lambda h: h["__metadata__"].update(bytes=json.dumps({HEAD: True})), "unknown length"),
        (lambda h: h.pop("__metadata__"), "does not say that its format"),
        (lambda h: h["__metadata__"].update(bytes=with_length(h, EXPERTS, 64)), "unknown length"),
        (lambda h: set_types(h, **{EXPERTS: ["Q8_0"]}), "without a known type"),
        (lambda h: set_types(h, **{EXPERTS: ["INT4", "INT4", 4]}), "without a known type"),
        (lambda h: set_types(h, **{HEAD: [["Q8_0"]]}), "without a known type"),
        (lambda h: set_types(h, **{HEAD: "Q8_0"}), "without a known type"),
        (lambda h: set_types(h, **{HEAD: ["Q99"]}), "without a known type"),
        (lambda h: h[HEAD].update(dtype="I8"), "of the wrong shape"),
        (lambda h: h.update({"other": h.pop(HEAD)}), "1 missing"),
    ],
)
def test_damaged_headers_are_errors(
    packed: Path, tmp_path: Path, change: Any, message: str
) -> None:
    copy = copied(packed, tmp_path)
    edit_header(copy / FILE_NAME, lambda header: change(header))
    with pytest.raises(MoonletError, match=message):
        PackedCheckpoint(copy).validate()


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({HEAD: ["Q4_0"]}, "the packed data have 20672 bytes, wanted"),
        ({EXPERTS: ["Q8_0", "F32", "Q8_0"]}, "quantized matrices only"),
    ],
)
def test_panels_that_are_not_what_they_say_are_errors(
    packed: Path, tmp_path: Path, types: dict[str, list[str]], message: str
) -> None:
    copy = copied(packed, tmp_path)
    edit_in_place(copy / FILE_NAME, types)
    with pytest.raises(CheckpointError, match=message):
        load_packed(copy)


def test_types_of_what_is_no_panel_are_not_looked_at(packed: Path, tmp_path: Path) -> None:
    copy = copied(packed, tmp_path)
    edit_in_place(copy / FILE_NAME, {"language_model.model.norm.weight": [["x"]]})
    assert PackedCheckpoint(copy).bytes_by_part() == PackedCheckpoint(packed).bytes_by_part()


def edit_in_place(path: Path, types: dict[str, Any]) -> None:
    """Other types in a header that stays as long as it is, so that all stays aligned."""
    header, data = read_raw(path)
    start = path.stat().st_size - len(data)
    set_types(header, **types)
    text = json.dumps(header, separators=(",", ":")).encode()
    write_raw(path, text + b" " * (-(8 + len(text)) % 4096), data)
    assert (path.stat().st_size - len(data)) % 4096 == start % 4096 == 0


def test_a_header_of_another_length_moves_everything(packed: Path, tmp_path: Path) -> None:
    copy = copied(packed, tmp_path)
    edit_header(copy / FILE_NAME, lambda header: None)  # written anew, without the padding
    with pytest.raises(CheckpointError, match="not aligned"):
        PackedCheckpoint(copy).validate()


def test_a_short_file_is_an_error(packed: Path, tmp_path: Path) -> None:
    copy = copied(packed, tmp_path)
    (copy / FILE_NAME).write_bytes((packed / FILE_NAME).read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="cut off by the end"):
        PackedCheckpoint(copy).validate()


def copied(packed: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in packed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy
