"""`moonlet bench MODEL`: how fast a model is here, beside what this machine could do at most."""

import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from moonlet.cli.bench_tables import print_report
from moonlet.cli.console import UsageError, add_json_flag, print_json
from moonlet.cli.doctor import limits, machine, told_if_forced_wrongly
from moonlet.cli.inspect import size
from moonlet.cli.models import checkpoint_path, describe
from moonlet.config import ModelConfig
from moonlet.config.sizes import model_sizes

if TYPE_CHECKING:
    from moonlet.kernels.limits import Bandwidth
    from moonlet.model import Model
    from moonlet.model.profile import Step
    from moonlet.model.speed import Decode, Prefill

STEPS = 16  # of decoding in one run
ENOUGH_S = 0.3  # of runs of one case in a repetition
RANDOM = "random:"
_SPARE = 0.9  # of the free memory may be taken

Progress = Callable[[str], None]


def numbers(text: str) -> tuple[int, ...]:
    """ "0,2048" -> (0, 2048)."""
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not all(0 <= number <= 10**7 for number in found) or (text.strip() and not found):
        raise ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 128,512")
    return found


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "bench",
        help="prefill and decode speed, against the machine's measured limits",
        description="Measure load time, prefill and decode; medians over interleaved repetitions, and for "
        "each part of the network the share of the machine's limit. Depths are reached by filling the cache "
        "with random latents, not by computing them.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="folder, .gguf file, org/name, or random:PRESET for random float weights "
        "(default: the embedded model)",
    )
    lists = (
        ("--prefill", "128,512,2048", "prompt lengths"),
        ("--depth", "0,2048,8192", "tokens that decoding has behind it"),
        ("--batch", "1,4,8", "sequences decoded at once"),
    )
    for name, default, what in lists:
        parser.add_argument(
            name, type=numbers, default=numbers(default), help=f"{what} ({default})"
        )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (3)")
    parser.add_argument(
        "--layers", type=int, metavar="N", help="of a random:PRESET only the first N layers"
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    if args.repeat < 1 or 0 in (*args.prefill, *args.batch):
        raise UsageError("prompts, batches and repetitions are at least 1")
    with told_if_forced_wrongly(), _progress() as progress:
        document = report(args, progress)
    if args.json:
        print_json(document)
    else:
        print_report(document)
    return 0


def report(args: Namespace, progress: Progress) -> dict[str, Any]:
    """The JSON document. Speeds are tokens per second, times seconds, bandwidths bytes per second."""
    from moonlet.kernels.limits import Bandwidth

    name, config, load, path = _source(args.model, args.layers)
    progress("measuring this machine")
    before, bandwidth = limits(), Bandwidth()
    first_token_s = None if path is None else _first_token(path, progress)
    progress(f"loading {name}")
    start = time.perf_counter()
    model = load()
    load_s = time.perf_counter() - start
    cases, skipped = _possible(args, model)
    _measure(cases, args.repeat, bandwidth, progress)
    document = {
        "model": name,
        "context_length": config.max_position_embeddings,
        "machine": machine(),
        "limits_before": before,
        "load_s": load_s,
        "first_token_s": first_token_s,
        "prefill": [],
        "decode": [],
        "skipped": skipped,
    }
    for case in cases:
        progress(f"timing the parts of {case.label}")
        document[case.kind].append(_result(case, model, bandwidth))
    progress("measuring this machine again")
    document["limits_after"] = limits()
    return document


def load_checkpoint(path: Path) -> "Model":
    """The model as `moonlet serve` runs it: quantized weights on the kernels, float ones in torch."""
    from moonlet.model import is_quantized, load_model, load_packed

    if is_quantized(path):
        return load_packed(path)
    from moonlet.checkpoint import read_config
    from moonlet.engine.local import (
        compute_type,
    )  # with all of chat, which a first token can do without

    return load_model(path, compute_type(read_config(path)))


@dataclass
class Case:
    """One thing to measure. `prepare` makes it anew, as caches of all cases at once might not fit."""

    kind: str  # "prefill" or "decode"
    label: str
    step: "Step"
    prepare: "Callable[[], Prefill | Decode]"
    cache_bytes: int
    seconds: list[float]
    bandwidths: list[float]

    @property
    def tokens(self) -> int:
        """Tokens that one run processes."""
        return self.step.tokens * (STEPS if self.kind == "decode" else 1)


def _source(
    model: str | None, layers: int | None
) -> "tuple[str, ModelConfig, Callable[[], Model], Path | None]":
    """Name, configuration, how to load it, and where it lies unless its weights are random."""
    is_random = model is not None and model.startswith(RANDOM)
    if layers is not None and not is_random:
        raise UsageError("--layers cuts only random:PRESET; a checkpoint is measured whole")
    described = describe(model)
    config = described.config
    if not is_random:
        path = checkpoint_path(model)
        return described.name, config, lambda: load_checkpoint(path), path
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise UsageError(f"--layers {layers}: {model} has 1 to {config.num_hidden_layers}")
        dense = min(config.first_k_dense_replace, layers)
        config = replace(config, num_hidden_layers=layers, first_k_dense_replace=dense)
    config = replace(config, vision=None)
    return described.name, config, lambda: _random_model(config, str(model)), None


def _random_model(config: ModelConfig, name: str) -> "Model":
    import torch

    from moonlet.engine.local import compute_type
    from moonlet.kernels.limits import available_bytes
    from moonlet.model import build_on_meta

    dtype = compute_type(config) or torch.bfloat16
    sizes = model_sizes(config)
    needed = sizes.parameters(*sizes.parts) * dtype.itemsize
    free = available_bytes()
    if needed > _SPARE * free:
        raise UsageError(
            f"{name} needs {size(needed)} and {size(free)} are free: take fewer layers with --layers N"
        )
    model = build_on_meta(config).to(dtype).to_empty(device="cpu")
    model.init_weights()
    return model.eval().requires_grad_(False)


def _first_token(path: Path, progress: Progress) -> float:
    from moonlet.cli.first_token import seconds_to_first_token

    progress("starting a process that loads it, twice: the first warms the file")
    seconds_to_first_token(path)
    return seconds_to_first_token(path)


def _possible(args: Namespace, model: "Model") -> tuple[list[Case], list[str]]:
    """The cases that fit the model's context and the memory, and a sentence for each that does not."""
    from moonlet.kernels.limits import available_bytes

    context, free, skipped, kept = model.config.max_position_embeddings, available_bytes(), [], []
    for case in _cases(args, model):
        length = case.step.depth + (STEPS if case.kind == "decode" else case.step.new)
        if length > context:
            skipped.append(
                f"{case.label} was left out: it takes {length} positions and the model has {context}."
            )
        elif case.cache_bytes > _SPARE * free:
            needed = size(case.cache_bytes)
            skipped.append(
                f"{case.label} was left out: its cache needs {needed}, {size(free)} are free."
            )
        else:
            kept.append(case)
    return kept, skipped


def _cases(args: Namespace, model: "Model") -> Iterator[Case]:
    from moonlet.model.profile import Step
    from moonlet.model.speed import Decode, Prefill, cache_bytes

    for tokens in args.prefill:
        needed = cache_bytes(model, 1, tokens)
        step = Step(1, tokens, 0)
        yield Case(
            "prefill", f"prefill of {tokens}", step, lambda n=tokens: Prefill(model, n), needed, [], []
        )  # fmt: skip
    for depth in args.depth:
        for batch in args.batch:
            needed = cache_bytes(model, batch, depth + STEPS)
            label = f"decode of {batch} at depth {depth}"
            step = Step(batch, 1, depth)
            yield Case(
                "decode", label, step, lambda d=depth, b=batch: Decode(model, d, b, STEPS), needed, [], []
            )  # fmt: skip


def _measure(
    cases: Sequence[Case], repeat: int, bandwidth: "Bandwidth", progress: Progress
) -> None:
    """Runs every case `repeat` times, all of them in turn, the bandwidth read before and after each."""
    for repetition in range(repeat):
        for case in cases:
            progress(f"{case.label}, {repetition + 1} of {repeat}")
            prepared = case.prepare()
            if repetition == 0:
                prepared.run()  # buffers of this size are made
            case.bandwidths.append(bandwidth.read(passes=3))
            case.seconds.append(_typical(prepared.run))
            case.bandwidths.append(bandwidth.read(passes=3))


def _typical(run: "Callable[[], float]") -> float:
    """Seconds of a run: the median of as many as fit into ENOUGH_S, as a short one is far from alone when a model
    serves; the first, which finds the caches full of what measured the bandwidth, counts if it is long enough.
    """
    first = run()
    times = [run() for _ in range(min(int(ENOUGH_S / first), 20))]
    return median(times or [first])


def _result(case: Case, model: "Model", bandwidth: "Bandwidth") -> dict[str, Any]:
    from moonlet import kernels
    from moonlet.kernels.limits import arithmetic
    from moonlet.model.profile import bytes_read, profile

    prepared = case.prepare()
    step = getattr(prepared, "step", prepared.run)
    step()
    now, peaks = bandwidth.read(), arithmetic(kernels.isa())
    parts = profile(model, case.step, step, now, peaks)
    seconds, beside = median(case.seconds), median(case.bandwidths)
    read = bytes_read(model, case.step)
    read |= {part.part: part.bytes for part in parts if part.part == "experts"}
    result: dict[str, Any] = {
        "tok_s": case.tokens / seconds,
        "seconds": case.seconds,
        "bandwidth": beside,
        "parts": [asdict(part) | {"share": part.share} for part in parts],
    }
    if case.kind == "prefill":
        return {"tokens": case.step.new, **result}
    total = sum(read.values())
    return {
        "depth": case.step.depth,
        "batch": case.step.batch,
        **result,
        "bytes_per_token": {part: count / case.step.batch for part, count in read.items()},
        "bandwidth_share": total * STEPS / seconds / beside,
    }


@contextmanager
def _progress() -> Iterator[Progress]:
    """Says on stderr what is going on; on a terminal always in the same line."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: console.print(text, markup=False, highlight=False)
        return
    with console.status("starting") as status:
        yield status.update
