"""How fast is moonlet on a CPU beside llama.cpp, on the same GGUF files?

    benchmarks/cpu.py                                          a small random model, in seconds
    benchmarks/cpu.py --setup DIR                              builds llama.cpp there
    benchmarks/cpu.py --peer DIR --files DIR --shapes all      everything, in about two hours

Both run in turn, the memory's bandwidth read before and after each; figures are medians. moonlet stays loaded
and sleeps while llama.cpp runs. Depths of moonlet are random latents in the cache; llama-bench computes its own.
Both sides need memory for the model at the same time. Writes cpu.json and cpu.md, to which later runs add.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from support import peer as peers
from support.bars import Bars, Measured, markdown
from support.random_gguf import write_random

from moonlet import kernels
from moonlet.cli.doctor import machine
from moonlet.cli.first_token import PROMPT_TOKENS, seconds_to_first_token
from moonlet.config import ModelConfig, preset
from moonlet.errors import MoonletError
from moonlet.kernels.limits import Bandwidth
from moonlet.model import load_packed
from moonlet.model.profile import Step, bytes_read
from moonlet.model.speed import Decode, Prefill

RESULTS = Path(__file__).parent / "results"
Side = Callable[[], float]
STEPS = 32
PAUSE = 6.0  # seconds
KINDS = ("start", "prefill", "decode", "batch")
TOGETHER = 8  # sequences at once, each with a prompt of STEPS


@dataclass(frozen=True)
class Shape:
    """A random model: `kind` is the type of its feed-forward networks."""

    config: ModelConfig
    kind: str
    bars: Bars | None
    all_logits: bool = (
        False  # a slice of few layers: else the peer's last layer sees one token only
    )
    prompt: int = 512
    depths: tuple[int, ...] = (0, 2048, 8192)


def _slice(moe_layers: int) -> ModelConfig:
    """One dense layer and some MoE layers of true Kimi-K2.5 size, with a small vocabulary."""
    return replace(
        preset("kimi-k2.5"), model_type="deepseek_v3", num_hidden_layers=1 + moe_layers, vocab_size=4096,
        vision=None, media_placeholder_token_id=None, bos_token_id=1, eos_token_ids=(2,), pad_token_id=None,
    )  # fmt: skip


MOONLIGHT = replace(preset("moonlight-16b-a3b"), max_position_embeddings=32768)
SMALL = replace(
    MOONLIGHT, vocab_size=4096, hidden_size=512, intermediate_size=1024, moe_intermediate_size=256,
    num_hidden_layers=4, n_routed_experts=16, bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip
SHAPES = {
    "small": Shape(SMALL, "Q4_0", None, prompt=64, depths=(0, 256)),
    "moonlight-q4_0": Shape(MOONLIGHT, "Q4_0", Bars(2.5, deepest=2.0)),
    "moonlight-q4_k": Shape(MOONLIGHT, "Q4_K", Bars(2.5, deepest=2.0)),
    "k25-q4_0": Shape(_slice(1), "Q4_0", Bars(2.0), all_logits=True),
    "k25-q2_k": Shape(_slice(1), "Q2_K", Bars(2.0, decode=1.2), all_logits=True),
    "k25-tq1_0": Shape(_slice(1), "TQ1_0", Bars(3.0, decode=2.0), all_logits=True),
}


def main() -> None:
    args = _arguments()
    if args.setup:
        peers.setup(args.setup)
        return
    peer = peers.find(args.peer, kernels.num_threads())
    if peer is None:
        say(peers.HOW + " Measuring moonlet alone.")
    names = list(SHAPES)[1:] if args.shapes == "all" else args.shapes.split(",")
    if unknown := set(names) - set(SHAPES):
        raise SystemExit(f"no shape {min(unknown)!r}: name some of {', '.join(SHAPES)}, or all")
    kinds = args.measure.split(",")
    if unknown := set(kinds) - set(KINDS):
        raise SystemExit(f"nothing is called {min(unknown)!r}: name some of {', '.join(KINDS)}")
    results: list[Measured] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="moonlet-bench-") as temporary:
        for name in names:
            path = (args.files or Path(temporary)) / f"{name}.gguf"
            try:
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_random(path, SHAPES[name].config, SHAPES[name].kind, say)
                shape = SHAPES[name]
                if args.depths:
                    shape = replace(shape, depths=tuple(map(int, args.depths.split(","))))
                for one in measure(name, shape, path, peer, args.repeat, kinds):
                    results.append(replace(one, commit=commit()))
                    _write(
                        args.out, peer, results
                    )  # what is measured survives whatever happens next
            except (MoonletError, ValueError, RuntimeError, OSError) as error:
                failed = True
                say(f"{name} was not measured to its end: {error}")
            if args.files is None:
                path.unlink(missing_ok=True)  # the next one needs the room
    print(markdown(results))
    sys.exit(failed)


def measure(
    name: str,
    shape: Shape,
    path: Path,
    peer: peers.Peer | None,
    repeat: int,
    kinds: Collection[str] = KINDS,
) -> Iterator[Measured]:
    """What `kinds` name about one file, as it is measured."""
    bandwidth = Bandwidth()
    bars = shape.bars

    def in_turn(one: Measured, ours: Side, theirs: Side | None) -> Measured:
        _in_turn(one, repeat, bandwidth, ours, theirs)
        return one

    if "start" in kinds:
        # Before the model is loaded here: two copies and the file would not fit where one and the file do.
        yield in_turn(
            Measured(name, "start to first token", bars and 1.0, is_time=True),
            lambda: seconds_to_first_token(path),
            peer and (lambda: peer.first_token(path, PROMPT_TOKENS)),
        )
    say(f"loading {path.name}")
    model = load_packed(path)
    if "prefill" in kinds:
        prompt = Prefill(model, shape.prompt, shape.all_logits)
        what = ", all logits" if shape.all_logits else ""
        yield in_turn(
            Measured(name, f"prefill {shape.prompt}{what}", bars and bars.prefill),
            lambda: shape.prompt / prompt.run(),
            peer and (lambda: peer.prefill(path, shape.prompt, shape.all_logits)),
        )
    read = sum(bytes_read(model, Step(1, 1, 0)).values())
    for depth in shape.depths if "decode" in kinds else ():
        decode = Decode(model, depth, 1, STEPS)
        bar = bars and {0: bars.decode, 2048: bars.deep, 8192: bars.deepest}.get(depth)
        one = Measured(name, f"decode at depth {depth:,}", bar)
        one.bytes_per_token = read if bars and depth == 0 else None
        yield in_turn(
            one,
            lambda decode=decode: STEPS / decode.run(),
            peer and (lambda depth=depth: peer.decode(path, depth, STEPS)),
        )
    if "batch" in kinds:
        together = Decode(model, STEPS, TOGETHER, STEPS)
        yield in_turn(
            Measured(name, f"decode, {TOGETHER} at once", bars and bars.batch),
            lambda: TOGETHER * STEPS / together.run(),
            peer and (lambda: peer.decode_batch(path, TOGETHER, STEPS, STEPS)),
        )


def _in_turn(
    one: Measured, repeat: int, bandwidth: Bandwidth, ours: Side, theirs: Side | None
) -> None:
    """A B A B, the bandwidth read between all of them; then `one` has its samples.

    Ours warms up before each, as llama-bench does by itself; where the start is timed, both warm the file once.
    Before each a pause: for seconds after a large process has ended, a virtual machine's memory is slower.
    """
    if one.is_time:
        ours()
        if theirs:
            theirs()
    one.bandwidths.append(bandwidth.read())
    for repetition in range(repeat):
        say(f"{one.file}: {one.name}, {repetition + 1} of {repeat}")
        time.sleep(PAUSE)
        one.one_thread.append(bandwidth.read(all_threads=False))
        if not one.is_time:
            ours()
        one.ours.append(ours())
        one.bandwidths.append(bandwidth.read())
        if theirs:
            time.sleep(PAUSE)
            one.theirs.append(theirs())
            one.bandwidths.append(bandwidth.read())


def _write(folder: Path | None, peer: peers.Peer | None, new: list[Measured]) -> None:
    """What is measured anew takes the place of the same measurement of earlier runs; the others stay."""
    if folder is None:
        return
    path = folder / "cpu.json"
    measured = {(one.file, one.name): one for one in [*_read(path), *new]}
    order = {name: i for i, name in enumerate(SHAPES)}
    results = sorted(measured.values(), key=lambda one: order[one.file])
    document = {
        "machine": machine(),
        "python": platform.python_version(),
        "peer": peer and peer.version(),
        "results": [
            asdict(one)
            | {
                "ratio": one.ratio,
                "bandwidth_share": one.bandwidth_share,
                "verdicts": one.verdicts(),
            }
            for one in results
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("cpu.json", json.dumps(document, indent=1)), ("cpu.md", markdown(results))):
        beside = folder / f".{name}.partial"
        beside.write_text(text + ("" if text.endswith("\n") else "\n"))
        beside.replace(folder / name)


def _read(path: Path) -> list[Measured]:
    """What earlier runs found."""
    if not path.exists():
        return []
    names = [field.name for field in fields(Measured)]
    results = json.loads(path.read_text())["results"]
    return [Measured(**{name: one[name] for name in names if name in one}) for one in results]


def commit() -> str | None:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, cwd=RESULTS.parent, capture_output=True, text=True)
    return done.stdout.strip() or None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setup", type=Path, metavar="DIR", help="build llama.cpp there, and stop")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="where llama-bench is")
    parser.add_argument(
        "--files", type=Path, metavar="DIR", help="GGUF files, written when missing"
    )
    parser.add_argument("--shapes", default="small", help=f"all, or some of {','.join(SHAPES)}")
    parser.add_argument("--measure", default=",".join(KINDS), help="some of %(default)s")
    parser.add_argument("--depths", help="of decoding, such as 0,2048 (the peer computes them)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"for cpu.json and cpu.md, such as {RESULTS.name}"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
