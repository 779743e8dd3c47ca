"""A training step played task by task: interleaved 1F1B on p ranks, with its bubbles.

The schedule is that of Megatron-LM (arXiv 2104.04473, section 2.2). Each rank has a lane for computation and
one for the network. What a chunk computes goes out over the network lane (the exchange of its experts) before
the next chunk can use it, so that exchanges hide behind the computation of other micro-batches; Kimi K2 runs
more micro-batches ahead for that (arXiv 2507.20534, section 2.4.2). The weights' gradients are a task of their
own, behind the inputs' gradients that the neighbour waits for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from moonlet.errors import ConfigError

Lane = Literal["compute", "network"]
_MOST_TASKS = 1_000_000


class Task(NamedTuple):
    """One thing that one lane of one rank does from `start` to `end`, in seconds.

    name: "forward", "backward", "weights", "exchange", or what `after` calls it.
    """

    rank: int
    lane: Lane
    name: str
    chunk: int
    micro_batch: int
    start: float
    end: float


@dataclass(frozen=True)
class ChunkCost:
    """Seconds of one micro-batch in one chunk. backward: up to the gradient of its input; weights: of the
    rest; exchange: of the experts, in each of the two passes."""

    forward: float
    backward: float
    weights: float = 0.0
    exchange: float = 0.0


class Late(NamedTuple):
    """What a rank does after its last gradient: name, lane, seconds."""

    name: str
    lane: Lane
    seconds: float


@dataclass(frozen=True)
class Played:
    """Every task of one step, in no particular order."""

    ranks: int
    tasks: tuple[Task, ...]

    @property
    def seconds(self) -> float:
        return max(task.end for task in self.tasks)

    def busy(self, rank: int, lane: Lane = "compute") -> float:
        """Seconds that a lane works."""
        return sum(t.end - t.start for t in self.tasks if t.rank == rank and t.lane == lane)

    @property
    def idle_share(self) -> float:
        """Of the computing lanes of all ranks."""
        worked = sum(t.end - t.start for t in self.tasks if t.lane == "compute")
        return 1 - worked / (self.ranks * self.seconds)

    def in_flight(self, rank: int) -> int:
        """Most chunks of micro-batches that had gone forward and not backward at any time."""
        changes = [(t.start, 1) for t in self.tasks if t.rank == rank and t.name == "forward"]
        changes += [(t.end, -1) for t in self.tasks if t.rank == rank and t.name == "backward"]
        most = held = 0
        for _, change in sorted(changes):
            held += change
            most = max(most, held)
        return most


def warmup(pipeline: int, virtual: int, micro_batches: int, rank: int, extra: int = 0) -> int:
    """Forward chunks that a rank runs before forward and backward ones alternate."""
    if pipeline == 1:
        return 0
    behind = pipeline - rank - 1
    ahead = behind if virtual == 1 else 2 * behind + (virtual - 1) * pipeline
    return min(ahead + extra, micro_batches * virtual)


def order(
    pipeline: int, virtual: int, micro_batches: int, rank: int, extra: int = 0
) -> Iterator[tuple[bool, int, int]]:
    """(is it forward, chunk, micro-batch) in the order in which a rank takes them.

    Micro-batches go through a rank's chunks in groups of `pipeline`. Raises ConfigError where virtual chunks
    leave a group incomplete.
    """
    if virtual > 1 and micro_batches % pipeline:
        raise ConfigError(
            f"{micro_batches} micro-batches are no multiple of {pipeline} pipeline ranks"
        )
    total = micro_batches * virtual
    ahead = warmup(pipeline, virtual, micro_batches, rank, extra)
    for i in range(total + ahead):
        if i < total:
            chunk, micro_batch = _place(pipeline, virtual, i)
            yield True, chunk * pipeline + rank, micro_batch
        if i >= ahead:
            chunk, micro_batch = _place(pipeline, virtual, i - ahead)
            yield False, (virtual - 1 - chunk) * pipeline + rank, micro_batch


def _place(pipeline: int, virtual: int, i: int) -> tuple[int, int]:
    """Which of a rank's chunks, and which micro-batch, its i-th forward task is."""
    if virtual == 1:
        return 0, i
    group, within = divmod(i, pipeline * virtual)
    chunk, member = divmod(within, pipeline)
    return chunk, group * pipeline + member


def play(
    costs: Sequence[ChunkCost],
    pipeline: int,
    micro_batches: int,
    transfer: float = 0.0,
    extra: int = 0,
    after: Sequence[Sequence[Late]] = (),
) -> Played:
    """One step of a pipeline whose chunk c costs `costs[c]` and lies on rank c % pipeline.

    transfer: seconds from rank to rank, which hold up nobody else. extra: micro-batches of warm-up beyond the
    schedule's. after: of each rank. Raises ConfigError for a step of millions of tasks.
    """
    virtual = len(costs) // pipeline
    if len(costs) * micro_batches * 5 > _MOST_TASKS:
        raise ConfigError(
            f"{len(costs)} chunks and {micro_batches} micro-batches are too many tasks to play one by one"
        )
    ranks = [
        _Rank(rank, costs, list(order(pipeline, virtual, micro_batches, rank, extra)))
        for rank in range(pipeline)
    ]
    arrived: dict[tuple[bool, int, int], float] = {}
    while sum(rank.advance(arrived, transfer if pipeline > 1 else 0.0) for rank in ranks):
        pass
    assert all(rank.next == len(rank.order) for rank in ranks), "the schedule waits for itself"
    for rank, late in zip(ranks, after, strict=False):
        rank.finish(late)
    return Played(pipeline, tuple(task for rank in ranks for task in rank.tasks))


class _Rank:
    """One rank on its way through its tasks."""

    def __init__(
        self, number: int, costs: Sequence[ChunkCost], order: list[tuple[bool, int, int]]
    ) -> None:
        self.number, self.costs, self.order = number, costs, order
        self.next = 0
        self.tasks: list[Task] = []
        self.free: dict[Lane, float] = {"compute": 0.0, "network": 0.0}

    def advance(self, arrived: dict[tuple[bool, int, int], float], transfer: float) -> int:
        """Run whatever has its input, return how many; `arrived`: when a chunk's result can be used."""
        before = self.next
        while self.next < len(self.order):
            forward, chunk, micro_batch = self.order[self.next]
            ready = self._ready(arrived, forward, chunk, micro_batch)
            if ready is None:
                break
            cost = self.costs[chunk]
            name, seconds = ("forward", cost.forward) if forward else ("backward", cost.backward)
            done = self._run("compute", name, chunk, micro_batch, ready, seconds)
            if cost.exchange:
                done = self._run("network", "exchange", chunk, micro_batch, done, cost.exchange)
            if not forward and cost.weights:
                self._run("compute", "weights", chunk, micro_batch, 0.0, cost.weights)
            is_last = chunk == (len(self.costs) - 1 if forward else 0)
            arrived[forward, chunk, micro_batch] = done + (0.0 if is_last else transfer)
            self.next += 1
        return self.next - before

    def finish(self, late: Sequence[Late]) -> None:
        end = max(self.free.values())
        for name, lane, seconds in late:
            end = self._run(lane, name, -1, -1, end, seconds)

    def _ready(
        self,
        arrived: dict[tuple[bool, int, int], float],
        forward: bool,
        chunk: int,
        micro_batch: int,
    ) -> float | None:
        if forward:
            return 0.0 if chunk == 0 else arrived.get((True, chunk - 1, micro_batch))
        if chunk == len(self.costs) - 1:
            return arrived.get((True, chunk, micro_batch))
        return arrived.get((False, chunk + 1, micro_batch))

    def _run(
        self, lane: Lane, name: str, chunk: int, micro_batch: int, ready: float, seconds: float
    ) -> float:
        start = max(ready, self.free[lane])
        self.free[lane] = start + seconds
        self.tasks.append(Task(self.number, lane, name, chunk, micro_batch, start, start + seconds))
        return start + seconds
