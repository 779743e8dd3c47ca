"""Where the time of a step goes, part by part, and how near each part is to what the machine can do.

A part has to read its weights (and attention the cached latents) and to do its multiplications. The longer of
the two, at the machine's own limits, is its floor; the share is the floor over the time it took.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moonlet import kernels
from moonlet.config import ModelConfig
from moonlet.config.sizes import model_sizes
from moonlet.kernels.limits import Arithmetic
from moonlet.model.moe import MoE
from moonlet.model.network import DecoderLayer, Model
from moonlet.model.packed import PackedDecoder, PackedLayer, PackedLinear, PackedMoE, PackedNorm
from moonlet.model.speed import cache_bytes

REST = "rest"  # embedding, norms, residual sums, the choice of the token
# What `moonlet.config.tensors` calls the parts of the network that are timed.
PARTS = ("attention", "dense", "router", "experts", "shared_experts", "head")


@dataclass(frozen=True)
class PartTime:
    """One part of one step. Bytes include the cache for attention; None where nothing is to be counted."""

    part: str
    seconds: float
    bytes: int
    operations: int
    floor_seconds: float

    @property
    def share(self) -> float:
        """Of the limit: 1 is as fast as this machine can be."""
        return self.floor_seconds / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Step:
    """What a step is: `batch` sequences, `new` tokens each, after `depth` others."""

    batch: int
    new: int
    depth: int

    @property
    def tokens(self) -> int:
        return self.batch * self.new

    @property
    def visible(self) -> int:
        """Positions looked at, summed over the tokens."""
        return self.batch * (self.new * self.depth + self.new * (self.new + 1) // 2)


def profile(
    model: Model, step: Step, run: Callable[[], Any], bandwidth: float, peaks: Arithmetic
) -> list[PartTime]:
    """The parts of the network while `run` does `step`, and what is left over as "rest".

    Routed and shared experts of a quantized layer are one call otherwise; here they are two, so that
    each can be timed. `bandwidth` in bytes per second.
    """
    with _watched(model) as watch:
        start = time.perf_counter()
        run()
        total = time.perf_counter() - start
    read = bytes_read(model, step, watch.experts_read)
    work = operations(model.config, step)
    matrix_peak, score_peak = _peaks(model, peaks)
    found = []
    for part in (part for part in PARTS if part in watch.seconds):
        by_part = read[part] + (read["cache"] if part == "attention" else 0)
        scores = work["scores"] if part == "attention" else 0
        compute = work[part] / matrix_peak + scores / score_peak
        floor = max(by_part / bandwidth, compute)
        found.append(PartTime(part, watch.seconds[part], by_part, work[part] + scores, floor))
    rest = total - sum(watch.seconds.values())
    return [*found, PartTime(REST, max(rest, 0.0), 0, 0, 0.0)]


def bytes_read(model: Model, step: Step, experts_read: float | None = None) -> dict[str, int]:
    """Bytes that `step` has to read, by part; "cache" are the latents of earlier positions.

    `experts_read` is how many experts, over all layers, at least one token chose. Without it, the number
    that random choices would make on average.
    """
    sums: dict[str, float] = dict.fromkeys((*PARTS, "cache"), 0.0)
    for layer in model.language_model.model.layers:
        sums["attention"] += stored_bytes(layer.self_attn)
        mlp = layer.mlp
        if not isinstance(mlp, (MoE, PackedMoE)):
            sums["dense"] += stored_bytes(mlp)
            continue
        sums["router"] += stored_bytes(mlp.gate)
        shared = mlp.shared if isinstance(mlp, PackedMoE) else mlp.shared_experts
        sums["shared_experts"] += 0 if shared is None else stored_bytes(shared)
        sums["experts"] += stored_bytes(mlp.experts)
    c = model.config
    layers = c.num_hidden_layers - c.first_k_dense_replace
    if experts_read is None:
        missed = (1 - c.num_experts_per_tok / c.n_routed_experts) ** step.tokens
        experts_read = layers * c.n_routed_experts * (1 - missed)
    sums["experts"] *= experts_read / max(layers * c.n_routed_experts, 1)
    sums["head"] = stored_bytes(model.language_model.lm_head)
    sums["cache"] = cache_bytes(model, step.batch, step.depth)
    return {part: round(value) for part, value in sums.items()}


def operations(config: ModelConfig, step: Step) -> dict[str, int]:
    """Multiplications and additions by part; "scores" are those of attention with the absorbed latents."""
    sizes = model_sizes(config)
    work = {part: 2 * step.tokens * sizes.parameters(part) for part in PARTS}
    work["experts"] = work["experts"] * config.num_experts_per_tok // config.n_routed_experts
    work["head"] = 2 * step.batch * sizes.parameters("head")
    per_pair = config.num_attention_heads * (config.latent_size + config.kv_lora_rank)
    work["scores"] = 2 * step.visible * per_pair * config.num_hidden_layers
    return work


def is_packed(model: Model) -> bool:
    """Whether its leaves compute with `moonlet.kernels`."""
    return isinstance(model.language_model.lm_head, PackedLinear)


def stored_bytes(thing: Any) -> int:
    """Bytes of all weights in a module, packed ones included; not the few KB of its norms."""
    if isinstance(thing, Tensor):
        return thing.numel() * thing.element_size()
    if isinstance(thing, (np.ndarray, kernels.Matrix, kernels.Ffn, kernels.Experts)):
        return thing.nbytes
    if isinstance(thing, tuple):
        return sum(stored_bytes(item) for item in thing)
    if isinstance(thing, PackedNorm) or not isinstance(thing, nn.Module):
        return 0
    own = (value for name, value in vars(thing).items() if not name.startswith("_"))
    tensors = (*thing.parameters(recurse=False), *thing.buffers(recurse=False))
    return sum(stored_bytes(item) for item in (*own, *tensors, *thing.children()))


def _peaks(model: Model, peaks: Arithmetic) -> tuple[float, float]:
    """Operations per second of matrix products and of attention's scores."""
    plain = peaks.float_multiply_add or 1.0
    half = peaks.bf16_dot or plain
    if is_packed(model):
        return peaks.int8_dot or plain, half
    fastest = half if model.language_model.lm_head.weight.dtype == torch.bfloat16 else plain
    return fastest, fastest


class _Watch:
    """Seconds by part, and how many experts were read, over all layers."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.experts_read = 0

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def run(self, part: str, forward: Callable[..., Any], *args: Any) -> Any:
        with self.timing(part):
            return forward(*args)

    def run_experts(self, forward: Callable[..., Any], *args: Any) -> Any:
        self.experts_read += int(args[1].unique().numel())
        return self.run("experts", forward, *args)

    def run_packed(self, moe: PackedMoE, x: Tensor) -> Tensor:
        """What PackedMoE does, in three calls instead of two."""
        inner = moe.norm(x)
        x_ND = inner.reshape(-1, x.shape[-1]).numpy()
        with self.timing("router"):
            ids, weights = kernels.route(moe.gate(x_ND), moe.bias, **moe.routing)
        self.experts_read += len(np.unique(ids))
        with self.timing("experts"):
            out = torch.from_numpy(kernels.ffn(moe.experts, None, x_ND, ids, weights)).view_as(x)
        if moe.shared is not None:
            with self.timing("shared_experts"):
                shared = moe.shared(x)  # which adds x
            return out + shared
        return out + x


@contextmanager
def _watched(model: Model) -> Iterator[_Watch]:
    """Puts a clock around the `forward` of every part, and takes it away again."""
    watch = _Watch()
    with ExitStack() as undo:

        def replace(module: nn.Module, forward: Callable[..., Any]) -> None:
            module.forward = forward
            undo.callback(delattr, module, "forward")

        def time_as(module: nn.Module | None, part: str) -> None:
            if module is not None:
                replace(module, partial(watch.run, part, module.forward))

        text = model.language_model.model
        if isinstance(text, PackedDecoder):
            replace(text, text.one_by_one)
        for layer in text.layers:
            assert isinstance(layer, DecoderLayer | PackedLayer)
            time_as(layer.self_attn, "attention")
            mlp = layer.mlp
            if isinstance(mlp, PackedMoE):
                replace(mlp, partial(watch.run_packed, mlp))
            elif isinstance(mlp, MoE):
                time_as(mlp.gate, "router")
                replace(mlp.experts, partial(watch.run_experts, mlp.experts.forward))
                time_as(mlp.shared_experts, "shared_experts")
            else:
                time_as(mlp, "dense")
        time_as(model.language_model.lm_head, "head")
        yield watch
