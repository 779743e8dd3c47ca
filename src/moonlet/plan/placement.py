"""What lies where: accelerators' memory, the host's, the disk. Or why it does not fit, and by how much.

| what                                       | goes to                                                        |
| ------------------------------------------ | -------------------------------------------------------------- |
| attention, shared experts, dense MLP, head, embedding, vision, the cache, buffers | the first tier of `Engine.rest` that holds them all |
| routed experts                             | every tier of `Engine.experts` in turn, as many as fit         |

Experts are placed by their share of all of them, as if steps chose them evenly: an engine that keeps the
popular ones close does better.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache

from moonlet.config import ModelConfig
from moonlet.config.tensors import Part, tensor_specs
from moonlet.plan.engines import Engine, Tier
from moonlet.plan.machine import Machine
from moonlet.plan.split import Split
from moonlet.plan.weights import Weights

SYSTEM_BYTES = 2e9  # of the host's memory: the system, and what else runs
RAM_SHARE = 0.97  # of what is left
_WORDS: dict[Tier, str] = {"vram": "the GPUs' memory", "ram": "the memory", "disk": "the disk"}


@dataclass(frozen=True)
class Load:
    """What is to be served at once: `streams` of `context` tokens. buffer_bytes: of one accelerator's step."""

    context: int
    streams: int = 1
    cache_token_bytes: float = 0.0
    buffer_bytes: float = 0.0

    @property
    def cache_bytes(self) -> float:
        return self.context * self.streams * self.cache_token_bytes


@dataclass(frozen=True)
class Placement:
    """Bytes of a tier are those of all accelerators, or of all nodes' memories, together.

    experts: the share of the routed experts in each tier, 1 together. replicas: how many copies there are of the
    cache: tensor parallelism keeps one on each of its ranks. ranks: how many have buffers of their own.
    copied_bytes: of weights that tensor parallelism does not cut, all copies but the first.
    """

    engine: Engine
    load: Load
    rest_in: Tier
    rest_bytes: float
    experts: dict[Tier, float] = field(hash=False)
    expert_bytes: float
    capacity: dict[Tier, float] = field(hash=False)
    replicas: int = 1
    ranks: int = 1
    copied_bytes: float = 0.0

    def parts(self, tier: Tier) -> dict[str, float]:
        """Bytes in `tier` by what takes them."""
        found = {"routed experts": self.experts.get(tier, 0.0) * self.expert_bytes}
        if tier == self.rest_in:
            found |= {
                "other weights": self.rest_bytes,
                "copies of weights": self.copied_bytes,
                "cache": self.load.cache_bytes * self.replicas,
                "buffers": self.load.buffer_bytes * self.ranks,
            }
        return {name: size for name, size in found.items() if size > 0}

    def used(self, tier: Tier) -> float:
        return sum(self.parts(tier).values())

    @property
    def tokens_left(self) -> float:
        """How many more tokens could be cached."""
        free = self.capacity[self.rest_in] - self.used(self.rest_in)
        each = self.load.cache_token_bytes * self.replicas
        return max(free, 0.0) / each if each else 0.0


@dataclass(frozen=True)
class Refusal:
    """It does not run. missing_bytes: of hardware's `tier`, in all nodes together; 0 where no memory would help.
    reason: one sentence.
    """

    engine: Engine
    tier: Tier
    missing_bytes: float
    reason: str


def capacities(engine: Engine, machine: Machine) -> dict[Tier, float]:
    """Bytes of each tier that `engine` can fill on `machine`; of the disk, where a file may lie that is mapped.

    Below 0 where not even the engine itself fits. Ranks of a tensor split hold equal pieces, so that the
    smallest accelerator decides.
    """
    tiers = {*engine.experts, *engine.rest}
    found: dict[Tier, float] = {}
    unified = _is_apple(machine)
    if "vram" in tiers and machine.accelerators and (unified or not engine.unified):
        each = [
            one.memory_bytes * engine.vram_share - engine.base_bytes for one in machine.accelerators
        ]
        together = len(each) * min(each) if engine.split == "tensor" else sum(each)
        found["vram"] = machine.nodes * together
    if "ram" in tiers and not (unified and "vram" in found):  # one memory is not counted twice
        ram = (machine.host.ram_bytes - SYSTEM_BYTES) * RAM_SHARE - engine.base_bytes
        found["ram"] = machine.nodes * ram
    if "disk" in tiers and machine.disk is not None:
        found["disk"] = machine.disk.free_bytes
    return found


def _is_apple(machine: Machine) -> bool:
    return any(one.unified for one in machine.accelerators)


def place(
    engine: Engine, weights: Weights, machine: Machine, load: Load, replicas: int | None = None
) -> Placement | Refusal:
    """Where everything goes. replicas: of the cache; by default one for each rank of a tensor split."""
    capacity = capacities(engine, machine)
    if machine.nodes > 1 and engine.across == "none":
        return Refusal(engine, engine.rest[0], 0.0, f"{engine.name} is planned for one node only")
    if engine.rest == ("vram",) and not engine.unified and _is_apple(machine):
        return Refusal(engine, "vram", 0.0, f"{engine.name} does not run on Apple chips")
    if engine.unified and "vram" not in capacity:
        return Refusal(engine, "vram", 0.0, f"{engine.name} runs on Apple chips only")
    homes: list[Tier] = [tier for tier in engine.rest if tier in capacity]
    if not homes:
        reason = f"{engine.name} needs {_WORDS[engine.rest[0]]}, and there is none"
        return Refusal(engine, engine.rest[0], 0.0, reason)
    uneven = _uneven(engine, weights.config, machine)
    if uneven is not None:
        return Refusal(engine, engine.rest[0], 0.0, uneven)
    expert_bytes = weights.bytes_of("experts")
    rest = weights.total_bytes - expert_bytes
    refusals: list[Refusal] = []
    for home in homes:
        together, ranks = 1, machine.nodes
        if home == "vram":
            together, ranks = _ranks(engine, machine), machine.num_accelerators
        copied = whole_bytes(weights) * (together - 1) if together > 1 else 0.0
        empty = Placement(
            engine, load, home, rest, {}, expert_bytes, capacity, replicas or together, ranks, copied
        )  # fmt: skip
        placed = _with_experts(empty)
        if isinstance(placed, Placement):
            return placed
        refusals.append(placed)
    return min(refusals, key=lambda one: one.missing_bytes)


def _ranks(engine: Engine, machine: Machine) -> int:
    """Accelerators that work on the same token at the same time."""
    in_node = len(machine.accelerators) if engine.split == "tensor" else 1
    return in_node * (machine.nodes if engine.across == "tensor" else 1)


def _uneven(engine: Engine, config: ModelConfig, machine: Machine) -> str | None:
    """Why the ranks cannot share the model: vLLM and SGLang, which KTransformers is a form of, give each as many
    heads, and each stage of a pipeline a layer at least (vLLM's ModelConfig.verify_with_parallel_config).
    """
    if engine.unified or engine.split != "tensor" or engine.rest != ("vram",):
        return None
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    ranks = _ranks(engine, machine)
    if heads % ranks:
        even = [str(count) for count in range(1, min(ranks, heads + 1)) if heads % count == 0]
        return (
            f"{engine.name} gives each GPU as many of the {heads} attention heads, which {ranks} GPUs cannot share "
            f"evenly: plan {' or '.join(', '.join(even).rsplit(', ', 1))} in a node"
        )
    if engine.across == "pipeline" and machine.nodes > layers:
        return f"{engine.name} gives each node layers of its own, and there are {layers}: plan {layers} nodes at most"
    return None


def whole_bytes(weights: Weights) -> float:
    """Of weights that every rank of a tensor split holds whole: router, norms, vision tower, and the two down
    projections of latent attention, which feed all heads (vLLM's and SGLang's replicated linear layers).
    """
    parts: tuple[Part, ...] = ("router", "norm", "vision", "projector")
    return weights.bytes_of(*parts) + weights.bytes_of("attention") * _share_of_down(weights.config)


@lru_cache(maxsize=8)
def _share_of_down(config: ModelConfig) -> float:
    """Of attention's parameters, those that a tensor split does not cut."""
    halves = Split(tensor=2)
    specs = [spec for spec in tensor_specs(config) if spec.part == "attention"]
    whole = sum(spec.numel for spec in specs if halves.pieces(spec) == 1)
    return whole / sum(spec.numel for spec in specs)


def _with_experts(empty: Placement) -> Placement | Refusal:
    engine, home, capacity = empty.engine, empty.rest_in, empty.capacity
    tiers: list[Tier] = [tier for tier in engine.experts if tier in capacity]
    over = empty.used(home) - capacity[home]
    if over > 0:
        elsewhere = sum(max(capacity[tier], 0.0) for tier in tiers if tier != home)
        return _too_much(engine, home, over + max(empty.expert_bytes - elsewhere, 0.0))
    left, shares = empty.expert_bytes, dict[Tier, float]()
    for tier in tiers:
        taken = min(left, max(capacity[tier] - empty.used(tier), 0.0))
        if taken > 0:
            shares[tier] = taken / empty.expert_bytes
        left -= taken
    if left > 1e-6 * empty.expert_bytes:
        last: Tier = "ram" if "ram" in tiers else "vram"  # the slowest that is not a disk
        return _too_much(engine, last, left - min(capacity[last], 0.0))
    if engine.hybrid and shares.get("vram", 1.0) == 1:
        reason = f"{engine.name} is for models that the GPUs cannot hold, and they can: take sglang or vllm"
        return Refusal(engine, "vram", 0.0, reason)
    return replace(empty, experts=shares)


def _too_much(engine: Engine, tier: Tier, missing: float) -> Refusal:
    """missing: of what the engine can fill, which is a share of the hardware's memory."""
    missing /= engine.vram_share if tier == "vram" else RAM_SHARE
    return Refusal(
        engine, tier, missing, f"{engine.name} lacks {missing / 1e9:,.1f} GB of {_WORDS[tier]}"
    )
