"""The latents of earlier prompts and answers, found again by their tokens: in memory, then on disk."""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from moonlet.chat.media import MediaItem
from moonlet.engine.disk import DiskTier
from moonlet.engine.pages import Keys, Node, Pages, child_digest
from moonlet.engine.scheduler import Task
from moonlet.errors import EngineError
from moonlet.model import LatentCache

_REMEMBERED = 100_000  # digests of pages that were given up, to be able to say so

Span = tuple[int, int]


class PrefixCache:
    """Owns the cache and its pages. `disk` gets every page that is full, and keeps it past a restart."""

    def __init__(self, cache: LatentCache, disk: DiskTier | None = None) -> None:
        self.cache = cache
        self.disk = disk
        self.pages = Pages(cache.rows.shape[1], cache.page_size, self._shared, self._evicted)
        self._lost: OrderedDict[bytes, None] = OrderedDict()

    def fill(self, task: Task, keys: Sequence[Keys]) -> None:
        """Continues the task's path with pages from disk, as long as it has them."""
        for i in range(len(task.path), len(keys)):
            parent = task.path[-1] if task.path else self.pages.root
            digest = child_digest(parent.digest, keys[i])
            listed = self.disk is not None and digest in self.disk
            if not self._load(task, keys[i], digest):
                task.lost = task.lost or digest in self._lost
                if self.disk and listed and digest not in self.disk:
                    self._forget_all(self.disk, digest, keys[i + 1 :])
                return
            task.from_disk += self.cache.page_size

    def _forget_all(self, disk: DiskTier, digest: bytes, keys: Sequence[Keys]) -> None:
        """Behind a spoiled page nothing is read, so that nobody would see what else is spoiled: these pages
        are computed now, and written anew."""
        for page_keys in keys:
            digest = child_digest(digest, page_keys)
            disk.forget(digest)

    def close(self) -> None:
        if self.disk:
            self.disk.close()

    def _load(self, task: Task, page_keys: Keys, digest: bytes) -> bool:
        if self.disk is None or digest not in self.disk:
            return False
        rows = self.cache.rows[:, 0]
        data = self.disk.get(digest, rows.numel() * rows.element_size())
        if data is None or (pages := self.pages.take(1)) is None:
            return False
        stored = torch.frombuffer(bytearray(data), dtype=rows.dtype).view(rows.shape)
        self.cache.rows[:, pages[0]] = stored
        self.pages.share(task.path, page_keys, pages[0])
        return True

    def _shared(self, node: Node) -> None:
        self._lost.pop(node.digest, None)
        if self.disk and node.digest not in self.disk:
            rows = self.cache.rows[:, node.page].contiguous()
            self.disk.put(node.digest, rows.view(torch.uint8).numpy())

    def _evicted(self, node: Node) -> None:
        self._lost[node.digest] = None
        if len(self._lost) > _REMEMBERED:
            self._lost.popitem(last=False)


def spans_of(token_ids: Sequence[int], media: Sequence[MediaItem], placeholder: int) -> list[Span]:
    """Where the placeholders of each item begin and end, in order.

    Raises EngineError when the prompt does not hold exactly those of the items, each in one row.
    """
    places = [at for at, token in enumerate(token_ids) if token == placeholder] if media else []
    spans, first = [], 0
    for item in media:
        last = first + item.num_tokens - 1
        if last < len(places) and places[last] - places[first] == last - first:
            spans.append((places[first], places[last] + 1))
        first = last + 1
    if len(spans) < len(media) or first != len(places):
        wanted = sum(item.num_tokens for item in media)
        raise EngineError(
            f"the prompt has {len(places)} placeholders, but its {len(media)} images need {wanted}, "
            "those of each in a row"
        )
    return spans


def keys_of(
    token_ids: Sequence[int], media: Sequence[MediaItem], spans: Sequence[Span]
) -> list[int]:
    """What names each position for the tree: its token, or in an item its content and the place in it.

    A token id is below 2^32, a place in an item above: no prompt without the same picture has such keys.
    """
    keys = list(token_ids)
    for item, (begin, end) in zip(media, spans, strict=True):
        first = int.from_bytes(item.digest[:7], "little") << 8 | 1 << 63
        for i in range(begin, end):
            keys[i] = first if i == begin else (first + i - begin) % 2**64
    return keys
