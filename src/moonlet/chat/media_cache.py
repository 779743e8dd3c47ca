"""What was made of the latest pictures and videos, so that each is decoded once and not at every turn."""

import threading
from collections import OrderedDict

from moonlet.chat.media import Opened, items_of

CACHE_BYTES = 256 * 2**20

_ITEM_BYTES = 1024  # what an item takes beside its pixels, so that many tiny ones count too

Key = tuple[str, bytes]  # "image" or "video", digest of the file


class MediaCache:
    """Up to `most_bytes` of patches; the least recently used go first.

    Values are shared by everybody who asks and never changed. Safe for threads. One cache serves one model,
    whose limits the patches follow.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: OrderedDict[Key, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Opened | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Key, opened: Opened) -> None:
        """Keeps `opened`, unless it alone is more than the cache may hold."""
        size = _num_bytes(opened)
        with self._lock:
            if key in self._entries or size > self._most_bytes:
                return
            self._entries[key] = opened
            self._bytes += size
            while self._bytes > self._most_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= _num_bytes(oldest)


def _num_bytes(opened: Opened) -> int:
    return sum(_ITEM_BYTES + item.values.nbytes for item in items_of(opened))
