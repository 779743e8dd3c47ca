"""Which page of the latent cache belongs to whom.

A page holds the latents of `page_size` positions in all layers. It is in exactly one of three places:

| place                 | read by                                  | written by   | leaves it when |
| --------------------- | ---------------------------------------- | ------------ | -------------- |
| the free list         | nobody                                   | nobody       | `take` gives it to a request |
| a request's own pages | that request                             | that request | `share` puts it, full, into the tree; `give` frees it |
| the tree              | every request that holds a path to it    | nobody       | `take` needs it, nobody holds it and nothing hangs below it; the least recently used goes first |

The tree is over token ids, a page of them to a node: requests whose prompts begin with the same tokens
read the same pages. A request holds one path from the root, its first pages; what follows is its own.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

Keys = tuple[int, ...]  # of one page: token ids, or what stands for a piece of an image


class Node:
    """A full page in the tree. `digest` names it and everything before it."""

    __slots__ = ("children", "digest", "held", "keys", "page", "parent", "used")

    def __init__(self, parent: "Node | None", keys: Keys, page: int, digest: bytes) -> None:
        self.parent, self.keys, self.page, self.digest = parent, keys, page, digest
        self.children: dict[Keys, Node] = {}
        self.held = 0  # paths of requests that go through it
        self.used = 0


def child_digest(digest: bytes, keys: Keys) -> bytes:
    """What names a page: the tokens in it and all before it."""
    return sha256(digest + b"".join(key.to_bytes(8, "little") for key in keys)).digest()


class Pages:
    """`count` pages. Called are `on_share` with a node that is new in the tree, and `on_evict` with one whose
    page is about to hold something else."""

    def __init__(
        self,
        count: int,
        page_size: int,
        on_share: Callable[[Node], None] = lambda node: None,
        on_evict: Callable[[Node], None] = lambda node: None,
    ) -> None:
        self.count, self.page_size = count, page_size
        self.root = Node(None, (), -1, b"")
        self.evictions = 0
        self._free = list(range(count - 1, -1, -1))
        self._on_share, self._on_evict = on_share, on_evict
        self._clock = itertools.count(1)
        # Nodes that may be evicted, oldest first; an entry is stale when its node was used since.
        self._idle: list[tuple[int, int, Node]] = []
        self._idle_count = 0

    @property
    def available(self) -> int:
        """Pages that `take` could give: the free ones and all that nobody holds."""
        return len(self._free) + self._idle_count

    @property
    def shared(self) -> int:
        """Pages in the tree."""
        return sum(1 for _ in self._nodes())

    def match(self, keys: Sequence[Keys]) -> list[Node]:
        """The longest path whose pages hold the first of `keys`."""
        path, node = [], self.root
        for page_keys in keys:
            if (child := node.children.get(page_keys)) is None:
                break
            path.append(child)
            node = child
        return path

    def hold(self, path: Sequence[Node]) -> None:
        """The nodes of a path have one reader more."""
        for node in path:
            self._idle_count -= node.held == 0
            node.held += 1

    def drop(self, path: Sequence[Node]) -> None:
        """The reader of a path is gone."""
        now = next(self._clock)
        for node in path:
            node.held -= 1
            self._idle_count += node.held == 0
            node.used = now
        if path:
            self._offer(path[-1])

    def take(self, count: int) -> list[int] | None:
        """Pages to write on, or None when there are not so many; nothing has changed then."""
        if count > self.available:
            return None
        while len(self._free) < count:
            self._evict()
        return [self._free.pop() for _ in range(count)]

    def give(self, pages: Iterable[int]) -> None:
        """A request's own pages are free again."""
        self._free.extend(pages)

    def share(self, path: list[Node], keys: Keys, page: int) -> Node:
        """A request's own page becomes the next node of the path that it holds.

        When the tree has a page with the same tokens there already, that one is taken and `page` is free.
        """
        parent = path[-1] if path else self.root
        node = parent.children.get(keys)
        if node is None:
            node = Node(parent, keys, page, child_digest(parent.digest, keys))
            parent.children[keys] = node
            self._idle_count += 1
            self._on_share(node)
        else:
            self.give([page])
        self.hold([node])
        path.append(node)
        return node

    def _offer(self, node: Node) -> None:
        if node is not self.root and node.held == 0 and not node.children:
            heapq.heappush(self._idle, (node.used, node.page, node))

    def _evict(self) -> None:
        """The least recently used node that nobody holds and nothing hangs below becomes a free page."""
        while True:
            used, _, node = heapq.heappop(self._idle)
            if node.held or node.children or node.used != used or node.page < 0:
                continue
            self._on_evict(node)
            parent = node.parent
            assert parent is not None
            del parent.children[node.keys]
            self._free.append(node.page)
            node.page = -1
            self._idle_count -= 1
            self.evictions += 1
            self._offer(parent)
            return

    def _nodes(self) -> Iterable[Node]:
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()

    def check(self, owned: Iterable[Sequence[int]], paths: Iterable[Sequence[Node]]) -> None:
        """Raises AssertionError unless every page is in exactly one place and every count is right."""
        nodes = list(self._nodes())
        everything = [*self._free, *(node.page for node in nodes), *itertools.chain(*owned)]
        assert sorted(everything) == list(range(self.count)), "a page is lost or has two owners"
        held = [id(node) for path in paths for node in path]
        for node in nodes:
            assert node.held == held.count(id(node)), "a node's readers are miscounted"
            assert node.parent is not None
            assert node.parent is self.root or node.held <= node.parent.held, "a path has a hole"
        assert self._idle_count == sum(node.held == 0 for node in nodes), (
            "idle pages are miscounted"
        )
