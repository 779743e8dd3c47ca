"""Serving at cluster scale: some nodes read prompts, the others write answers, experts spread over each side.

Prefill and decode are apart, attention is data-parallel (each GPU has its own requests and all of attention's
weights), the experts of a layer are shared by all GPUs of a side, as SGLang does it (LMSYS, "Deploying Kimi K2 with
PD Disaggregation and Large-Scale Expert Parallelism on 128 H200 GPUs", 2025-07-20; DeepEP's exchange, arXiv
2412.19437, section 3.4).

    step = computation + exchange - overlap * the shorter of both + a fixed time per layer
    computation of a part = the longer of its operations and its bytes
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from moonlet.config import ModelConfig
from moonlet.errors import ConfigError
from moonlet.plan.flops import decode_flops, prefill_flops
from moonlet.plan.machine import Accelerator, Machine
from moonlet.plan.memory import cache_bytes_per_token
from moonlet.plan.stored import weights_as
from moonlet.plan.weights import NOT_READ, Weights

_DISPATCH_BYTES, _COMBINE_BYTES = 1 + 4 / 128, 2  # of a number: FP8 with scales there, bf16 back
_MOST_REQUESTS, _MOST_STEPS = 1_000_000, 200_000


@dataclass(frozen=True)
class ServingEfficiency:
    """Shares of the peaks. They were chosen so that DeepSeek-R1 on 96 H100 comes out (LMSYS, 2025-05-05); Kimi K2
    on 128 H200 is then predicted, not fitted (test_cluster_serving.py). overlap: of the exchange and computation,
    two halves of a batch taking turns. layer_s: seconds that a layer takes however little it has to do."""

    compute: float = 0.4
    memory: float = 0.8
    network: float = 0.8
    overlap: float = 0.5
    layer_s: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("compute", "memory", "network"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"the efficiency of {name} is {getattr(self, name)!r}, but it must be above 0 and at most 1"
                )
        for name in ("overlap", "layer_s"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but it must be from 0 to 1")


@dataclass(frozen=True)
class ServingCluster:
    """prompt and output: tokens of a request. batch: requests that one decoding GPU works on at most.
    chunk: tokens that one prefill GPU reads in a step. redundant: copies of experts beyond the first, per layer,
    on the decoding side (96 in LMSYS's deployment)."""

    config: ModelConfig
    prefill: Machine
    decode: Machine
    quantization: str = "fp8"
    prompt: int = 2000
    output: int = 100
    batch: int = 480
    chunk: int = 16384
    redundant: int = 96
    efficiency: ServingEfficiency = field(default_factory=ServingEfficiency)

    def __post_init__(self) -> None:
        for name in ("prompt", "output", "batch", "chunk"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= 10_000_000:
                raise ConfigError(f"{name} is {value!r}, but it must be a whole number from 1")
        if self.chunk < self.prompt:
            raise ConfigError(
                f"a prefill step of {self.chunk} tokens holds no prompt of {self.prompt}; make chunk larger"
            )
        for side, machine in (("prefill", self.prefill), ("decode", self.decode)):
            if not machine.accelerators:
                raise ConfigError(f"the {side} side has no accelerators")

    def side(self, name: str) -> "Side":
        machine = self.prefill if name == "prefill" else self.decode
        return Side(
            self, machine, self.redundant if name == "decode" else 0, merged=name == "prefill"
        )

    @property
    def fits(self) -> tuple[float, float]:
        """Bytes that a decoding GPU needs for weights and the cache of a full batch, and those it has."""
        cache = self.batch * (self.prompt + self.output) * cache_bytes_per_token(self.config)
        return self.side("decode").resident_bytes + cache, self.decode.accelerators[0].memory_bytes


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step of a side: what it computes, what it exchanges, and the whole."""

    compute: float
    exchange: float
    seconds: float


@dataclass(frozen=True)
class Side:
    """The GPUs that prefill, or those that decode. merged: a token goes once to each node that needs it and the
    answers are added up there (DeepEP's normal kernels), instead of once to every expert (low latency)."""

    cluster: ServingCluster
    machine: Machine
    redundant: int
    merged: bool

    @property
    def gpus(self) -> int:
        return self.machine.num_accelerators

    @property
    def _one(self) -> Accelerator:
        return self.machine.accelerators[0]

    @cached_property
    def resident_bytes(self) -> float:
        """Weights on one GPU: its share of the experts, and all of the rest."""
        weights, c = self._weights, self.cluster.config
        copies = (c.n_routed_experts + self.redundant) / c.n_routed_experts
        return weights.total_bytes + weights.bytes_of("experts") * (copies / self.gpus - 1)

    @cached_property
    def _weights(self) -> Weights:
        return weights_as(self.cluster.config, self.cluster.quantization)

    @cached_property
    def _prompt_work(self) -> tuple[float, float]:
        """Operations of a prompt, without and of attention's scores."""
        return _apart(prefill_flops(self.cluster.config, self.cluster.prompt))

    @cached_property
    def _token_work(self) -> tuple[float, float]:
        """Operations of a token that is written, without scores, and of its scores with one position."""
        return _apart(decode_flops(self.cluster.config, 1))

    @cached_property
    def _reading(self) -> float:
        """Seconds to read the weights that a step needs."""
        read = self.resident_bytes - self._weights.bytes_of(*NOT_READ)
        return read / (self._one.bandwidth_bytes_s * self.cluster.efficiency.memory)

    def prefill_step(self, tokens: float) -> StepCost:
        """Each GPU reads `tokens` tokens of prompts."""
        prompts = tokens / self.cluster.prompt
        linear, scores = self._prompt_work
        return self._step(linear * prompts, scores * prompts, tokens, cached_bytes=0.0)

    def decode_step(self, streams: float, context: float) -> StepCost:
        """Each GPU writes one token of each of `streams` requests with `context` tokens behind them."""
        linear, scores = self._token_work
        cached = streams * context * cache_bytes_per_token(self.cluster.config)
        return self._step(linear * streams, scores * streams * context, streams, cached)

    def _step(self, linear: float, scores: float, tokens: float, cached_bytes: float) -> StepCost:
        """Experts are loaded evenly, and every one of a GPU's is used."""
        e, one, c = self.cluster.efficiency, self._one, self.cluster.config
        kind = "fp8" if self.cluster.quantization == "fp8" and "fp8" in one.flops else "bf16"
        compute = max(linear / (one.flops[kind] * e.compute), self._reading)
        attending = cached_bytes / (one.bandwidth_bytes_s * e.memory)
        compute += max(scores / (one.flops["bf16"] * e.compute), attending)
        layers = c.num_hidden_layers - c.first_k_dense_replace
        exchange = layers * tokens * self._exchange_seconds
        hidden = e.overlap * min(compute, exchange)
        fixed = c.num_hidden_layers * e.layer_s
        return StepCost(compute, exchange, compute + exchange - hidden + fixed)

    @cached_property
    def _exchange_seconds(self) -> float:
        """Of one token in one layer, there and back."""
        c, e = self.cluster.config, self.cluster.efficiency
        token = c.hidden_size * (_DISPATCH_BYTES + _COMBINE_BYTES)
        nodes, per_node = self.machine.nodes, len(self.machine.accelerators)
        k = c.num_experts_per_tok
        network = self.machine.network_bytes_s / per_node * e.network
        link = self._one.link_bytes_s * e.network
        inside = (self.gpus - 1) * (1 - (1 - 1 / self.gpus) ** k) * token / link
        if nodes == 1:
            return inside
        if not self.merged:  # low latency: every copy by the network, also to neighbours
            return k * (self.gpus - 1) / self.gpus * token / network
        return max(inside, (nodes - 1) * (1 - (1 - 1 / nodes) ** k) * token / network)


def _apart(work: dict[str, float]) -> tuple[float, float]:
    scores = work.pop("scores")
    return sum(work.values()), scores


@dataclass(frozen=True)
class Saturated:
    """What each side does with as much work as it can take, in tokens per second of all its GPUs."""

    prefill_tok_s: float
    decode_tok_s: float
    prefill_step: StepCost
    decode_step: StepCost


def saturated(cluster: ServingCluster) -> Saturated:
    """Each side by itself: full chunks, full batches in the middle of their answers."""
    reading, writing = cluster.side("prefill"), cluster.side("decode")
    first = reading.prefill_step(cluster.chunk)
    step = writing.decode_step(cluster.batch, cluster.prompt + cluster.output / 2)
    return Saturated(
        reading.gpus * cluster.chunk / first.seconds,
        writing.gpus * cluster.batch / step.seconds,
        first,
        step,
    )


@dataclass(frozen=True)
class ServingRun:
    """A day in short: `requests` at an even rate. tok_s: in the middle half of the run. ttft_s: mean time to the
    first token; tpot_s: mean time per further one. batch: mean requests per decoding GPU and step. busy: share
    of the time that a side works."""

    requests: int
    per_s: float
    seconds: float
    prefill_tokens: int
    decode_tokens: int
    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    tpot_s: float
    batch: float
    prefill_busy: float
    decode_busy: float


@dataclass(frozen=True)
class _Group:
    """Requests that go together. arrived: the sum of their times of arrival; ready: when their prompt is read."""

    count: int
    arrived: float
    ready: float


def simulate_serving(cluster: ServingCluster, per_s: float, requests: int = 20_000) -> ServingRun:
    """Play `requests` requests that arrive at `per_s` a second, step by step.

    Prefill takes whole prompts in order of arrival, hands the cache over, and gives the first token; decoding
    takes whatever is ready at each step, up to its batch. Raises ConfigError.
    """
    if not (0 < per_s < 1e9 and 1 <= requests <= _MOST_REQUESTS):
        raise ConfigError(
            f"{requests} requests at {per_s} a second cannot be played; give 1 to {_MOST_REQUESTS} at a rate above 0"
        )
    groups, reading = _read(cluster, per_s, requests)
    steps = list(_write(cluster, groups))
    end = steps[-1][0] + steps[-1][1] if steps else groups[-1].ready
    first, last = end / 4, end * 3 / 4
    read = sum(group.count for group in groups if first <= group.ready < last)
    written = sum(count for start, _, count in steps if first <= start < last)
    spent, total = sum(seconds for _, seconds, _ in steps), sum(count for _, _, count in steps)
    return ServingRun(
        requests,
        per_s,
        end,
        requests * cluster.prompt,
        total,
        read * cluster.prompt / (last - first),
        written / (last - first),
        sum(group.count * group.ready - group.arrived for group in groups) / requests,
        sum(seconds * count for _, seconds, count in steps) / total if total else 0.0,
        total / len(steps) / cluster.decode.num_accelerators if steps else 0.0,
        reading / end,
        spent / end,
    )


def _read(cluster: ServingCluster, per_s: float, requests: int) -> tuple[list[_Group], float]:
    """Groups of requests as they leave the prefill side, and the seconds that it worked."""
    side = cluster.side("prefill")
    most = side.gpus * cluster.chunk // cluster.prompt
    network = cluster.prefill.network_bytes_s or cluster.prefill.accelerators[0].link_bytes_s
    per_gpu = network / len(cluster.prefill.accelerators) * cluster.efficiency.network
    handover = cluster.prompt * cache_bytes_per_token(cluster.config) / per_gpu
    now = worked = 0.0
    taken, groups = 0, []
    while taken < requests:
        now = max(now, taken / per_s)  # request i comes at i / per_s
        # Rounding must not lose the request at hand.
        arrived = min(max(int(now * per_s), taken) + 1, requests)
        count = min(arrived - taken, most)
        seconds = side.prefill_step(count * cluster.prompt / side.gpus).seconds
        now, worked = now + seconds, worked + seconds
        came = sum(range(taken, taken + count)) / per_s
        groups.append(_Group(count, came, now + handover))
        taken += count
    return groups, worked


def _write(cluster: ServingCluster, groups: list[_Group]) -> Iterator[tuple[float, float, int]]:
    """(start, seconds, tokens) of every decoding step, until all answers are written.

    Requests that joined together leave together; the context of a step is the mean one.
    """
    side, steps = cluster.side("decode"), cluster.output - 1
    most = side.gpus * cluster.batch
    waiting = deque((group.ready, group.count) for group in groups)
    running: deque[tuple[int, int]] = deque()  # (step after which they are done, how many)
    now, step, active, written = 0.0, 0, 0, 0
    while steps and (waiting or running):
        if not running:
            now = max(now, waiting[0][0])
        while waiting and waiting[0][0] <= now and active < most:
            ready, count = waiting.popleft()
            joining = min(count, most - active)
            if joining < count:
                waiting.appendleft((ready, count - joining))
            running.append((step + steps, joining))
            active += joining
        context = cluster.prompt + 1 + written / active
        seconds = side.decode_step(active / side.gpus, context).seconds
        yield now, seconds, active
        now, step, written = now + seconds, step + 1, written + active
        if step > _MOST_STEPS:
            raise ConfigError("so many decoding steps cannot be played; take fewer requests")
        while running and running[0][0] <= step:
            _, left = running.popleft()
            active, written = active - left, written - left * steps


def assumptions(cluster: ServingCluster) -> tuple[str, ...]:
    """What the figures rest on, in sentences."""
    e, (need, have) = cluster.efficiency, cluster.fits
    return (
        f"{cluster.prefill.num_accelerators} GPUs read prompts and {cluster.decode.num_accelerators} write answers; "
        f"{cluster.redundant} experts a layer have a second copy on the decoding side",
        f"operations reach {e.compute:.0%}, memory {e.memory:.0%} and the network {e.network:.0%} of their peaks; "
        f"half-batches hide {e.overlap:.0%} of the shorter of computation and exchange",
        "experts are loaded evenly, and every expert of a GPU is read in each step",
        "attention's scores are computed in bf16, everything else in the weights' type",
        "decoding sends every copy of a token over the network, prefill one per node",
        f"a decoding GPU with {cluster.batch} requests holds {need / 1e9:.0f} GB of weights and cache of its "
        f"{have / 1e9:.0f} GB",
        "no prefix is shared, no request fails, requests are all of one length",
    )
