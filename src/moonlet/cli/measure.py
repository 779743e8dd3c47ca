"""`moonlet plan --measure`: how fast this machine is, by the engine's own kernels, in about two minutes.

First single operations (`moonlet.model.operations`). Then small models, run by the code that serves and that `moonlet bench`
times: what they take beyond their operations is the fixed cost of a step and of a layer, and what more tokens
add to it. So a prediction for these models is what was measured, and one for others differs by their operations.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moonlet import __version__
from moonlet.cli.measure_disk import disk_rate
from moonlet.config import ModelConfig, preset
from moonlet.config.sizes import model_sizes
from moonlet.plan.calibration import (
    Calibration,
    Costs,
    calibration_path,
    fingerprint,
    save_calibration,
)
from moonlet.plan.detect import detect_machine
from moonlet.plan.local import decode_seconds, prefill_seconds
from moonlet.plan.weights import Weights
from moonlet.quant.types import TYPES

if TYPE_CHECKING:
    from moonlet.model import Model

# Five layers of Moonlight with a small vocabulary: 1.5 GB, or a large cache would hold what every step reads.
LIKE_MOONLIGHT = replace(
    preset("moonlight-16b-a3b"), num_hidden_layers=5, vocab_size=8192, bos_token_id=None, eos_token_ids=(),
)  # fmt: skip
# So small that little but what is fixed takes time.
SMALL = replace(
    LIKE_MOONLIGHT, hidden_size=256, intermediate_size=512, moe_intermediate_size=128, n_routed_experts=16,
    n_shared_experts=1, num_experts_per_tok=2, num_attention_heads=4, kv_lora_rank=64, vocab_size=1024,
)  # fmt: skip
LIKE_NANO = replace(
    preset("nano"), model_type="deepseek_v3", vision=None, media_placeholder_token_id=None
)
DEPTHS = ((1, 4), (6, 4), (1, 12))  # dense layers and MoE layers of what tells their fixed costs
IN_TURN_S = 4.0  # for timing a few models or lengths in turn
BATCHES, LENGTHS = (1, 2, 4, 8), (16, 128, 512, 2048)
STEPS = 16  # of decoding in one run, as in `moonlet bench`

Tell = Callable[[str], None]
Expected = Callable[[Calibration], float]


@dataclass(frozen=True)
class Form:
    """A way to hold a model: how one is built, and the types of its parts, `usual` where none is named."""

    build: "Callable[[ModelConfig], Model]"
    usual: str
    types: Mapping[str, str]

    def weights(self, config: ModelConfig) -> Weights:
        stored = {}
        for part, size in model_sizes(config).parts.items():
            kind = self.types.get(part, self.usual)
            stored[part] = {kind: size.parameters * TYPES[kind].bits_per_value / 8}
        return Weights(config, "measured", stored)


def run_measure(path: Path | None = None) -> Path:
    """Measures with a progress bar on stderr, keeps the result and says where. Raises OSError."""
    path = path or calibration_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _bar() as tell:
        calibration = measure(path.parent, tell)
    return save_calibration(calibration, path)


def measure(folder: Path, tell: Tell) -> Calibration:
    """Everything, one thing after the other; `folder` lies on the drive that is measured.

    `tell` hears what comes next, `num_steps()` times.
    """
    from moonlet import kernels
    from moonlet.kernels.limits import Bandwidth, arithmetic

    tell("memory and arithmetic")
    bandwidth = Bandwidth().read()
    peaks = arithmetic(kernels.isa())
    plain = peaks.float_multiply_add or 1.0
    calibration = Calibration(
        moonlet=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        host=fingerprint(detect_machine(folder)),
        isa=kernels.isa(),
        threads=kernels.num_threads(),
        read_bytes_s=bandwidth,
        disk_bytes_s=None,
        flops={"fp32": plain, "bf16": peaks.bf16_dot or plain, "int8": peaks.int8_dot or plain},
        packed=_packed_operations(tell),
        torch=_torch_operations(tell),
    )
    calibration = _with_packed_models(calibration, tell)
    calibration = _with_float_models(calibration, tell)
    tell("the drive")
    return replace(calibration, disk_bytes_s=disk_rate(folder))


def num_steps() -> int:
    """How often `measure` tells what comes."""
    from moonlet.model.operations import kernel_types

    return len(kernel_types()) + 9


def _packed_operations(tell: Tell) -> Costs:
    from moonlet.model import operations as parts
    from moonlet.model.slices import Pool

    pool, matrix = Pool(), {}
    for first, kinds in parts.kernel_types().items():
        tell(f"matrices of {first}")
        matrix |= dict.fromkeys(kinds, parts.matrix_curve(pool, first))
    tell("attention")
    return _bare(matrix, {}, parts.decode_attention(), parts.prefill_attention())


def _torch_operations(tell: Tell) -> Costs:
    import torch

    from moonlet.model import operations as parts

    types = {"F32": torch.float32, "BF16": torch.bfloat16}
    tell("matrices in torch")
    matrix = {kind: parts.torch_matrix_curve(dtype) for kind, dtype in types.items()}
    tell("experts and attention in torch")
    experts = {kind: parts.torch_experts_curve(dtype) for kind, dtype in types.items()}
    return _bare(matrix, experts, parts.torch_decode_attention(), parts.torch_prefill_attention())


def _bare(matrix: Mapping, experts: Mapping, attend: tuple, score: float) -> Costs:
    """Only operations so far."""
    return Costs(matrix, experts, attend, score, 0.0, 0.0, 0.0, ((1.0, 0.0),), ((1.0, 1.0),))


def _with_packed_models(calibration: Calibration, tell: Tell) -> Calibration:
    from moonlet.model.slices import Pool, packed_slice

    pool, kind, rest = Pool(), "Q4_0", "Q8_0"
    form = Form(
        lambda config: packed_slice(pool, config, kind, rest),
        kind,
        {"attention": rest, "head": rest, "router": "F32"},
    )
    tell("steps of small quantized models")
    costs = _fixed(calibration, calibration.packed, SMALL, form)
    calibration = replace(calibration, packed=costs)
    tell("prompts of a quantized model")
    # With twice the loss a step is expected to take once its products longer: so long are they.
    twice = replace(calibration, packed=replace(costs, whole=((1.0, 2.0),)))
    whole = []
    for tokens, seconds, expected in _grown(LIKE_MOONLIGHT, form):
        once = expected(calibration)
        whole.append((tokens, max(0.5, 1 + (seconds - once) / (expected(twice) - once))))
    return replace(calibration, packed=replace(costs, whole=tuple(whole)))


def _with_float_models(calibration: Calibration, tell: Tell) -> Calibration:
    from moonlet.model.slices import float_slice

    tell("steps of small models in torch")
    form = Form(float_slice, "F32", {})
    costs = _fixed(calibration, calibration.torch, LIKE_NANO, form)
    calibration = replace(calibration, torch=costs)
    tell("prompts of a model in torch")
    numbers = LIKE_NANO.num_hidden_layers * LIKE_NANO.hidden_size
    growth = tuple(
        (tokens, max(0.0, seconds - expected(calibration)) / numbers)
        for tokens, seconds, expected in _grown(LIKE_NANO, form)
    )
    return replace(calibration, torch=replace(costs, growth=growth))


def _fixed(calibration: Calibration, costs: Costs, config: ModelConfig, form: Form) -> Costs:
    """`costs` with the seconds of a step and its layers beyond their operations: three unknowns, three models."""
    from moonlet.model.operations import timed_in_turn
    from moonlet.model.speed import Decode

    cuts = [replace(config, num_hidden_layers=d + m, first_k_dense_replace=d) for d, m in DEPTHS]
    times = timed_in_turn([Decode(form.build(cut), 0, 1, STEPS).run for cut in cuts], IN_TURN_S)
    beyond = [
        max(0.0, seconds / STEPS - decode_seconds(form.weights(cut), calibration, STEPS / 2))
        for cut, seconds in zip(cuts, times, strict=True)
    ]
    (d0, m0), (d1, _), (_, m2) = DEPTHS
    dense_layer = max(0.0, (beyond[1] - beyond[0]) / (d1 - d0))
    moe_layer = max(0.0, (beyond[2] - beyond[0]) / (m2 - m0))
    layers = d0 * dense_layer + m0 * moe_layer
    # Together they are what the first model took, also where the differences are too large for that.
    share = min(1.0, beyond[0] / layers) if layers else 0.0
    step = beyond[0] - share * layers
    return replace(costs, step=step, dense_layer=share * dense_layer, moe_layer=share * moe_layer)


def _grown(config: ModelConfig, form: Form) -> Iterator[tuple[float, float, Expected]]:
    """Steps of more and more tokens: how many, the seconds that they take, and what a calibration expects."""
    from moonlet.model.operations import timed_in_turn
    from moonlet.model.speed import Decode, Prefill

    model, weights = form.build(config), form.weights(config)
    decodes = [Decode(model, 0, batch, STEPS).run for batch in BATCHES]
    times = timed_in_turn(
        [*decodes, *(Prefill(model, tokens).run for tokens in LENGTHS)], IN_TURN_S
    )
    for batch, seconds in zip(BATCHES, times[: len(BATCHES)], strict=True):
        yield batch, seconds / STEPS, partial(decode_seconds, weights, depth=STEPS / 2, batch=batch)
    for tokens, seconds in zip(LENGTHS, times[len(BATCHES) :], strict=True):
        yield tokens, seconds, partial(prefill_seconds, weights, tokens=tokens)


@contextmanager
def _bar() -> Iterator[Tell]:
    """A bar on stderr that `tell` moves; without a terminal one line."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("measuring {task.description}", markup=False),
        TimeElapsedColumn(),
    )
    if not console.is_terminal:
        console.print("measuring this machine, which takes about two minutes ...", highlight=False)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=num_steps())

        def tell(label: str) -> None:
            bar.update(task, description=label)
            bar.advance(task)

        yield tell
