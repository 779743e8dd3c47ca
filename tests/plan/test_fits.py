"""Does a plan say what happened? Deployments of which the outcome is known (scenarios.toml), and runs of moonlet
under limits of memory (benchmarks/planner_fits.py).
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moonlet.config import preset
from moonlet.plan.answer import Question, answer
from moonlet.plan.describe import describe_machine
from moonlet.plan.engines import Engine, engine
from moonlet.plan.machine import Host, Machine
from moonlet.plan.placement import RAM_SHARE, SYSTEM_BYTES, Placement, Refusal, place
from moonlet.plan.weights import Weights

SCENARIOS: list[dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("scenarios.toml").read_text("utf-8")
)["scenario"]
WITHIN = 0.1
RUNS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "benchmarks/results/fits.json").read_text("utf-8")
)
TOO_LITTLE, TOO_MUCH = 0.97, 1.10  # of what is needed: so far off may a plan be


def _question(scenario: Mapping[str, Any]) -> Question:
    machine, _ = describe_machine(
        gpu=[scenario["gpu"]] if "gpu" in scenario else [],
        ram_gb=scenario.get("ram"),
        cpu=scenario.get("cpu"),
        nvme=scenario.get("nvme"),
        nodes=scenario.get("nodes", 1),
    )
    return Question(
        preset(scenario["model"]), scenario.get("quantization", "native"), machine, scenario["context"],
        scenario.get("streams", 1), scenario.get("cache", "bf16"),
    )  # fmt: skip


def _engine(scenario: Mapping[str, Any]) -> Engine:
    known = engine(scenario["engine"])
    return replace(known, vram_share=scenario.get("vram_share", known.vram_share))


def _placed(scenario: Mapping[str, Any]) -> Placement | Refusal:
    question = _question(scenario)
    return place(
        _engine(scenario), question.stored(), question.machine, question.load(),
        scenario.get("replicas"),
    )  # fmt: skip


def _by_name(*fields: str) -> list[Any]:
    chosen = (one for one in SCENARIOS if not fields or any(field in one for field in fields))
    return [pytest.param(one, id=one["name"]) for one in chosen]


def test_there_are_enough_and_each_has_a_source() -> None:
    assert len(SCENARIOS) >= 20
    assert len({one["name"] for one in SCENARIOS}) == len(SCENARIOS)
    assert all(len(one["source"]) > 10 for one in SCENARIOS)
    assert sum(not one["fits"] for one in SCENARIOS) >= 5


@pytest.mark.parametrize("scenario", _by_name())
def test_it_fits_if_it_did(scenario: dict[str, Any]) -> None:
    found = answer(_question(scenario), _engine(scenario))
    assert found.fits == scenario["fits"], found.refusal
    if found.refusal is not None:
        assert found.refusal.missing_bytes > 0  # and not for some other reason


@pytest.mark.parametrize("scenario", _by_name("experts_on_gpu"))
def test_the_gpus_hold_the_experts_that_they_held(scenario: dict[str, Any]) -> None:
    placed = _placed(scenario)
    assert isinstance(placed, Placement)
    on_gpu = placed.experts.get("vram", 0.0) * preset(scenario["model"]).n_routed_experts
    assert on_gpu >= scenario["experts_on_gpu"]


@pytest.mark.parametrize("scenario", _by_name("tokens"))
def test_the_cache_holds_the_tokens_that_it_held(scenario: dict[str, Any]) -> None:
    placed = _placed(scenario)
    assert isinstance(placed, Placement)
    tokens = scenario["context"] + placed.tokens_left
    assert tokens == pytest.approx(scenario["tokens"], rel=scenario.get("within", WITHIN))


@pytest.mark.parametrize("scenario", _by_name("used_gb"))
def test_memory_is_used_as_it_was(scenario: dict[str, Any]) -> None:
    placed, known = _placed(scenario), _engine(scenario)
    assert isinstance(placed, Placement)
    for tier, measured in scenario["used_gb"].items():
        used = placed.used(tier) + known.base_bytes
        if "experts_on_gpu" in scenario:  # the plan fills the GPUs with them
            share = scenario["experts_on_gpu"] / preset(scenario["model"]).n_routed_experts
            used += (share - placed.experts.get(tier, 0.0)) * placed.expert_bytes
        assert used / 1e9 == pytest.approx(measured, rel=scenario.get("within", WITHIN))


def _under(run: Mapping[str, Any], limit: float) -> Question:
    """`run` on a machine where an engine may take `limit` bytes."""
    lists = {
        name: tuple(value) for name, value in run["changes"].items() if isinstance(value, list)
    }
    config = replace(preset(run["base"]), **run["changes"] | lists)
    host = Host("limited", 2, limit / RAM_SHARE + SYSTEM_BYTES, 30e9, {})
    return Question(
        config, "native" if run["kind"] == "folder" else "gguf", Machine("limited", host), run["context"],
        run["streams"], prompt=64, answer=8, weights=Weights(config, run["kind"], run["stored"]),
    )  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_moonlet_takes_the_memory_that_is_planned(name: str) -> None:
    """The least limit under which it lived, against the plan's bytes."""
    run, moonlet = RUNS[name], engine("moonlet")
    placed = answer(_under(run, 1e12), moonlet).placement
    assert placed is not None
    planned = placed.used("ram") + moonlet.base_bytes
    assert TOO_LITTLE < planned / run["least_limit"] < TOO_MUCH


CLEAR = [
    pytest.param(
        name, tried["limit"], tried["lived"], id=f"{name} in {tried['limit'] / 1e6:.0f} MB"
    )
    for name, run in RUNS.items()
    for tried in run["runs"]
    if not TOO_LITTLE < tried["limit"] / run["least_limit"] < TOO_MUCH
]


@pytest.mark.parametrize(("name", "limit", "lived"), CLEAR)
def test_it_fits_under_a_limit_if_it_lived_there(name: str, limit: int, lived: bool) -> None:
    assert answer(_under(RUNS[name], limit), engine("moonlet")).fits == lived


def test_there_are_runs_that_lived_and_runs_that_were_killed() -> None:
    assert len(RUNS) >= 4
    for name, run in RUNS.items():
        outcomes = [tried["lived"] for tried in sorted(run["runs"], key=lambda one: one["limit"])]
        assert outcomes == sorted(outcomes), name  # killed, then lived: nothing in between
        assert {True, False} == set(outcomes)
