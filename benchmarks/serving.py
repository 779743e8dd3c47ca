"""How does the server hold up: under load, over a long conversation, with many streams at once?

    benchmarks/serving.py                                  each question on a small scale, in a few minutes
    benchmarks/serving.py --only load --minutes 10         64 clients, some of them rude, on the embedded model
    benchmarks/serving.py --only replay --file moonlight-q4_0.gguf --history 8000
    benchmarks/serving.py --only together --file moonlight-q4_0.gguf --peer DIR
    benchmarks/serving.py --only steps                     nano's steps a second, and the part outside kernels

The files are those of cpu.py (random weights; `--file` is written when it is missing and named after one of its
shapes). Writes serving.json and serving.md, to which later runs add.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpu import SHAPES, commit, say
from support import load, peer, replay, steps, together
from support.random_gguf import write_random
from support.served import moonlet_serve

from moonlet import kernels
from moonlet.cli.doctor import machine

QUESTIONS = ("steps", "together", "replay", "load")
CLIENTS = 64
WARM_MINUTES = 1.0


def main() -> None:
    args = _arguments()
    names = args.only.split(",")
    if unknown := set(names) - set(QUESTIONS):
        raise SystemExit(f"no question {min(unknown)!r}: name some of {', '.join(QUESTIONS)}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="moonlet-serving-") as temporary:
        file = args.file or Path(temporary) / "small.gguf"
        asked: dict[str, Callable[[], dict[str, Any]]] = {
            "steps": lambda: {"nano": steps.run()},
            "together": lambda: {"file": file.stem} | _together(file, args),
            "replay": lambda: {"file": file.stem} | asyncio.run(replay.run(file, args.history)),
            "load": lambda: _load(args),
        }
        if {"together", "replay"} & set(names):
            _write_file(file)
        for name in names:
            say(f"serving: {name}")
            results[name] = asked[name]() | {"commit": commit()}
    results = _merged(args.out, results)
    print(table(results))
    if args.out:
        _write(args.out, results)
    if errors := results.get("load", {}).get("error_count") if "load" in names else 0:
        raise SystemExit(f"{errors} errors under load")


def _together(file: Path, args: argparse.Namespace) -> dict[str, Any]:
    found = peer.find(args.peer, kernels.num_threads())
    if found is None:
        say(peer.HOW + " Measuring moonlet alone.")
    return together.run(file, found, args.repeat)


def _load(args: argparse.Namespace) -> dict[str, Any]:
    with moonlet_serve() as server:
        warm = min(WARM_MINUTES, args.minutes)
        done = asyncio.run(load.run(server, CLIENTS, warm * 60, args.minutes * 60))
    return {"model": server.model} | done.result()


def _write_file(file: Path) -> None:
    if file.exists():
        return
    if file.stem not in SHAPES:
        raise SystemExit(f"{file} does not exist and is not named after one of {', '.join(SHAPES)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_random(file, SHAPES[file.stem].config, SHAPES[file.stem].kind, say)


def table(results: dict[str, Any]) -> str:
    """The figures that have a bar, a line each."""
    lines = ["| question | figure | wanted |", "| --- | ---: | --- |"]

    def add(question: str, figure: str, wanted: str = "") -> None:
        lines.append(f"| {question} | {figure} | {wanted} |")

    for row in results.get("steps", {}).get("nano", []):
        name = f"nano {row['form']}, {row['streams']} at once"
        add(f"{name}: steps a second", f"{row['steps_per_s']:.0f}")
        add(
            f"{name}: outside kernels",
            f"{row['outside']:.0%} of {row['step_ms']:.2f} ms",
            "under 40 %",
        )
    if one := results.get("together"):
        many = one["streams"]
        add(f"{one['file']}: {many} streams against one", f"{one['many_over_one']:.2f}x")
        for count, wanted in ((1, ""), (many, "at least 1.5x")):
            if (ratio := one.get(f"times_llama.cpp_at_{count}")) is not None:
                add(f"{one['file']}: {count} at once against llama.cpp", f"{ratio:.2f}x", wanted)
    if one := results.get("replay"):
        last = one["turns"][-1]
        add(f"{one['file']}: first token at turn {len(one['turns'])} of {last['prompt_tokens']:,} tokens",
            f"{last['first_s']:.2f} s")  # fmt: skip
        add("faster than cold", f"{one['times_faster_at_last_turn']:.1f}x", "at least 5x")
        add(
            "faster than cold, after a restart",
            f"{one['times_faster_after_restart']:.1f}x",
            "at least 4x",
        )
    if one := results.get("load"):
        name = f"{one['model']}, {one['clients']} clients for {one['seconds'] / 60:.0f} min"
        add(f"{name}: requests", f"{one['requests']:,}")
        add("errors that are not the client's", str(one["error_count"]), "none")
        add("tokens a second", f"{one['tokens_per_s']:.0f}")
        for key, text in (
            ("first_token_s", "to the first token"),
            ("between_tokens_s", "between tokens"),
        ):
            add(
                f"{text}, p50 / p99",
                f"{one[key]['p50'] * 1e3:.0f} / {one[key]['p99'] * 1e3:.0f} ms",
            )
        add(
            "memory before, warm, at the end",
            " / ".join(f"{size:.0f}" for size in one["resident_mb"]) + " MB",
            "warm = end",
        )
        add(
            "free pages at the end",
            f"{one['pages_free_of'][-1][0]:.0f} of {one['pages_free_of'][-1][1]:.0f}",
            "all",
        )
    return "\n".join(lines)


def _merged(folder: Path | None, new: dict[str, Any]) -> dict[str, Any]:
    """What is measured anew takes the place of the same question's earlier figures."""
    path = folder and folder / "serving.json"
    old = json.loads(path.read_text())["results"] if path and path.exists() else {}
    found = old | new
    return {name: found[name] for name in QUESTIONS if name in found}


def _write(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps({"machine": machine(), "results": results}, indent=1)
    for name, text in (("serving.json", document), ("serving.md", table(results))):
        beside = folder / f".{name}.partial"
        beside.write_text(text + "\n")
        beside.replace(folder / name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(QUESTIONS), help="some of %(default)s")
    parser.add_argument("--file", type=Path, metavar="GGUF", help="random weights (default: small)")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="where llama-batched-bench is")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--history", type=int, default=8000, help="tokens at the last turn")
    parser.add_argument("--minutes", type=float, default=0.5, help="of load")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for serving.json and serving.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
