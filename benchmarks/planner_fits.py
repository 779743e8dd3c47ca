"""How little memory does moonlet live in, and does a plan know? On Linux, as root.

    python benchmarks/planner_fits.py [--only NAME]      writes results/fits.json, to which later runs add

Each model runs in a control group whose memory is limited, where it is killed if it takes more: first by halves
until the least limit under which it lives is known within STEP, then a little below and above that. All streams
stand at the end of their contexts. Files that are mapped count only as long as they stay: the kernel drops
their pages before it kills. Weights are random.
"""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from support.random_gguf import write_random

from moonlet.checkpoint import save_checkpoint
from moonlet.cli.plan_model import planned
from moonlet.config import ModelConfig, preset
from moonlet.model import Model
from moonlet.plan.answer import Question, answer
from moonlet.plan.engines import engine
from moonlet.plan.machine import Host, Machine
from moonlet.plan.placement import RAM_SHARE, SYSTEM_BYTES
from moonlet.plan.weights import Weights

HERE = Path(__file__).parent
RESULTS = HERE / "results/fits.json"
STEP = 1.03
AROUND = (0.85, 0.92, 1.08, 1.15)  # of the least limit
GROUPS = Path("/sys/fs/cgroup")
SMALL = {"vocab_size": 32768, "bos_token_id": 0, "eos_token_ids": (1,)}


@dataclass(frozen=True)
class Case:
    """A shape of `preset` with `changes`; kind: "folder" of bfloat16, or the type of a GGUF's experts."""

    name: str
    changes: dict[str, Any]
    kind: str
    context: int
    streams: int = 1
    base: str = "moonlight-16b-a3b"

    @property
    def config(self) -> ModelConfig:
        return replace(preset(self.base), **self.changes)


THIN = {"hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256, "num_attention_heads": 2} | SMALL  # fmt: skip
CASES = (
    Case("experts", {"num_hidden_layers": 3} | SMALL, "Q4_0", 512),
    Case("more experts", {"num_hidden_layers": 6} | SMALL, "Q4_K", 512),
    Case("ternary", {"num_hidden_layers": 4, "moe_intermediate_size": 1536} | SMALL, "TQ1_0", 512),
    Case("cache", {"num_hidden_layers": 40, "n_routed_experts": 8} | THIN, "Q4_0", 384, 16),
    Case("floats", {"num_hidden_layers": 6, "n_routed_experts": 48} | THIN, "folder", 512, 2),
)


def main() -> None:
    parser = ArgumentParser(description="How little memory moonlet lives in.")
    parser.add_argument("--only", metavar="NAME", help=", ".join(case.name for case in CASES))
    only = parser.parse_args().only
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for case in CASES:
        if only in (None, case.name):
            known[case.name] = measured(case)
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    print(table(known))


def measured(case: Case) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        file = written(case, Path(folder))
        weights = planned(str(file))
        free = lives(file, case, None)
        assert free is not None
        low, high = free["RssAnon"] * 0.8, free["VmHWM"] * 1.05
        runs: dict[int, bool] = {}
        while high / low > STEP:
            middle = (low * high) ** 0.5
            runs[int(middle)] = lives(file, case, middle) is not None
            low, high = (low, middle) if runs[int(middle)] else (middle, high)
        for share in AROUND:
            runs[int(high * share)] = lives(file, case, high * share) is not None
    return {
        "base": case.base,
        "changes": case.changes,
        "kind": case.kind,
        "context": case.context,
        "streams": case.streams,
        "stored": weights.stored,
        "without_limit": free,
        "least_limit": int(high),
        "runs": [{"limit": limit, "lived": lived} for limit, lived in sorted(runs.items())],
    }


def written(case: Case, folder: Path) -> Path:
    """A model file or folder with random weights."""
    if case.kind != "folder":
        file = folder / "model.gguf"
        write_random(file, case.config, case.kind, lambda message: None)
        return file
    model = Model(case.config).to(torch.bfloat16)
    save_checkpoint(folder, case.config, model.state_dict())
    return folder


def lives(file: Path, case: Case, limit: float | None) -> dict[str, int] | None:
    """What a run took, None if it was killed."""
    command = [sys.executable, "-m", "support.held", str(file), str(case.streams), str(case.context)]  # fmt: skip
    with group(limit) as procs:
        inside = ["bash", "-c", f'echo $$ > {procs}; exec "$@"', "bash"] if procs else []
        done = subprocess.run([*inside, *command], capture_output=True, text=True, cwd=HERE)
    print(f"{case.name}: {limit and round(limit / 1e6)} MB: {done.returncode}", file=sys.stderr)
    if done.returncode in (-9, 137):
        return None
    if done.returncode:
        raise SystemExit(f"{case.name} broke:\n{done.stderr}")
    return json.loads(done.stdout)


@contextmanager
def group(limit: float | None) -> Iterator[Path | None]:
    """A control group with so many bytes of memory, of either version; its file of processes."""
    if limit is None:
        yield None
        return
    old = GROUPS / "memory"
    folder = (old if old.is_dir() else GROUPS) / f"moonlet-fits-{os.getpid()}"
    folder.mkdir()
    try:
        name = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
        (folder / name).write_text(str(int(limit)))
        if (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0")
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


def question(entry: dict[str, Any], limit: float) -> Question:
    """The run of results/fits.json on a machine where an engine may take `limit` bytes."""
    config = replace(preset(entry["base"]), **{
        name: tuple(value) if isinstance(value, list) else value for name, value in entry["changes"].items()
    })  # fmt: skip
    host = Host("limited", 2, limit / RAM_SHARE + SYSTEM_BYTES, 30e9, {"fp32": 1e11})
    weights = Weights(config, "random", entry["stored"])
    return Question(
        config, "gguf" if entry["kind"] != "folder" else "native", Machine("limited", host), entry["context"],
        entry["streams"], prompt=64, answer=8, weights=weights,
    )  # fmt: skip


def planned_bytes(entry: dict[str, Any]) -> float:
    """That a plan wants of the memory, the process itself included."""
    found = answer(question(entry, 1e12), engine("moonlet")).placement
    assert found is not None
    return found.used("ram") + engine("moonlet").base_bytes


def table(known: dict[str, Any]) -> str:
    lines = ["| run | files GB | cache GB | least limit GB | planned GB | |", "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name, entry in known.items():
        one = question(entry, 1e12)
        files = sum(sum(kinds.values()) for kinds in entry["stored"].values())
        least, said = entry["least_limit"], planned_bytes(entry)
        lines.append(
            f"| {name} | {files / 1e9:.2f} | {one.load().cache_bytes / 1e9:.2f} | {least / 1e9:.2f} | "
            f"{said / 1e9:.2f} | {said / least - 1:+.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
