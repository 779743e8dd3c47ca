"""Which requests run, and on which tokens: continuous batching with chunked prefill.

    waiting --admit--> prefill --last token computed--> decode --end--> over
       ^                  |                                |
       +---- preempt -----+--------------------------------+

| state   | pages of the request                                                                 |
| ------- | ------------------------------------------------------------------------------------ |
| waiting | none                                                                                 |
| prefill | a held path of the tree that begins its tokens, own pages for all other tokens       |
| decode  | the same; one more own page each time that the last one is full                      |
| over    | none: full pages went to the tree, the rest is free                                  |

A preempted request keeps its tokens and its sampler; its full pages are in the tree, so that it goes on
where it was unless they were evicted meanwhile. Nothing here knows the model: `plan` says what the next
step computes, `computed` and `append` tell what came of it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moonlet.engine.pages import Keys, Node, Pages

State = Literal["waiting", "prefill", "decode", "over"]


@dataclass(eq=False)
class Task:
    """One answer in the making. `keys` name its tokens for the tree: the ids, or what an image holds there.

    uncut: spans of tokens (begin, end) that have to be computed in one step. after: the task whose prompt
    must be in the tree before this one is admitted, because both share it.
    """

    tokens: list[int]
    keys: list[int]
    uncut: Sequence[tuple[int, int]] = ()
    after: "Task | None" = None
    data: Any = None  # what the engine keeps with it
    order: int = 0  # of arrival
    state: State = "waiting"
    done: int = 0  # tokens whose latents are in the pages
    path: list[Node] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    reused: int = 0  # tokens that needed no computing when it was first admitted
    from_disk: int = 0  # of these, read from disk
    lost: bool = False  # whether the next page had been there, but was evicted
    differs_at: int | None = None  # its first token that is not as in others that began the same
    admitted: bool = False

    @property
    def pages(self) -> list[int]:
        """Of all its tokens, in order."""
        return [node.page for node in self.path] + self.own

    def append(self, token: int) -> None:
        """The token that was drawn after all others."""
        self.tokens.append(token)
        self.keys.append(token)


@dataclass(frozen=True)
class Plan:
    """The next step: one token for every task of `decode`, and tokens begin..end of one other."""

    decode: list[Task]
    prefill: Task | None = None
    begin: int = 0
    end: int = 0


class Scheduler:
    """Admits in the order of arrival; those that prefill take turns, a chunk each.

    fill: called with a task that was just admitted and its keys by page; it may extend `task.path` with pages
    from elsewhere (the disk).
    """

    def __init__(
        self, pages: Pages, fill: Callable[[Task, list[Keys]], None] = lambda task, keys: None
    ) -> None:
        self.pages = pages
        self.waiting: deque[Task] = deque()
        self.prefilling: deque[Task] = deque()
        self.decoding: list[Task] = []  # oldest first
        self.preemptions = 0
        self._arrivals = 0
        self._fill = fill

    @property
    def running(self) -> list[Task]:
        return [*self.decoding, *self.prefilling]

    def add(self, task: Task) -> None:
        self._arrivals += 1
        task.order = self._arrivals
        self.waiting.append(task)

    def plan(self, chunk: int) -> Plan | None:
        """What the next step computes, with room for it; None when there is nothing to do.

        `chunk` is the most tokens of a prompt in one step, except where more must not be cut.
        """
        self._admit()
        decode = self._with_room()
        if not self.prefilling:
            return Plan(decode) if decode else None
        task = self.prefilling[0]
        self.prefilling.rotate(-1)
        return Plan(decode, task, task.done, self._end_of_chunk(task, chunk))

    def computed(self, task: Task, end: int) -> None:
        """The latents of its tokens before `end` are in its pages."""
        task.done = end
        if task.state == "prefill" and end == len(task.tokens):
            self.prefilling.remove(task)
            self.decoding.append(task)
            task.state = "decode"
            self._share(task)  # others with the same prompt need not wait for the answer

    def end(self, task: Task) -> None:
        """Takes the task out, whatever its state, and its pages with it."""
        self._leave(task)
        task.state = "over"

    def _admit(self) -> None:
        held_back: list[Task] = []
        while self.waiting:
            task = self.waiting[0]
            if task.after is not None and task.after.state in ("waiting", "prefill"):
                held_back.append(self.waiting.popleft())
                continue
            if not self._give_pages(task):
                break
            self.waiting.popleft()
            task.state = "prefill"
            self.prefilling.append(task)
        self.waiting.extendleft(reversed(held_back))

    def _give_pages(self, task: Task) -> bool:
        """Its path and own pages for all its tokens, leaving a page for each that decodes."""
        size = self.pages.page_size
        # One token is always computed: its logits are wanted, and they are not in the tree.
        whole = self._uncut_before(task, (len(task.tokens) - 1) // size * size) // size
        keys = [tuple(task.keys[i * size : (i + 1) * size]) for i in range(whole)]
        task.path = self.pages.match(keys)
        self.pages.hold(task.path)
        self._fill(task, keys)
        # The disk may hold a page that ends inside an image while the next is lost.
        self._shorten(task, self._uncut_before(task, len(task.path) * size) // size)
        needed = -(-len(task.tokens) // size) - len(task.path)
        spare = len(self.decoding) if self.running else 0
        own = self.pages.take(needed) if needed + spare <= self.pages.available else None
        if own is None:
            self.pages.drop(task.path)
            task.path = []
            return False
        task.own = own
        task.done = len(task.path) * size
        if not task.admitted:
            task.admitted, task.reused = True, task.done
            task.differs_at = self._differs_at(task)
        return True

    def _differs_at(self, task: Task) -> int | None:
        """Where others went on in another way; None if nobody did, or the task ends before that."""
        rest = task.keys[task.done : task.done + self.pages.page_size]
        others = (task.path[-1] if task.path else self.pages.root).children
        same = max((_common(rest, keys) for keys in others), default=len(rest))
        # One special token at the beginning of a prompt says nothing of the part that it opens.
        if same == len(rest) or task.done + same < 2:
            return None
        return task.done + same

    def _shorten(self, task: Task, length: int) -> None:
        self.pages.drop(task.path[length:])
        del task.path[length:]

    def _uncut_before(self, task: Task, end: int) -> int:
        """The largest page border up to `end` that no span lies across."""
        size = self.pages.page_size
        for begin, stop in reversed(task.uncut):
            if begin < end < stop:
                end = begin // size * size
        return end

    def _end_of_chunk(self, task: Task, chunk: int) -> int:
        end = min(task.done + chunk, len(task.tokens))
        for begin, stop in task.uncut:
            if begin < end < stop:
                return begin if begin > task.done else stop
        return end

    def _with_room(self) -> list[Task]:
        """Those that decode, each with a page for its next token; the youngest make room when pages end."""
        for task in list(self.decoding):
            while task.state == "decode" and len(task.tokens) > self._room(task):
                if (page := self.pages.take(1)) is not None:
                    task.own += page
                else:
                    self._preempt(max(self.running, key=lambda other: other.order))
        return list(self.decoding)

    def spare_room(self, task: Task, wanted: int) -> int:
        """How many of `wanted` tokens have a place behind its own ones; nobody is preempted for them."""
        size = self.pages.page_size
        missing = -(-(len(task.tokens) + wanted - self._room(task)) // size)
        if missing > 0 and (pages := self.pages.take(missing)) is not None:
            task.own += pages
        return min(wanted, self._room(task) - len(task.tokens))

    def _room(self, task: Task) -> int:
        return (len(task.path) + len(task.own)) * self.pages.page_size

    def _preempt(self, task: Task) -> None:
        self._leave(task)
        task.state = "waiting"
        self.waiting.appendleft(task)
        self.preemptions += 1

    def _leave(self, task: Task) -> None:
        match task.state:
            case "waiting":
                self.waiting.remove(task)
            case "prefill":
                self.prefilling.remove(task)
            case "decode":
                self.decoding.remove(task)
        self._share(task)
        self.pages.give(task.own)
        self.pages.drop(task.path)
        task.own, task.path, task.done = [], [], 0

    def _share(self, task: Task) -> None:
        """Its full pages go to the tree; it goes on reading them there."""
        size = self.pages.page_size
        while task.own and (len(task.path) + 1) * size <= task.done:
            begin = len(task.path) * size
            self.pages.share(task.path, tuple(task.keys[begin : begin + size]), task.own.pop(0))


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many of the first of `some` are the same in `others`."""
    pairs = enumerate(zip(some, others, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(some), len(others)))
