"""What lies where: accelerators' memory, the host's, the disk. Or why it does not fit, and by how much.

| what                                       | goes to                                                        |
| ------------------------------------------ | -------------------------------------------------------------- |
| attention, shared experts, dense MLP, head, embedding, vision, the cache, buffers | the first tier of `Engine.rest` that holds them all |
| routed experts                             | every tier of `Engine.experts` in turn, as many as fit         |

Experts are placed by their share of all of them, as if steps chose them evenly: an engine that keeps the
popular ones close does better.
"""

from dataclasses import dataclass, field, replace

from moonlet.plan.engines import Engine, Tier
from moonlet.plan.machine import Machine
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
    cache and the buffers: tensor parallelism keeps one on each of its ranks.
    """

    engine: Engine
    load: Load
    rest_in: Tier
    rest_bytes: float
    experts: dict[Tier, float] = field(hash=False)
    expert_bytes: float
    capacity: dict[Tier, float] = field(hash=False)
    replicas: int = 1

    def parts(self, tier: Tier) -> dict[str, float]:
        """Bytes in `tier` by what takes them."""
        found = {"routed experts": self.experts.get(tier, 0.0) * self.expert_bytes}
        if tier == self.rest_in:
            found |= {
                "other weights": self.rest_bytes,
                "cache": self.load.cache_bytes * self.replicas,
                "buffers": self.load.buffer_bytes * self.replicas,
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
    """It does not run. missing_bytes: of `tier`; 0 where no memory would help. reason: one sentence."""

    engine: Engine
    tier: Tier
    missing_bytes: float
    reason: str


def capacities(engine: Engine, machine: Machine) -> dict[Tier, float]:
    """Bytes of each tier that `engine` can fill on `machine`; of the disk, where a file may lie that is mapped."""
    tiers = {*engine.experts, *engine.rest}
    found: dict[Tier, float] = {}
    unified = _is_apple(machine)
    if "vram" in tiers and machine.accelerators and (unified or not engine.unified):
        each = (
            one.memory_bytes * engine.vram_share - engine.base_bytes for one in machine.accelerators
        )
        found["vram"] = machine.nodes * max(sum(each), 0.0)
    if "ram" in tiers and not (unified and "vram" in found):  # one memory is not counted twice
        ram = (machine.host.ram_bytes - SYSTEM_BYTES) * RAM_SHARE - engine.base_bytes
        found["ram"] = machine.nodes * max(ram, 0.0)
    if "disk" in tiers and machine.disk is not None:
        found["disk"] = machine.disk.free_bytes
    return found


def _is_apple(machine: Machine) -> bool:
    return any(one.unified for one in machine.accelerators)


def place(
    engine: Engine, weights: Weights, machine: Machine, load: Load, replicas: int | None = None
) -> Placement | Refusal:
    """Where everything goes. replicas: by default one for each accelerator of a node under a tensor split."""
    capacity = capacities(engine, machine)
    if machine.nodes > 1 and engine.across == "none":
        return Refusal(engine, engine.rest[0], 0.0, f"{engine.name} is planned for one node only")
    if engine.rest == ("vram",) and not engine.unified and _is_apple(machine):
        return Refusal(engine, "vram", 0.0, f"{engine.name} does not run on Apple chips")
    if engine.unified and "vram" not in capacity:
        return Refusal(engine, "vram", 0.0, f"{engine.name} runs on Apple chips only")
    expert_bytes = weights.bytes_of("experts")
    rest = weights.total_bytes - expert_bytes
    tiers = [tier for tier in engine.rest if tier in capacity]
    if not tiers:
        return Refusal(
            engine,
            engine.rest[0],
            0.0,
            f"{engine.name} needs {_WORDS[engine.rest[0]]}, and there is none",
        )
    for home in tiers:
        copies = 1
        if home == "vram" and engine.split == "tensor":
            copies = replicas or len(machine.accelerators)
        empty = Placement(engine, load, home, rest, {}, expert_bytes, capacity, copies)
        if empty.used(home) <= capacity[home]:
            return _with_experts(empty)
    missing = (
        empty.used(home) - capacity[home] + (expert_bytes if engine.experts == (home,) else 0.0)
    )
    return _too_much(engine, home, missing)


def _with_experts(empty: Placement) -> Placement | Refusal:
    left, shares = empty.expert_bytes, dict[Tier, float]()
    tier: Tier = empty.rest_in
    for tier in empty.engine.experts:
        if tier not in empty.capacity:
            continue
        taken = min(left, max(empty.capacity[tier] - empty.used(tier), 0.0))
        if taken > 0:
            shares[tier] = taken / empty.expert_bytes
        left -= taken
    if left > 1e-6 * empty.expert_bytes:
        last = [one for one in empty.engine.experts if one in empty.capacity] or [tier]
        return _too_much(empty.engine, last[-1] if last[-1] != "disk" else "ram", left)
    if empty.engine.hybrid and shares.get("vram", 0.0) == 1:
        reason = f"{empty.engine.name} is for models that the GPUs cannot hold, and they can: take sglang or vllm"
        return Refusal(empty.engine, "vram", 0.0, reason)
    return replace(empty, experts=shares)


def _too_much(engine: Engine, tier: Tier, missing: float) -> Refusal:
    return Refusal(
        engine, tier, missing, f"{engine.name} lacks {missing / 1e9:,.1f} GB of {_WORDS[tier]}"
    )
