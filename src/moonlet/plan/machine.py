"""What a plan has to know of the hardware. Bytes and bytes per second are decimal, rates are peaks."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Accelerator:
    """One GPU, or an Apple chip (`unified`: its memory is the host's).

    flops: dense peak by type ("bf16", "fp8", "fp4", "int8"), in operations per second. link_bytes_s: to its
    peers in the node, in one direction. pcie_bytes_s: from the host's memory. watts: under load. usd: what
    one costs, None where nobody says.
    """

    name: str
    memory_bytes: float
    bandwidth_bytes_s: float
    flops: Mapping[str, float] = field(hash=False)
    link_bytes_s: float
    pcie_bytes_s: float
    unified: bool = False
    watts: float = 0.0
    usd: float | None = None


@dataclass(frozen=True)
class Host:
    """Processor and memory of one node; bandwidth and cores are those of all `sockets` together.

    flops: peak of all cores by type ("int8", "bf16", "fp32").
    """

    name: str
    cores: int
    ram_bytes: float
    bandwidth_bytes_s: float
    flops: Mapping[str, float] = field(hash=False)
    sockets: int = 1
    watts: float = 0.0
    usd: float | None = None


@dataclass(frozen=True)
class Disk:
    """Where weights lie that are not in memory."""

    bandwidth_bytes_s: float
    free_bytes: float


@dataclass(frozen=True)
class Machine:
    """`nodes` equal nodes. network_bytes_s: of one node, in one direction."""

    name: str
    host: Host
    accelerators: tuple[Accelerator, ...] = ()
    disk: Disk | None = None
    nodes: int = 1
    network_bytes_s: float = 0.0

    @property
    def num_accelerators(self) -> int:
        """In all nodes together."""
        return self.nodes * len(self.accelerators)

    @property
    def vram_bytes(self) -> float:
        """Memory of all accelerators of all nodes."""
        return self.nodes * sum(one.memory_bytes for one in self.accelerators)
