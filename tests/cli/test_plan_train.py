"""`moonlet plan --train`: what the words mean, what is printed, what is refused."""

import json
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from moonlet.cli.console import UsageError, add_json_flag
from moonlet.cli.plan_train import add_training_options, run_training, training_run
from moonlet.config import preset
from moonlet.errors import ConfigError
from moonlet.plan.describe import describe_machine
from moonlet.plan.machine import Host, Machine
from moonlet.plan.split import Split
from moonlet.plan.training import k2_run, moonlet_run

NODE, _ = describe_machine(["8xH200"])
CLUSTER, _ = describe_machine(["8xH800"], ram_gb=2048, nodes=64)
LAPTOP = Machine("laptop", Host("laptop", 8, 16e9, 50e9, {"fp32": 5e11}))


def parsed(*words: str) -> Any:
    parser = ArgumentParser()
    add_training_options(parser)
    add_json_flag(parser)
    return parser.parse_args(words)


def answer(model: str, machine: Machine, *words: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    return run_training(parsed(*words), preset(model), machine, notes)


def test_words_become_a_run() -> None:
    k2, nano = preset("kimi-k2"), preset("nano")
    assert training_run(parsed("--train", "k2"), k2, CLUSTER) == k2_run(k2, 512)
    assert training_run(parsed("--train", "moonlet"), nano, LAPTOP) == moonlet_run(nano, 16, 128)
    words = (
        "--train",
        "PP2, vpp2 ep4,dp=8,zero1",
        "--sequence",
        "64",
        "--batch",
        "32",
        "--recompute",
        "full",
    )
    run = training_run(parsed(*words, "--fp8-activations", "--offload"), nano, NODE)
    assert run.split == Split(2, 2, expert=4, data=8, zero=1)
    assert (run.sequence, run.global_batch, run.recompute, run.fp8, run.offload) == (
        64,
        32,
        "full",
        True,
        True,
    )


def test_without_a_word_all_gpus_share_data_and_experts() -> None:
    run = training_run(parsed("--train"), preset("moonlight-16b-a3b"), NODE)
    assert run.split == Split(expert=8, data=8, zero=1)
    assert run.sequence == 4096
    alone = training_run(parsed("--train"), preset("nano"), LAPTOP)
    assert alone.split == Split()
    assert alone.sequence == 2048  # as many as nano has


def test_a_run_that_fits_is_answered_whole(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(
        "moonlight-16b-a3b", NODE, "--train", "--tokens", "1e12", "--json", notes=["assumed: so"]
    )
    assert json.loads(capsys.readouterr().out) == found
    assert found["fits"]
    assert found["missing_bytes"] == 0
    assert found["step"]["seconds"] == pytest.approx(sum(found["step"]["parts"].values()))
    total = found["total"]
    assert total["days_low"] < total["days"] < total["days_high"]
    assert total["gpu_hours"] == pytest.approx(total["days"] * 24 * 8)
    assert found["assumed"][-1] == "assumed: so"
    (rank,) = found["memory"]["ranks"]
    kinds = ("parameters", "gradients", "optimizer", "activations", "buffers")
    assert rank["total"] == pytest.approx(sum(rank[kind] for kind in kinds))


def test_what_is_printed_names_the_fullest_rank(capsys: pytest.CaptureFixture[str]) -> None:
    answer("kimi-k2", CLUSTER, "--train", "k2", "--tokens", "15.5e12")
    said = capsys.readouterr().out
    for words in ("512 ranks", "pipeline stage 1", "52.9 GB", "bubble", "Played task by task", "1.55e+13 tokens take",
                  "assumed: Moonshot does not say"):  # fmt: skip
        assert words in said


@pytest.mark.parametrize(
    ("split", "micro", "memory"),
    [
        ("ep8,dp8", 1, 64e9),
        ("ep8,dp8", 8, 64e9),
        ("ep8,dp8", 1, 48e9),
        ("pp4,vpp2,ep2,dp2", 4, 36e9),
    ],
)
def test_a_run_that_does_not_fit_says_how_it_would(
    split: str, micro: int, memory: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it says is true: with all of it the run fits, with any of it left out it does not."""
    machine = replace(NODE, accelerators=(replace(NODE.accelerators[0], memory_bytes=memory),) * 8)

    def asked(changes: list[str]) -> dict[str, Any]:
        axes = [split, *(change for change in changes if change.startswith("zero"))]
        flags = [word for change in changes if change.startswith("--") for word in change.split()]
        words = ("--train", ",".join(axes), "--micro-batch", str(micro))
        return answer("moonlight-16b-a3b", machine, *words, "--recompute", "none", *flags)

    found = asked([])
    assert "It does not fit" in capsys.readouterr().out
    rank = found["memory"]["ranks"][0]
    assert found["missing_bytes"] == pytest.approx(rank["total"] - found["memory"]["usable_bytes"])
    changes = re.findall(r"\(([^)]+)\)", found["change"])
    assert asked(changes)["fits"]
    for change in changes:
        assert not asked([one for one in changes if one != change])["fits"]


def test_nothing_helps_a_trillion_parameters_on_one_node(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = answer("kimi-k2", NODE, "--train")
    assert not found["fits"]
    assert found["change"] is None
    assert "take more GPUs" in capsys.readouterr().out


def test_the_embedded_model_on_a_processor() -> None:
    found = answer("nano", LAPTOP, "--train", "moonlet")
    assert found["fits"]
    assert found["step"]["played_seconds"] is None
    without_rates = Machine("laptop", Host("laptop", 8, 16e9, 50e9, {}))
    found = answer("nano", without_rates, "--train", "moonlet")
    assert found["step"] is None
    assert "nobody says how many fp32 operations" in found["assumed"][-1]


def test_paper_prints_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer("nano", LAPTOP, "--train", "paper", "--json")
    assert json.loads(capsys.readouterr().out) == found
    assert list(found) == ["checks", "memory", "stages", "step", "schedules", "serving", "played"]
    assert found["stages"]["rows"][0]["10^12 tokens"] == 15.5
    assert found["stages"]["assumed"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--train", "pp2,banana"), "'banana' is no part of a split"),
        (("--train", "pp2,pp4"), "'pp4' is no part of a split"),
        (("--train", "",), "is no part of a split"),
        (("--train", "--sequence", "0"), "--sequence is 0"),
        (("--train", "--tokens", "nan"), "--tokens is nan"),
        (("--train", "--batch", "-3"), "--batch is -3"),
        (("--train", "dp3,ep2"), "must divide the 3"),
        (("--train", "--tokens", "1e300"), "--tokens is 1e\\+300, .* from 1 to 1e\\+18"),
        (("--train", "k2"), "8 GPUs are no multiple of 256"),
        (("--train", "dp9999999"), "must be a whole number from 1 to 1000000"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises((UsageError, ConfigError), match=said):
        answer("moonlight-16b-a3b", NODE, *words)


def test_as_kimi_k2_takes_gpus() -> None:
    with pytest.raises(UsageError, match="--gpu 8xh800 --nodes 32"):
        answer("kimi-k2", LAPTOP, "--train", "k2")
    hint, _ = describe_machine(["8xh800"], nodes=32)
    assert training_run(parsed("--train", "k2"), preset("kimi-k2"), hint).split.ranks == 256
