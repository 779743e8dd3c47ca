"""What quantization costs: bytes of every mix, error of every type, nano and a wider random model in both.

    python benchmarks/quantization.py             prints the tables
    python benchmarks/quantization.py --write     also puts them into docs/quantization.md, and all figures
                                                  into benchmarks/results/quantization.json

nano is converted by moonlet's own converter and measured as `python -m moonlet.nano` measures it: the same
held-out cases, the same seed. Its rows are 160, 96, 80 and fewer columns, which no block of 256 fits, so that
its tables also say which types took the place of those; the second model has rows that every block fits.
"""

import json
import math
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet import kernels, nano
from moonlet.checkpoint import save_checkpoint
from moonlet.checkpoint.convert import Conversion, to_gguf, to_hf
from moonlet.checkpoint.parts import Wish
from moonlet.checkpoint.transcode import FLOATS, from_values, values_of
from moonlet.cli.inspect import report
from moonlet.cli.models import describe
from moonlet.config import preset, tensor_specs
from moonlet.config.gguf_tensors import forms_of
from moonlet.model import FloatForm, Model, load_model, load_packed
from moonlet.model.speed import Decode
from moonlet.nano.evaluate import held_out_cases, score
from moonlet.nano.rendering import Renderer
from moonlet.quant.mixes import NAMES, WRITTEN, load_mix
from moonlet.quant.types import TYPES
from moonlet.train.batch import IGNORED, Batch, micro_batches

ROOT = Path(__file__).parents[1]
DOCUMENT, RESULTS = ROOT / "docs/quantization.md", ROOT / "benchmarks/results/quantization.json"
SHAPES = ("kimi-k2.5", "moonlight-16b-a3b")
LOSS_CASES = 50  # conversations of each skill
ROUNDS, STEPS, DEPTH = 9, 48, 128  # of the timing: repetitions, tokens in each, tokens before them
WIDE = replace(
    preset("moonlight-16b-a3b"), hidden_size=512, intermediate_size=1024, moe_intermediate_size=256,
    num_hidden_layers=3, num_attention_heads=4, kv_lora_rank=256, n_routed_experts=16, vocab_size=1024,
    bos_token_id=0, eos_token_ids=(1,), initializer_range=0.04,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A row of the tables: a mix, or None for the model as it is."""

    name: str
    mix: str | None
    floats: FloatForm = "Q8_0"


KINDS = (
    Kind("float", None),
    Kind("INT4", "native-int4"),
    Kind("INT4, `--keep-floats`", "native-int4", "stored"),
    Kind("Q8_0", "q8_0"),
    Kind("Q4_K_M", "q4_k_m"),
    Kind("Q2_K_XL", "q2_k_xl"),
    Kind("TQ1_0", "tq1_0"),
)


def main() -> None:
    parser = ArgumentParser(description="What quantization costs.")
    parser.add_argument("--cases", type=int, default=500, help="cases of each skill (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which cases (%(default)s)")
    parser.add_argument("--write", action="store_true", help="into the documentation and results")
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    # nano's matrices are too small to share, and on a busy machine the threads wait for each other.
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        figures = {
            "cases": args.cases,
            "seed": args.seed,
            "isa": kernels.isa(),
            "threads": kernels.num_threads(),
            "load_before": load_before,
            "nano": nano_figures(Path(folder), args.cases, args.seed),
            "wide": wide_figures(Path(folder)),
            "types": type_errors(),
            "mixes": {mix: {model: mix_bytes(model, mix) for model in SHAPES} for mix in NAMES},
        }
    tables = all_tables(figures)
    print("\n\n".join(tables.values()))
    if args.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
        for name, table in tables.items():
            put(name, table)


def converted(source: Path, folder: Path, mix: str) -> Path:
    """`source` in `mix`, written once: native-int4 as a Hugging Face folder, all others as GGUF files."""
    is_folder = mix == "native-int4"
    target = folder / source.name / (mix if is_folder else f"{mix}/model.gguf")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        conversion = Conversion(source, target, Wish(load_mix(mix)))
        (to_hf if is_folder else to_gguf)(conversion, 2, lambda done, total: None)
    return target


def stored(source: Path, folder: Path) -> Iterator[tuple[Kind, Path, dict[str, Any]]]:
    """Every kind of the model in `source`: where it lies, and what `moonlet inspect` says of its files."""
    for kind in KINDS:
        path = source if kind.mix is None else converted(source, folder, kind.mix)
        yield kind, path, report(describe(str(path)))


def opened(kind: Kind, path: Path) -> Model:
    return load_packed(path, kind.floats) if kind.mix else load_model(path, torch.float32)


def nano_figures(folder: Path, cases: int, seed: int) -> dict[str, Any]:
    renderer = Renderer.from_folder(nano.folder())
    held_out = dict(held_out_cases(max(cases, LOSS_CASES), seed))
    examples = [
        renderer.example(case) for drawn in held_out.values() for case in drawn[:LOSS_CASES]
    ]
    batches = micro_batches(examples, 8192)
    targets = torch.cat([batch.targets[batch.targets != IGNORED] for batch in batches])
    models, figures, exact = {}, {}, torch.empty(0)
    for kind, path, described in stored(nano.folder(), folder):
        models[kind.name] = opened(kind, path)
        logits = reply_logits(models[kind.name], batches)
        exact = logits if kind.mix is None else exact
        figures[kind.name] = {
            "bytes": described["files"]["bytes"],
            "types": {part: list(held["bytes"]) for part, held in described["parts"].items()},
            "loss": float(F.cross_entropy(logits, targets)),
            "logits_error": float((logits - exact).norm() / exact.norm()),
            "other_token": float((logits.argmax(-1) != exact.argmax(-1)).double().mean()),
        }
    speeds = decode_speeds(models)
    for name, model in models.items():
        ratios = [
            own / of_float for own, of_float in zip(speeds[name], speeds["float"], strict=True)
        ]
        figures[name] |= {"tok_s": median(speeds[name]), "ratio": median(ratios), "skills": {}}
        for skill, drawn in held_out.items():
            found = score(model, renderer, skill, drawn[:cases])
            figures[name]["skills"][skill] = found.correct
            print(f"{name}: {skill} {found.accuracy:.1%}", file=sys.stderr, flush=True)
    return figures


@torch.inference_mode()
def reply_logits(model: Model, batches: Sequence[Batch]) -> Tensor:
    """Logits [targets, vocab_size] of every token of the replies."""
    hidden = [model.hidden(b.input_ids, media=b.media)[b.targets != IGNORED] for b in batches]
    return torch.cat([model.logits(part) for part in hidden]).float()


def decode_speeds(models: Mapping[str, Model]) -> dict[str, list[float]]:
    """Tokens per second of one conversation; the models take turns, so that all meet the same machine."""
    runs = {name: Decode(model, DEPTH, 1, STEPS) for name, model in models.items()}
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for index in range(ROUNDS + 1):
        for name, run in runs.items():
            seconds = run.run()
            if index:  # the first round warms up
                speeds[name].append(STEPS / seconds)
    return speeds


@torch.inference_mode()
def wide_figures(folder: Path) -> dict[str, Any]:
    """Bits per weight, and how far the logits of the median token move at each of the two roundings.

    `weights`: from the model as it was to the quantized weights, computed in float32; `kernels`: from there to
    what the kernels make of them.
    """
    source = folder / "wide"
    save_checkpoint(source, WIDE, Model(WIDE).bfloat16().state_dict())
    ids = torch.randint(WIDE.vocab_size, (4, 64), generator=torch.Generator().manual_seed(0))
    exact, figures = load_model(source, torch.float32)(ids), {}
    for kind, path, described in stored(source, folder):
        if kind.mix is not None:
            decoded, found = load_model(path, torch.float32)(ids), opened(kind, path)(ids)
            figures[kind.name] = {
                "bits": 8 * described["bytes"]["total"] / described["parameters"]["total"],
                "types": list(described["parts"]["experts"]["bytes"]),
                "weights": median_error(decoded, exact),
                "kernels": median_error(found, decoded),
            }
    return figures


def median_error(found: Tensor, wanted: Tensor) -> float:
    """Relative, of the token in the middle: where a rounded score asks another expert, all is different."""
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())


def mix_bytes(model: str, mix_name: str) -> dict[str, float]:
    """Bytes of a GGUF of a preset, and of the weights that one token of text is multiplied with here."""
    config, mix = preset(model), load_mix(mix_name)
    whole, of_token = 0, 0.0
    for spec in tensor_specs(config):
        share = (
            config.num_experts_per_tok / config.n_routed_experts if spec.part == "experts" else 1
        )
        for slot in forms_of(spec, config)[0]:
            rows, cols = math.prod(slot.shape[:-1]), slot.shape[-1]
            is_small = slot.float32 or spec.float32 or len(slot.shape) == 1
            kind = "F32" if is_small else mix.type_for(spec.name, rows, cols)
            kind = "Q4_0" if kind == "INT4" else kind  # as many bytes
            whole += rows * TYPES[kind].row_bytes(cols)
            kept = kind if kind == "F32" else kept_as(kind)  # vectors and the router stay
            if spec.part not in ("embedding", "vision", "projector"):
                of_token += share * rows * TYPES[kept].row_bytes(cols)
    return {"file": whole, "token": of_token}


def kept_as(kind: str) -> str:
    """The type in which the kernels keep a matrix stored as `kind`."""
    return "Q8_0" if kind in FLOATS else kernels.panel_type(kind)


def type_errors() -> dict[str, Any]:
    """Bits per value and the relative RMS error after encoding and decoding normal values."""
    values = np.random.default_rng(0).standard_normal((512, 1024), np.float32)
    figures = {}
    for name in sorted(set(WRITTEN) - {"F32"}):
        lost = values_of(from_values(values, name)) - values
        figures[name] = {
            "bits": 4.5 if name == "INT4" else TYPES[name].bits_per_value,
            "error": float(np.linalg.norm(lost) / np.linalg.norm(values)),
            "kept": kept_as(name),
        }
    return dict(sorted(figures.items(), key=lambda item: (-item[1]["bits"], item[1]["error"])))


def all_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """What stands between the marks of the document, by their names."""
    return {
        "mixes": mix_table(figures["mixes"]),
        "types": type_table(figures["types"]),
        "nano": nano_tables(figures),
        "wide": wide_table(figures["wide"]),
    }


def mix_table(figures: Mapping[str, Any]) -> str:
    head = [f"{model}: {what}" for model in SHAPES for what in ("file", "read per token")]
    return table(
        ["mix", *head],
        [
            [f"`{mix}`", *(f"{b / 1e9:,.1f} GB" for model in SHAPES for b in r[model].values())]
            for mix, r in figures.items()
        ],
    )


def nano_tables(figures: Mapping[str, Any]) -> str:
    rows: Mapping[str, Any] = figures["nano"]
    busy = figures["load_before"] > 0.5
    costs = table(
        ["nano as", "files", "tokens/s", "of float", "loss", "logits off by", "other best token"],
        [
            [
                name,
                f"{r['bytes'] / 1e6:.1f} MB",
                f"{r['tok_s']:,.0f}",
                f"{r['ratio']:.2f} x",
                f"{r['loss']:.4f}",
                f"{r['logits_error']:.2%}",
                f"{r['other_token']:.2%}",
            ]
            for name, r in rows.items()
        ],
    )
    skills = table(
        ["nano as", *(f"`{skill}`" for skill in rows["float"]["skills"])],
        [
            [name, *(f"{right / figures['cases']:.1%}" for right in r["skills"].values())]
            for name, r in rows.items()
        ],
    )
    parts = ("attention", "dense", "experts", "shared_experts", "head", "embedding", "vision")
    types = table(
        ["nano as", *(part.replace("_", " ") for part in parts)],
        [[name, *(", ".join(r["types"][part]) for part in parts)] for name, r in rows.items()],
        align="---",
    )
    machine = f"{figures['threads']} threads with `{figures['isa']}`, the float model on one"
    machine += ", on a machine busy with other work" if busy else ""
    return (
        f"Decoding one conversation at depth {DEPTH} ({machine}):\n\n{costs}\n\n"
        f"Right answers of {figures['cases']} held-out cases of each skill, seed {figures['seed']}:\n\n{skills}\n\n"
        f"The types that the files really hold:\n\n{types}"
    )


def wide_table(figures: Mapping[str, Any]) -> str:
    return table(
        ["as", "bits a weight", "experts", "rounded weights", "kernels on top"],
        [
            [
                name,
                f"{r['bits']:.2f}",
                ", ".join(r["types"]),
                f"{r['weights']:.1%}",
                f"{r['kernels']:.1%}",
            ]
            for name, r in figures.items()
        ],
    )


def type_table(figures: Mapping[str, Any]) -> str:
    return table(
        ["type", "bits a value", "error", "kept by the kernels as"],
        [[name, f"{r['bits']:.2f}", f"{r['error']:.2%}", r["kept"]] for name, r in figures.items()],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:") -> str:
    lines = [head, ["---", *(align for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(name: str, text: str) -> None:
    """Replaces what stands between the two marks called `name` in the document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = DOCUMENT.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{DOCUMENT} has no marks for the table {name}")
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
