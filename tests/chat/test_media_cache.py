"""The cache of decoded media: bounded in bytes, the least recently used goes first."""

import numpy as np

from moonlet.chat.media import MediaItem
from moonlet.chat.media_cache import MediaCache, _num_bytes


def item(patches: int) -> MediaItem:
    return MediaItem(np.zeros((patches, 3, 14, 14), np.uint8), (1, 2, patches // 2))


def test_the_least_recently_used_goes_first() -> None:
    cache = MediaCache(3 * _num_bytes(item(4)) - 1)
    items = {name: item(4) for name in ("a", "b", "c")}
    cache.put(("image", b"a"), items["a"])
    cache.put(("image", b"b"), items["b"])
    assert cache.get(("image", b"a")) is items["a"]
    cache.put(("image", b"c"), items["c"])
    assert cache.get(("image", b"b")) is None
    assert cache.get(("image", b"a")) is items["a"]
    assert cache.get(("image", b"c")) is items["c"]


def test_what_is_larger_than_the_cache_does_not_empty_it() -> None:
    cache = MediaCache(_num_bytes(item(10)))
    cache.put(("image", b"a"), item(10))
    cache.put(("video", b"b"), [("00:00:00.000", item(6)), ("00:00:02.000", item(6))])
    assert cache.get(("image", b"a")) is not None
    assert cache.get(("video", b"b")) is None


def test_many_of_them() -> None:
    cache = MediaCache(100 * 588)
    for number in range(1000):
        cache.put(("image", bytes([number % 50])), item(2 + number % 7 * 2))
    assert cache._bytes == sum(map(_num_bytes, cache._entries.values()))
    assert cache._bytes <= 100 * 588
