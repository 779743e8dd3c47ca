"""What people have measured (`measured.toml`), and what the predictor says of the same machine and load."""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from moonlet.config import preset
from moonlet.plan.describe import describe_machine
from moonlet.plan.engines import Tier, engine
from moonlet.plan.machine import Machine
from moonlet.plan.placement import Load, Placement, capacities
from moonlet.plan.predict import Factors, Predictor
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import Weights

Regime = Literal["decode", "batch", "prefill"]
HELD_OUT_EVERY = 3
_ALIKE = {"kimi-k2.7-code": "kimi-k2.5"}  # the same network


@dataclass(frozen=True)
class Figure:
    """One measured speed, `tok_s`, and what was asked for (see measured.toml)."""

    kind: Literal["decode", "prefill", "serve", "users"]
    tok_s: float
    streams: int = 1
    context: int = 0
    tokens: int = 0
    prompt: int = 0
    answer: int = 0
    tok_s_each: float = 0.0

    @property
    def regime(self) -> Regime:
        """What errs alike: one stream, many, prompts."""
        if self.kind == "prefill":
            return "prefill"
        return "decode" if self.kind == "decode" and self.streams == 1 else "batch"

    def said_by(self, predictor: Predictor) -> float:
        """Tokens per second."""
        match self.kind:
            case "decode":
                return predictor.decode_tok_s(self.streams, self.context)
            case "prefill":
                return self.tokens / predictor.prefill_seconds(self.tokens)
            case "serve":
                return predictor.serve_tok_s(self.streams, self.prompt, self.answer)
            case "users":
                return predictor.users_tok_s(self.tok_s_each, self.prompt, self.answer)


@dataclass(frozen=True)
class Row:
    """One published measurement. `held_out`: not used to fit factors."""

    number: int
    engine: str
    model: str
    quantization: str
    sure: Literal["H", "M", "L"]
    source: str
    held_out: bool
    figures: tuple[Figure, ...]
    unused: str | None
    setting: dict[str, Any]

    def weights(self) -> Weights:
        return _weights(_ALIKE.get(self.model, self.model), self.quantization)

    def machine(self) -> Machine:
        said = ((name, self.setting[name]) for name in _HARDWARE if name in self.setting)
        return _machine(tuple(said))

    def predictor(self, factors: Factors) -> Predictor:
        """Of this row's machine, everything where the row says that it was."""
        weights, machine = self.weights(), self.machine()
        values = weights.config.num_hidden_layers * weights.config.latent_size
        cache = values * (1 if self.setting.get("cache") == "fp8" else 2)
        known = engine(self.engine)
        load = Load(0, 1, cache)
        experts = weights.bytes_of("experts")
        rest = weights.total_bytes - experts
        home: Tier = "vram" if machine.accelerators else "ram"
        replicas = self.setting.get("replicas") or max(len(machine.accelerators), 1)
        shares = _shares(self, weights, machine, rest)
        if self.setting.get("pipeline"):
            known = replace(known, across="pipeline")
        where = Placement(
            known, load, home, rest, shares, experts, capacities(known, machine), replicas
        )
        return Predictor(weights, machine, where, factors, self.quantization)


@cache
def rows() -> tuple[Row, ...]:
    """All of them, in the order of the table."""
    table = tomllib.loads(Path(__file__).with_name("measured.toml").read_text("utf-8"))["row"]
    return tuple(
        _row(entry, (position + 1) % HELD_OUT_EVERY == 0) for position, entry in enumerate(table)
    )


_HARDWARE = ("gpu", "cpu", "sockets", "cores", "ram", "cpu_bandwidth", "nodes", "network")
_OF_ROWS = ("number", "engine", "model", "quantization", "sure", "source", "unused", "figures")


def _row(entry: dict[str, Any], held_out: bool) -> Row:
    figures = tuple(Figure(**figure) for figure in entry.get("figures", []))
    setting = {name: value for name, value in entry.items() if name not in _OF_ROWS}
    return Row(
        entry["number"], entry["engine"], entry["model"], entry["quantization"], entry["sure"],
        entry["source"], held_out, figures, entry.get("unused"), setting,
    )  # fmt: skip


@cache
def _weights(model: str, quantization: str) -> Weights:
    return weights_as(preset(model), quantization)


@cache
def _machine(hardware: tuple[tuple[str, Any], ...]) -> Machine:
    said = dict(hardware)
    machine, _ = describe_machine(
        gpu=[said["gpu"]] if "gpu" in said else [],
        ram_gb=said.get("ram"),
        cpu=said.get("cpu"),
        cpu_bandwidth=said.get("cpu_bandwidth"),
        cores=said.get("cores"),
        sockets=said.get("sockets"),
        nodes=said.get("nodes", 1),
        network_gbit=said.get("network"),
    )
    return machine


def _shares(row: Row, weights: Weights, machine: Machine, rest: float) -> dict[Tier, float]:
    """Where the routed experts were: as the row says, otherwise as much as fits into the GPUs."""
    if not machine.accelerators:
        return {"ram": 1.0}
    experts = weights.bytes_of("experts")
    if "ram" not in engine(row.engine).experts or machine.accelerators[0].unified:
        return {"vram": 1.0}
    on_gpu = row.setting.get("experts_on_gpu")
    if on_gpu is not None:
        share = on_gpu / weights.config.n_routed_experts
    else:
        room = capacities(engine(row.engine), machine).get("vram", 0.0) - rest
        share = min(max(room / experts, 0.0), 1.0)
    return {"vram": share, "ram": 1.0 - share}
