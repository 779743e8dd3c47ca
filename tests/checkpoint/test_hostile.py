"""Files that lie: each gives one clear error, soon, and in little memory.

A case spoils one valid folder. It states what the message must name, which is always the file or the tensor.
"""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moonlet.checkpoint import open_checkpoint, save_checkpoint
from moonlet.errors import CheckpointError, ConfigError, MoonletError, NotSupportedError
from tests.checkpoint.tiny import (
    TEXT,
    Header,
    edit_header,
    edit_tensors,
    random_tensors,
    write_raw,
)

NORM = "model.norm.weight"
UP = "model.layers.1.mlp.experts.0.up_proj.weight"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MEMORY_LIMIT = 64 * 2**20

Spoil = Callable[[Path], object]
Stored = dict[str, tuple[str, list[int], bytes]]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid") / "m"
    save_checkpoint(folder, TEXT, random_tensors(TEXT, torch.bfloat16), quantize="int4")
    return folder


def copied(valid: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in valid.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def load(folder: Path) -> None:
    for _, tensor in open_checkpoint(folder).tensors(torch.float32):
        tensor.float().sum()


# ---- the ways to spoil a folder


def raw(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def huge_header(folder: Path) -> None:
    """A header of 200 MB that is really there, in a file that takes no space."""
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)


def header(text: bytes) -> Spoil:
    return lambda folder: write_raw(folder / WEIGHTS, text, b"")


def entry(name: str, **values: Any) -> Spoil:
    return lambda folder: edit_header(folder / WEIGHTS, lambda h: h[name].update(values))


def headers(change: Callable[[Header], object]) -> Spoil:
    return lambda folder: edit_header(folder / WEIGHTS, change)


def tensors(change: Callable[[Stored], object]) -> Spoil:
    return lambda folder: edit_tensors(folder / WEIGHTS, change)


def stored(name: str, dtype: str, shape: list[int], data: bytes) -> Spoil:
    return tensors(lambda t: t.update({name: (dtype, shape, data)}))


def without(name: str) -> Spoil:
    return tensors(lambda t: t.pop(name))


def renamed(old: str, new: str) -> Spoil:
    return tensors(lambda t: t.update({new: t.pop(old)}))


def index(content: object) -> Spoil:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / INDEX).write_text(text)


def shard(name: Any) -> Spoil:
    return index({"weight_map": {NORM: name}})


def config(text: str) -> Spoil:
    return lambda folder: (folder / "config.json").write_text(text)


def config_key(key: str, value: Any) -> Spoil:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content[key] = value
        config(json.dumps(content))(folder)

    return change


def linked(name: str) -> Spoil:
    """The file is moved out of the folder and a link takes its place."""

    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return change


def both(first: Spoil, second: Spoil) -> Spoil:
    return lambda folder: (first(folder), second(folder))


def shift_second(by: int) -> Callable[[Header], object]:
    """Moves the second tensor of the file, and nothing else, by some bytes."""

    def change(h: Header) -> None:
        names = sorted((n for n in h if n != "__metadata__"), key=lambda n: h[n]["data_offsets"])
        h[names[1]]["data_offsets"] = [x + by for x in h[names[1]]["data_offsets"]]

    return change


def fp8_up(scale_shape: list[int], scale_type: str = "F32") -> Spoil:
    """The expert stored as FP8, with one scale too few or of a wrong type."""

    def change(t: Stored) -> None:
        for role in ("packed", "scale", "shape"):
            t.pop(f"{UP}_{role}")
        t[UP] = ("F8_E4M3", [32, 64], bytes(32 * 64))
        if scale_shape:
            size = scale_shape[0] * scale_shape[1] * (4 if scale_type == "F32" else 1)
            t[UP + "_scale_inv"] = (scale_type, scale_shape, bytes(size))

    return tensors(change)


CASES: dict[str, tuple[Spoil, str]] = {
    # the container
    "empty file": (raw(lambda b: b""), WEIGHTS),
    "seven bytes": (raw(lambda b: b[:7]), WEIGHTS),
    "only the length": (raw(lambda b: b[:8]), WEIGHTS),
    "header of 2^60 bytes": (raw(lambda b: struct.pack("<Q", 2**60) + b[8:]), str(2**60)),
    "header of 200 MB": (huge_header, "claims a header of 200000000 bytes"),
    "header of 2^64-1 bytes": (raw(lambda b: b"\xff" * 8 + b[8:]), str(2**64 - 1)),
    "header one byte longer than the file": (
        raw(lambda b: struct.pack("<Q", len(b) - 7) + b[8:]), WEIGHTS),
    "header length zero": (raw(lambda b: bytes(8) + b[8:]), WEIGHTS),
    "truncated header": (raw(lambda b: b[:500]), "truncated"),
    "truncated data": (raw(lambda b: b[:-1]), "cut off by the end"),
    "no data at all": (
        raw(lambda b: b[: 8 + int.from_bytes(b[:8], "little")]), "cut off by the end"),
    "bytes after the last tensor": (raw(lambda b: b + b"x"), "after its last tensor"),
    "a picture": (raw(lambda b: b"\x89PNG\r\n\x1a\n" + bytes(100)), WEIGHTS),
    "a pickle": (raw(lambda b: b"\x80\x04\x95" + bytes(100)), WEIGHTS),
    "a git-lfs pointer": (
        raw(lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), WEIGHTS),
    # the header's JSON
    "invalid UTF-8": (header(b'{"\xff\xfe": 1}'), WEIGHTS),
    "not JSON": (header(b"{'a': 1}"), WEIGHTS),
    "a list": (header(b"[]"), WEIGHTS),
    "NaN": (header(b'{"a": NaN}'), "NaN"),
    "infinity": (header(b'{"a": -Infinity}'), "Infinity"),
    "deep nesting": (header(b'{"a":' + b"[" * 500_000), WEIGHTS),
    "deep objects": (header(b'{"a":' * 100_000), WEIGHTS),
    "a number of a million digits": (header(b'{"a":' + b"9" * 1_000_000 + b"}"), WEIGHTS),
    "duplicate key": (
        header(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'), "'a' is given twice"),
    "duplicate key inside": (header(b'{"a":{"dtype":"U8","dtype":"F32"}}'), "'dtype' is given twice"),
    "empty header": (header(b"{}"), "missing"),
    "a name of a megabyte": (
        header(b'{"' + b"x" * 2**20 + b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "unknown (xxx"),
    "a name with a terminal code": (
        header(b'{"\\u001b[2J":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "\\x1b[2J"),
    "a lone surrogate as name": (
        header(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "\\ud800"),
    # one tensor's description
    "tensor is a number": (headers(lambda h: h.update({NORM: 7})), NORM),
    "tensor without offsets": (headers(lambda h: h[NORM].pop("data_offsets")), NORM),
    "tensor with another key": (entry(NORM, offset=0), NORM),
    "unknown dtype": (entry(NORM, dtype="F3"), NORM),
    "dtype is a list": (entry(NORM, dtype=["F32"]), NORM),
    "negative size": (entry(NORM, shape=[-64]), NORM),
    "two negative sizes": (entry(NORM, shape=[-8, -8]), NORM),
    "size is a float": (entry(NORM, shape=[64.0]), NORM),
    "size is true": (entry(NORM, shape=[True, 64]), NORM),
    "size is null": (entry(NORM, shape=[None]), NORM),
    "shape is a string": (entry(NORM, shape="64"), NORM),
    "product overflows 64 bits": (entry(NORM, shape=[2**32, 2**32, 2]), NORM),
    "product wraps to the right size": (entry(NORM, shape=[2**63 + 32, 2]), NORM),
    "an empty shape of impossible sizes": (
        headers(lambda h: h.update(z={"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]})), "z"),
    "a thousand dimensions": (entry(NORM, shape=[1] * 1000), NORM),
    "bytes of another shape": (entry(NORM, shape=[65]), NORM),
    "bytes of another type": (entry(NORM, dtype="F64"), NORM),
    "begin after end": (entry(NORM, data_offsets=[128, 0]), NORM),
    "negative offset": (entry(NORM, data_offsets=[-128, 0]), NORM),
    "offset beyond 2^62": (entry(NORM, data_offsets=[2**63, 2**63 + 128]), NORM),
    "three offsets": (entry(NORM, data_offsets=[0, 64, 128]), NORM),
    "offsets are strings": (entry(NORM, data_offsets=["0", "128"]), NORM),
    "overlapping tensors": (headers(shift_second(-8)), "overlaps"),
    "a gap between tensors": (headers(shift_second(8)), "leaves a gap"),
    "all tensors at the same place": (
        headers(lambda h: h.update(z={"dtype": "U8", "shape": [8], "data_offsets": [0, 8]})), "overlaps"),
    # tensors against the configuration
    "missing": (without(NORM), NORM),
    "renamed": (renamed(NORM, "model.final_norm.weight"), "model.final_norm.weight"),
    "case of the name": (renamed(NORM, "model.Norm.weight"), "model.Norm.weight"),
    "transposed": (stored("lm_head.weight", "BF16", [64, 32], bytes(4096)), "lm_head.weight is [64, 32]"),
    "another dimension": (stored("lm_head.weight", "BF16", [1, 32, 64], bytes(4096)), "lm_head.weight"),
    "integers": (stored(NORM, "I64", [64], bytes(512)), NORM),
    "double precision": (stored(NORM, "F64", [64], bytes(512)), NORM),
    "an expert too many": (stored(UP.replace("0.up", "2.up"), "BF16", [32, 64], bytes(4096)), "experts.2.up_proj"),
    "an expert with a huge number": (
        stored(UP.replace("0.up", "9" * 30 + ".up"), "BF16", [32, 64], bytes(4096)), "99999"),
    "an expert twice": (stored(UP.replace("0.up", "00.up"), "BF16", [32, 64], bytes(4096)), "experts.00.up_proj"),
    "a layer too many": (stored("model.layers.2.input_layernorm.weight", "BF16", [64], bytes(128)), "layers.2"),
    "stacked and cut at once": (
        stored("model.layers.1.mlp.experts.gate_up_proj", "BF16", [2, 64, 64], bytes(16384)), "stored twice"),
    # quantized forms
    "INT4 without scales": (without(UP + "_scale"), UP + "_scale"),
    "INT4 without codes": (without(UP + "_packed"), UP + "_packed"),
    "INT4 without shape": (without(UP + "_shape"), UP + "_shape"),
    "INT4 and plain": (stored(UP, "BF16", [32, 64], bytes(4096)), "two forms"),
    "INT4 scale of the wrong shape": (stored(UP + "_scale", "BF16", [32, 1], bytes(64)), UP + "_scale"),
    "INT4 scale transposed": (stored(UP + "_scale", "BF16", [2, 32], bytes(128)), UP + "_scale"),
    "INT4 scale of integers": (stored(UP + "_scale", "U8", [32, 2], bytes(64)), UP + "_scale"),
    "INT4 codes too short": (stored(UP + "_packed", "I32", [32, 7], bytes(896)), UP + "_packed"),
    "INT4 codes of bytes": (stored(UP + "_packed", "U8", [32, 32], bytes(1024)), UP + "_packed"),
    "INT4 shape lies": (stored(UP + "_shape", "I64", [2], struct.pack("<2q", 64, 32)), "says [64, 32]"),
    "INT4 shape negative": (stored(UP + "_shape", "I64", [2], struct.pack("<2q", -1, 2**62)), "says [-1"),
    "INT4 shape of three": (stored(UP + "_shape", "I64", [3], bytes(24)), UP + "_shape"),
    "INT4 shape as float": (stored(UP + "_shape", "F32", [2], bytes(8)), UP + "_shape"),
    "a norm packed as INT4": (renamed(NORM, NORM + "_packed"), NORM),
    "FP8 without scale": (fp8_up([]), UP + "_scale_inv"),
    "FP8 scale too small": (fp8_up([1, 0]), UP + "_scale_inv"),
    "FP8 scale too large": (fp8_up([32, 64]), UP + "_scale_inv"),
    "FP8 scale of the wrong type": (fp8_up([1, 1], "U8"), UP + "_scale_inv"),
    # the index and the folder
    "index is a list": (index([]), INDEX),
    "index is not JSON": (index("{"), INDEX),
    "index without weight_map": (index({"metadata": {}}), INDEX),
    "index with a list as weight_map": (index({"weight_map": [WEIGHTS]}), INDEX),
    "index with an empty weight_map": (index({"weight_map": {}}), INDEX),
    "index with a duplicate name": (index('{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}'), INDEX),
    "index nested without end": (index('{"weight_map":' * 100_000), INDEX),
    "index to the parent folder": (shard("../elsewhere.safetensors"), "../elsewhere.safetensors"),
    "index to an absolute path": (shard("/etc/passwd"), "/etc/passwd"),
    "index to a windows path": (shard("..\\x.safetensors"), "safetensors"),
    "index to a subfolder": (shard("a/b.safetensors"), "a/b.safetensors"),
    "index to a number": (shard(3), INDEX),
    "index to null": (shard(None), INDEX),
    "index with a null character": (shard("a\0.safetensors"), INDEX),
    "index to a name of a megabyte": (shard("x" * 2**20 + ".safetensors"), INDEX),
    "index to no safetensors file": (shard("config.json"), INDEX),
    "index to a missing shard": (shard("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors"),
    "index through a link": (both(shard(WEIGHTS), linked(WEIGHTS)), "outside of the folder"),
    "index that is itself a link": (both(shard(WEIGHTS), linked(INDEX)), "outside of the folder"),
    "weights through a link": (linked(WEIGHTS), "outside of the folder"),
    "weights linked to themselves": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / "a.safetensors").symlink_to("a.safetensors")),
        "a.safetensors"),
    "weights are a folder": (lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()), WEIGHTS),
    "weights are a pipe": (lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)), WEIGHTS),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no safetensors files"),
    "the same tensors in two files": (
        lambda folder: ((folder / "a.safetensors").write_bytes((folder / WEIGHTS).read_bytes()),
                        (folder / WEIGHTS).rename(folder / "b.safetensors")), "a.safetensors"),
    # config.json
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config is a pipe": (
        lambda folder: ((folder / "config.json").unlink(), os.mkfifo(folder / "config.json")), "config.json"),
    "config is empty": (config(""), "config.json"),
    "config is not JSON": (config("{"), "config.json"),
    "config is a list": (config("[]"), "config.json"),
    "config nested without end": (config("[" * 500_000), "config.json"),
    "config of another network": (config_key("model_type", "llama"), "llama"),
    "config with 10^12 layers": (config_key("num_hidden_layers", 10**12), "num_hidden_layers"),
    "config with a size of 10^400": (config_key("hidden_size", 10**400), "hidden_size"),
    "config with a negative size": (config_key("vocab_size", -1), "vocab_size"),
    "config with a fraction": (config_key("kv_lora_rank", 32.5), "kv_lora_rank"),
    "config with 10^6 experts": (config_key("n_routed_experts", 10**6), "experts"),
    "config with a larger vocabulary": (config_key("vocab_size", 2**30), "embed_tokens"),
    "config with a vocabulary of the wrong sign of zero": (config_key("vocab_size", 0), "vocab_size"),
}  # fmt: skip


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error_in_little_memory(valid: Path, tmp_path: Path, case: str) -> None:
    spoil, named = CASES[case]
    folder = copied(valid, tmp_path / "m")
    spoil(folder)
    tracemalloc.start()
    try:
        with pytest.raises(MoonletError) as caught:
            load(folder)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert named in message
    assert message.isascii()
    assert message.isprintable()  # one line, no terminal codes
    assert len(message) < 10_000


def test_the_folder_that_they_spoil_is_valid(valid: Path) -> None:
    load(valid)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "missing")


def load_or_refuse(folder: Path, *refusals: type[MoonletError]) -> None:
    with suppress(*refusals):
        load(folder)


damage = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8
)


@pytest.mark.parametrize("where", ["header", "data"])
@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(flips=damage, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_flipped_bytes_load_or_are_refused(
    valid: Path, tmp_path: Path, where: str, flips: list[tuple[float, int]], kept: float
) -> None:
    """Damage is found or, inside a value, cannot be: there is no third way."""
    folder = tmp_path / "m"
    folder.mkdir(exist_ok=True)
    content = bytearray((valid / WEIGHTS).read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    first, last = (0, header_end) if where == "header" else (header_end, len(content))
    for position, mask in flips:
        content[first + int(position * (last - first))] ^= mask
    (folder / WEIGHTS).write_bytes(content[: int(kept * len(content))])
    (folder / "config.json").write_bytes((valid / "config.json").read_bytes())
    load_or_refuse(folder, CheckpointError)


@settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(flips=damage)
def test_a_flipped_config_loads_or_is_refused(
    valid: Path, tmp_path: Path, flips: list[tuple[float, int]]
) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        copied(valid, folder)
    content = bytearray((valid / "config.json").read_bytes())
    for position, mask in flips:
        content[int(position * len(content))] ^= mask
    (folder / "config.json").write_bytes(content)
    # NotSupportedError: a flipped letter can spell another activation or another class of network.
    load_or_refuse(folder, CheckpointError, ConfigError, NotSupportedError)
