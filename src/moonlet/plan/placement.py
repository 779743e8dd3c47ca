"""What lies where: accelerators' memory, the host's, the disk. Or why it does not fit, and by how much.

| what                                   | goes to                                                           |
| -------------------------------------- | ----------------------------------------------------------------- |
| attention, shared, dense, head, router | the fastest tier that the engine can use for them                 |
| cache of latents, buffers              | beside them                                                       |
| routed experts                         | as many as fit in each tier, fastest first                        |

Experts are placed by their share of all of them, as if a step chose them evenly: an engine that keeps the
popular ones close does better.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from moonlet.plan.engines import Engine, Tier
from moonlet.plan.machine import Machine
from moonlet.plan.weights import Weights

HOST_SPARE_BYTES = 2e9  # the system and what else runs
HOST_SHARE = 0.97


@dataclass(frozen=True)
class Load:
    """What is to be served at once. cache_bytes: of one token, buffers: in all."""

    context: int
    streams: int = 1
    cache_token_bytes: float = 0.0
    buffer_bytes: float = 0.0

    @property
    def cache_bytes(self) -> float:
        return self.context * self.streams * self.cache_token_bytes


@dataclass(frozen=True)
class Placement:
    """Bytes by tier. experts: the share of the routed experts in each tier, 1 together.

    replicas: how many copies of the cache there are (plain tensor parallelism keeps one on each rank).
    """

    engine: Engine
    load: Load
    rest_in: Tier
    rest_bytes: float
    experts: dict[Tier, float]
    expert_bytes: float
    capacity: dict[Tier, float]
    replicas: int = 1

    def used(self, tier: Tier) -> float:
        """Bytes of `tier` that are taken."""
        fixed = self.rest_bytes + self.load.buffer_bytes + self.load.cache_bytes * self.replicas
        return self.experts.get(tier, 0.0) * self.expert_bytes + fixed * (tier == self.rest_in)

    @property
    def free_for_cache(self) -> float:
        """Tokens that could still be cached beside those of the load."""
        left = self.capacity[self.rest_in] - self.used(self.rest_in)
        return max(left, 0.0) / (self.load.cache_token_bytes * self.replicas or 1.0)


@dataclass(frozen=True)
class Refusal:
    """It does not fit: how many bytes are missing in which tier, and one sentence."""

    engine: Engine
    tier: Tier
    missing_bytes: float
    reason: str


def capacities(engine: Engine, machine: Machine) -> dict[Tier, float]:
    """Bytes that `engine` can use of each tier; of the disk all that the files may take."""
    found: dict[Tier, float] = {}
    accelerators = machine.accelerators if "vram" in engine.rest + engine.experts else ()
    if accelerators and all(one.unified for one in accelerators) in (True, engine.unified):
        each = (one.memory_bytes * engine.vram_share - engine.base_bytes for one in accelerators)
        found["vram"] = machine.nodes * max(sum(each), 0.0)
    unified = any(one.unified for one in accelerators)
    if "ram" in engine.rest + engine.experts and not unified:
        ram = machine.host.ram_bytes * HOST_SHARE - HOST_SPARE_BYTES - engine.base_bytes
        found["ram"] = machine.nodes * max(ram, 0.0)
    if "disk" in engine.experts and machine.disk is not None:
        found["disk"] = machine.disk.free_bytes
    return found


def place(
    engine: Engine, weights: Weights, machine: Machine, load: Load, replicas: int | None = None
) -> Placement | Refusal:
    """Where everything goes. replicas: of the cache; by default one for each accelerator of a tensor split."""
    if (why := _cannot(engine, weights, machine)) is not None:
        return why
    capacity = capacities(engine, machine)
    experts = weights.bytes_of("experts")
    rest = weights.total_bytes - experts
    home = next((tier for tier in engine.rest if capacity.get(tier, 0) > 0), None)
    if home is None:
        return _no_home(engine, machine, rest + experts)
    copies = replicas or (machine.num_accelerators if home == "vram" and engine.split == "tensor" else 1)
    first = Placement(engine, load, home, rest, {}, experts, capacity, copies)
    if (missing := first.used(home) - capacity[home]) > 0:
        lower = engine.rest[engine.rest.index(home) + 1 :]
        if not lower or capacity.get(lower[0], 0) < first.used(home):
            return _too_much(engine, home, missing + (experts if engine.experts == (home,) else 0.0), machine)
        first = replace(first, rest_in=lower[0], replicas=1)
    return _with_experts(first, machine)


def _with_experts(placement: Placement, machine: Machine) -> Placement | Refusal:
    left, shares = placement.expert_bytes, dict[Tier, float]()
    for tier in placement.engine.experts:
        room = max(placement.capacity.get(tier, 0.0) - placement.used(tier), 0.0)
        taken = min(left, room)
        if taken > 0:
            shares[tier] = taken / placement.expert_bytes
        left -= taken
    if left > max(1.0, 1e-9 * placement.expert_bytes):
        last = next(t for t in reversed(placement.engine.experts) if t == "ram" or t in placement.capacity or t == "vram")
        return _too_much(placement.engine, last, left, machine)
    return replace(placement, experts=shares)


def _cannot(engine: Engine, weights: Weights, machine: Machine) -> Refusal | None:
    """What no memory mends."""
    del weights
    if engine.unified and not any(one.unified for one in machine.accelerators):
        return Refusal(engine, "vram", 0.0, f"{engine.name} runs on Apple chips only")
    return None


def _no_home(engine: Engine, machine: Machine, needed: float) -> Refusal:
    tier = engine.rest[0]
    what = {"vram": "a GPU", "ram": "memory", "disk": "a disk"}[tier]
    return Refusal(engine, tier, needed, f"{engine.name} needs {what}, and {machine.name} has none that it can use")


def _too_much(engine: Engine, tier: Tier, missing: float, machine: Machine) -> Refusal:
    where = {"vram": "the memory of the GPUs", "ram": "memory", "disk": "the disk"}[tier]
    return Refusal(
        engine, tier, missing, f"{missing / 1e9:,.1f} GB of {where} are missing on {machine.name} for {engine.name}"
    )
