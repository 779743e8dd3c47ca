"""The file of a measurement: kept whole, and never trusted."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet import __version__
from moonlet.plan.calibration import (
    Calibration,
    Costs,
    at,
    calibrated,
    calibration_path,
    fingerprint,
    load_calibration,
    save_calibration,
)
from moonlet.plan.detect import detect_machine

COSTS = Costs(
    matrix={"Q4_0": ((1.0, 1e-11), (16.0, 6e-11)), "Q8_0": ((1.0, 2e-11),)},
    experts={},
    attend=((4.0, 1e-11), (64.0, 4e-11)),
    score=1e-12,
    step=1e-3,
    dense_layer=1e-4,
    moe_layer=2e-4,
    growth=((1.0, 0.0), (512.0, 1e-7)),
    whole=((1.0, 1.1), (512.0, 1.2)),
)
CALIBRATION = Calibration(
    moonlet=__version__,
    date="2026-11-24T03:00:00+00:00",
    host="a processor, 2 cores",
    isa="avx2",
    threads=2,
    read_bytes_s=35e9,
    disk_bytes_s=1.5e9,
    flops={"int8": 9e11, "bf16": 4e11, "fp32": 2e11},
    packed=COSTS,
    torch=COSTS,
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save_calibration(CALIBRATION, tmp_path / "new" / "calibration.json")
    assert load_calibration(CALIBRATION.host, path) == (CALIBRATION, None)
    assert [each.name for each in path.parent.iterdir()] == ["calibration.json"]
    save_calibration(replace(CALIBRATION, disk_bytes_s=None), path)
    loaded, _ = load_calibration(CALIBRATION.host, path)
    assert loaded is not None
    assert loaded.disk_bytes_s is None


def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_calibration(CALIBRATION, tmp_path / "calibration.json")
    before = path.read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_calibration(replace(CALIBRATION, threads=7), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_is_nothing_to_say(tmp_path: Path) -> None:
    assert load_calibration("any", tmp_path / "absent.json") == (None, None)


def test_the_place_follows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration_path() == tmp_path / "moonlet/calibration.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # the standard wants such a value left out
    monkeypatch.setenv("HOME", str(tmp_path))
    assert calibration_path() == tmp_path / ".cache/moonlet/calibration.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"host": "another, 8 cores"},
            "measured on 'another, 8 cores', not on 'a processor, 2 cores'",
        ),
        ({"moonlet": "0.0.1"}, "measured with moonlet '0.0.1'"),
        ({"threads": "two"}, "threads is 'two'"),
        ({"read_bytes_s": 0}, "read_bytes_s is 0"),
        ({"disk_bytes_s": -1}, "disk_bytes_s is '-1'"),
        ({"flops": [1]}, "flops is no table"),
        ({"flops": {"int8": 1e400}}, "flops.int8 is 'inf'"),
        ({"isa": "a\nb"}, "isa is"),
        ({"packed": {}}, "packed has not just the members"),
        ({"extra": 1}, "the file has not just the members"),
    ],
)
def test_a_file_that_is_no_use_is_told_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(asdict(CALIBRATION) | change))
    loaded, sentence = load_calibration(CALIBRATION.host, path)
    assert loaded is None
    assert sentence is not None
    assert said in sentence
    assert "moonlet plan --measure" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [[1]],
        [[1, 2], [1, 3]],
        [[2, 1], [1, 1]],
        3,
        [["a", 1]],
        [[1, float("nan")]],
        [[1, True]],
    ],
)
def test_a_curve_is_points_in_order(tmp_path: Path, curve: Any) -> None:
    document = asdict(CALIBRATION)
    document["torch"]["growth"] = curve
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(document))
    loaded, sentence = load_calibration(CALIBRATION.host, path)
    assert loaded is None
    assert "torch.growth" in str(sentence)


@given(data=st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_any_bytes_are_no_use_and_no_harm(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    assert load_calibration("any", path)[0] is None


@pytest.mark.parametrize("data", [b"[" * 200_000, b"9" * 5000, b"{}" + b" " * 2**20])
def test_hostile_json_costs_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(data)
    loaded, sentence = load_calibration("any", path)
    assert loaded is None
    assert sentence is not None
    assert load_calibration("any", tmp_path)[0] is None  # a folder


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    os.mkfifo(path)
    assert load_calibration("any", path) == (None, f"{path} is no regular file and is left out")


def test_curves() -> None:
    curve = ((1.0, 10.0), (3.0, 20.0), (5.0, 60.0))
    assert [at(curve, x) for x in (0.5, 1, 2, 3, 4, 5, 7)] == [10, 10, 15, 20, 40, 60, 100]
    assert at(((4.0, 2.0),), 100) == 2.0


def test_a_machine_takes_over_what_was_measured() -> None:
    found = detect_machine()
    machine = calibrated(found.machine, CALIBRATION)
    assert machine.host.bandwidth_bytes_s == 35e9
    assert machine.host.flops["int8"] == 9e11
    assert machine.host.ram_bytes == found.machine.host.ram_bytes
    if machine.disk is not None:
        assert machine.disk.bandwidth_bytes_s == 1.5e9
    assert fingerprint(found) == f"{found.cpu}, {found.machine.host.cores} cores"
