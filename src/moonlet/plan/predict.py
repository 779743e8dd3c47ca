"""How long a step takes: for each part the slower of reading its weights and computing with them, by tier.

    step = layers * (layer_s + sync_s + node_s) + nodes * hop_s + sums over links / (bandwidth * link_share)
         + weights in VRAM / (accelerators * bandwidth * weight_share)
         + cache / (bandwidth * cache_share)
         + weights in RAM / (bandwidth * ram_share) + layers * host_layer_s
         + attention on the processor / (cores * core_flops * cache_share)
         + weights on disk / bandwidth

What is read of the experts grows with the tokens of a step as if they were chosen evenly
(`Weights.bytes_read`). The factors are an engine's, fitted to measurements (benchmarks/planner.py, factors.toml); they are
shares of what the hardware could do at most, and seconds that no bandwidth shortens. Of processors it is a
core's speed that is fitted: what is measured of llama.cpp differs far less by core than by share of a peak.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import log2
from typing import Protocol

from moonlet.plan.flops import scores
from moonlet.plan.machine import Accelerator, Machine
from moonlet.plan.placement import Placement
from moonlet.plan.weights import Weights

CHUNK = 512  # tokens that llama.cpp computes at once
STREAMS_EXPERTS = (
    256  # tokens from which KTransformers computes experts on the GPU, layer after layer
)
_LOW_BITS = {
    "fp8": 2**0.5,
    "nvfp4": 2.0,
    "mxfp4": 2.0,
}  # of the gain in peak, half (in its logarithm) arrives


class Speeds(Protocol):
    """What tells seconds: `Predictor`, the measurements of this machine, and what wraps them."""

    def step_parts(self, streams: float, context: float) -> dict[str, float]: ...
    def prefill_parts(self, tokens: float) -> dict[str, float]: ...


@dataclass(frozen=True)
class Factors:
    """An engine's. Names ending in _s are seconds, in _share parts of a peak."""

    weight_share: float  # of an accelerator's bandwidth, reading weights
    layer_s: float  # of every layer in every step
    sync_s: float  # more of it when accelerators work together, for each doubling of their number
    node_s: float  # more of it when nodes work together
    hop_s: float  # of every step from one node to the next, where they work one after the other
    link_share: float  # of the links between accelerators, adding up what each has computed
    cache_share: (
        float  # of an accelerator's bandwidth, reading latents; of `core_flops` on a processor
    )
    compute_share: float  # of an accelerator's bf16 peak, in prefill
    first_s: float  # of every prompt
    ram_share: float  # of the host's bandwidth, reading experts
    host_layer_s: float  # of every layer whose experts are on the host
    core_flops: float  # operations per second of one core in prefill, whatever its peak
    stream_share: float  # of PCIe, when experts are brought to the GPU for a prompt


FACTOR_NAMES = tuple(field.name for field in fields(Factors))


@dataclass(frozen=True)
class Predictor:
    """Seconds of what a placement does; `factors` of its engine.

    hits: the share of reads of experts on the disk that some cache of popular ones in memory answers.
    """

    weights: Weights
    machine: Machine
    placement: Placement
    factors: Factors
    quantization: str = "native"
    hits: float = 0.0

    def step_parts(self, streams: float, context: float) -> dict[str, float]:
        """Seconds of one decoding step for `streams`, each with `context` tokens behind it, by what takes them."""
        f, m, p = self.factors, self.machine, self.placement
        layers = self.weights.config.num_hidden_layers
        read = self.weights.bytes_read(streams)
        experts = read.pop("experts", 0.0)
        rest = sum(read.values())
        routed = 2 * streams * active_experts(self.weights)
        others = 2 * streams * self.weights.parameters_active - routed
        parts: dict[str, float] = {}
        if p.rest_in == "vram":
            cache = streams * context * p.load.cache_token_bytes * p.replicas / self.together
            parts["rest"] = self._vram_s(rest, others)
            parts["cache"] = cache / (self._one.bandwidth_bytes_s * f.cache_share)
            parts["layers"] = layers * self._layer_s() + self._hops_s()
            parts["links"] = self._links_s(streams)
        else:
            seen = scores(self.weights.config, streams * context, absorbed=True)
            parts["rest"] = self._host_s(rest, others)
            parts["cache"] = seen / (self._cores_flops() * f.cache_share)
            parts["layers"] = layers * f.host_layer_s
        if share := p.experts.get("vram", 0.0):
            parts["experts in VRAM"] = self._vram_s(experts * share, routed * share)
        missed = p.experts.get("disk", 0.0) * (1 - self.hits)
        if share := p.experts.get("ram", 0.0) + p.experts.get("disk", 0.0) - missed:
            parts["experts in RAM"] = self._host_s(experts * share, routed * share)
            if p.rest_in == "vram":
                parts["crossing"] = layers * f.host_layer_s
        if missed > 0 and m.disk is not None:
            parts["experts on disk"] = experts * missed / m.disk.bandwidth_bytes_s
        return parts

    def step_seconds(self, streams: float, context: float) -> float:
        return sum(self.step_parts(streams, context).values())

    def decode_tok_s(self, streams: float, context: float) -> float:
        """Of all streams together."""
        return streams / self.step_seconds(streams, context)

    def prefill_parts(self, tokens: float) -> dict[str, float]:
        """Seconds until the first token of a prompt that nothing is cached of, by what takes them."""
        f, m, p = self.factors, self.machine, self.placement
        config = self.weights.config
        active = self.weights.parameters_active
        routed = active_experts(self.weights)
        attention = scores(config, tokens * (tokens + 1) / 2, absorbed=False)
        parts = {"start": f.first_s}
        ram = p.experts.get("ram", 0.0) + p.experts.get("disk", 0.0)
        on_host = ram > 0 or p.rest_in == "ram"
        if p.rest_in == "vram":
            flops = 2 * tokens * (active - routed * ram) + attention
            if ram > 0 and p.engine.streams_experts and tokens >= STREAMS_EXPERTS:
                flops += 2 * tokens * routed * ram
                parts["experts over PCIe"] = p.expert_bytes * ram / self._stream_bytes_s()
                on_host = False
            parts["compute"] = flops / (self._gpu_flops() * f.compute_share)
            parts["layers"] = config.num_hidden_layers * self._layer_s() + self._hops_s()
            parts["links"] = self._links_s(tokens)
        if on_host:
            flops = (
                2 * tokens * routed * ram
                if p.rest_in == "vram"
                else 2 * tokens * active + attention
            )
            chunks = max(tokens / CHUNK, 1.0)
            reads = (
                chunks
                * self.weights.bytes_read(min(tokens, CHUNK)).get("experts", 0.0)
                * (ram or 1.0)
            )
            parts["processor"] = self._host_s(reads, flops)
        if (share := p.experts.get("disk", 0.0)) and m.disk is not None:
            parts["disk"] = (
                max(tokens / CHUNK, 1.0) * p.expert_bytes * share / m.disk.bandwidth_bytes_s
            )
        return parts

    def prefill_seconds(self, tokens: float) -> float:
        return sum(self.prefill_parts(tokens).values())

    def serve_tok_s(self, streams: int, prompt: float, answer: float) -> float:
        """Answers' tokens per second when `streams` requests are always in work, prompts computed in between."""
        step = self.step_seconds(streams, prompt + answer / 2)
        return streams * answer / (answer * step + streams * self.prefill_seconds(prompt))

    def users_tok_s(self, each: float, prompt: float, answer: float) -> float:
        """Tokens of prompts and answers per second and accelerator when every user gets `each` a second."""
        streams = _largest(lambda n: self.serve_tok_s(n, prompt, answer) / n >= each)
        return (
            self.serve_tok_s(streams, prompt, answer)
            * (prompt + answer)
            / answer
            / self.machine.num_accelerators
        )

    @property
    def _one(self) -> Accelerator:
        return self.machine.accelerators[0]

    @property
    def together(self) -> int:
        """Accelerators that work on one token at the same time; others do so before and after them."""
        engine, machine = self.placement.engine, self.machine
        in_node = len(machine.accelerators) if engine.split == "tensor" else 1
        return in_node * (machine.nodes if engine.across == "tensor" else 1)

    def _vram_s(self, num_bytes: float, flops: float) -> float:
        """The slower of reading and computing, for the accelerators that work on one token together."""
        speed = self.together * self._one.bandwidth_bytes_s * self.factors.weight_share
        return max(num_bytes / speed, flops / (self._gpu_flops() * self.factors.compute_share))

    def _host_s(self, num_bytes: float, flops: float) -> float:
        """The slower of reading and computing, for the processor."""
        host, f = self.machine.host, self.factors
        return max(num_bytes / (host.bandwidth_bytes_s * f.ram_share), flops / self._cores_flops())

    def _cores_flops(self) -> float:
        return self.machine.host.cores * self.factors.core_flops

    def _gpu_flops(self) -> float:
        """Of all that a long prompt keeps busy: pieces of it follow each other through the nodes."""
        count = (
            self.together
            if self.placement.engine.split == "pipeline"
            else self.machine.num_accelerators
        )
        return count * self._one.flops["bf16"] * _LOW_BITS.get(self.quantization, 1.0)

    def _layer_s(self) -> float:
        f, m = self.factors, self.machine
        across = m.nodes > 1 and self.placement.engine.across == "tensor"
        return f.layer_s + f.sync_s * log2(self.together) + f.node_s * across

    def _hops_s(self) -> float:
        one_by_one = self.placement.engine.across == "pipeline"
        return self.factors.hop_s * (self.machine.nodes - 1) * one_by_one

    def _links_s(self, tokens: float) -> float:
        """Two sums over all accelerators in every layer, bf16, each of which passes 2 (n - 1) / n of its bytes."""
        m, n = self.machine, self.together
        if n == 1:
            return 0.0
        config = self.weights.config
        passed = 2 * config.num_hidden_layers * tokens * config.hidden_size * 2 * 2 * (n - 1) / n
        speed = self._one.link_bytes_s
        if n > len(m.accelerators) and m.network_bytes_s > 0:
            speed = m.network_bytes_s
        return passed / (speed * self.factors.link_share)

    def _stream_bytes_s(self) -> float:
        """What the GPUs' links and the host's memory let through together."""
        m, f = self.machine, self.factors
        links = sum(one.pcie_bytes_s for one in m.accelerators) * f.stream_share
        return 1 / (1 / links + 1 / (m.host.bandwidth_bytes_s * 0.1))


def active_experts(weights: Weights) -> float:
    """Parameters of the routed experts that one token passes through."""
    c = weights.config
    each = 3 * c.hidden_size * c.moe_intermediate_size
    return weights.num_moe_layers * c.num_experts_per_tok * each


def _largest(holds: Callable[[int], bool], most: int = 4096) -> int:
    """The largest number up to `most` of which it holds, which falls with it; 1 if there is none."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
