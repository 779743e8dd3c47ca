"""Does a plan say what happened? Deployments and runs of which the outcome is known (scenarios.toml)."""

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
from moonlet.plan.placement import Placement, Refusal, place

SCENARIOS: list[dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("scenarios.toml").read_text("utf-8")
)["scenario"]
WITHIN = 0.1


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
