"""How far is `moonlet plan` off on this machine? Measures it, then times models and compares, in one run.

    benchmarks/planner_here.py [FILE.gguf ...]      nano, and each file, with `moonlet bench`

Wanted: within 15 % for prefill and decoding.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from moonlet.cli.plan_model import planned
from moonlet.plan.calibration import fingerprint, load_calibration
from moonlet.plan.detect import detect_machine
from moonlet.plan.local import decode_seconds, prefill_seconds

CASES = ["--prefill", "128,512", "--depth", "0,1024", "--batch", "1,8", "--repeat", "5"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="moonlet-plan-") as folder:
        for model in [None, *args.files]:
            rows += compared(model, Path(folder))
            print(table(rows), flush=True)
    if args.out:
        (args.out / "planner_here.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.out / "planner_here.md").write_text(table(rows) + "\n")


def compared(model: Path | None, folder: Path) -> list[dict[str, Any]]:
    """What was measured and predicted of one model, the machine measured right before and after."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    named = [str(model)] if model else []
    run = [sys.executable, "-m", "moonlet"]
    before = measured(run, environment, folder)
    done = subprocess.run(
        [*run, "bench", *named, *CASES, "--json"],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    )
    after = measured(run, environment, folder)
    document = json.loads(done.stdout)
    weights = planned(named[0] if named else None)
    rows = []
    for kind in ("prefill", "decode"):
        for found in document[kind]:
            said = []
            for calibration in (before, after):
                if kind == "prefill":
                    said.append(
                        found["tokens"] / prefill_seconds(weights, calibration, found["tokens"])
                    )
                else:
                    seconds = decode_seconds(
                        weights, calibration, found["depth"] + 8, found["batch"]
                    )
                    said.append(found["batch"] / seconds)
            what = (
                f"prefill {found['tokens']}"
                if kind == "prefill"
                else f"decode {found['batch']} at {found['depth']}"
            )
            rows.append(
                {
                    "model": document["model"],
                    "what": what,
                    "measured": found["tok_s"],
                    "predicted": median(said),
                }
            )
    return rows


def measured(run: list[str], environment: dict[str, str], folder: Path) -> Any:
    subprocess.run(
        [*run, "plan", "--measure", "--json"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    calibration, problem = load_calibration(
        fingerprint(detect_machine()), folder / "moonlet" / "calibration.json"
    )
    if calibration is None:
        raise SystemExit(problem or "nothing was measured")
    return calibration


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | what | measured, tok/s | predicted | off |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        off = row["predicted"] / row["measured"] - 1
        lines.append(
            f"| {row['model']} | {row['what']} | {row['measured']:.1f} | {row['predicted']:.1f} | {off:+.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
