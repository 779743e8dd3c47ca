"""Responses that may be asked for again, or be gone on from by `previous_response_id`.

In memory and bounded, so what is kept is a convenience of this process: the oldest go first, and all go
with the server. A response holds its own items only and the name of the one before it, so that a long
conversation takes its length once.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from moonlet.server.errors import ApiError
from moonlet.server.responses_items import Item

_NODE_BYTES = 64  # what a small Python object takes, roughly


@dataclass(frozen=True)
class StoreLimits:
    """How much is kept. `bytes_each` is of one response with its input, `bytes_total` of all."""

    count: int = 4096
    bytes_each: int = 64 * 2**20
    bytes_total: int = 256 * 2**20


@dataclass(frozen=True)
class _Kept:
    response: dict[str, Any]
    items: list[Item]  # of the request
    previous: str | None
    size: int


class ResponseStore:
    """Not for threads: the event loop alone reads and writes it."""

    def __init__(self, limits: StoreLimits = StoreLimits()) -> None:
        self.limits = limits
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the last used is the last
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, response: dict[str, Any], items: list[Item]) -> None:
        """Keeps a finished response and the items that asked for it, unless they are too large."""
        size = weigh([response, items], self.limits.bytes_each)
        if size > self.limits.bytes_each:
            return
        previous = response.get("previous_response_id")
        self._kept[response["id"]] = _Kept(response, items, previous, size)
        self._size += size
        while self._size > self.limits.bytes_total or len(self._kept) > self.limits.count:
            self._size -= self._kept.popitem(last=False)[1].size

    def get(self, response_id: str) -> dict[str, Any]:
        """The response object. Raises ApiError (404)."""
        return self._find(response_id, "response_id", 404).response

    def delete(self, response_id: str) -> None:
        """Raises ApiError (404) for one that is not kept."""
        kept = self._find(response_id, "response_id", 404)
        del self._kept[response_id]
        self._size -= kept.size

    def history(self, previous: str | None) -> list[Item]:
        """All items up to and with the answer `previous`, from the first. Raises ApiError (400)."""
        turns = []
        while previous is not None:
            kept = self._find(previous, "previous_response_id", 400)
            turns.append(kept)
            previous = kept.previous
        return [
            item for kept in reversed(turns) for item in (*kept.items, *kept.response["output"])
        ]

    def _find(self, response_id: str, param: str, status: int) -> _Kept:
        kept = self._kept.get(response_id)
        if kept is None:
            raise ApiError(
                f"there is no response {response_id[:80]!r} here: it was never stored, is too old or "
                "too large, or the server was restarted; send the whole conversation as input",
                param,
                status=status,
                kind="invalid_request_error" if status == 400 else "resource_not_found_error",
                code="previous_response_not_found" if status == 400 else None,
            )
        self._kept.move_to_end(response_id)
        return kept


def weigh(value: Any, most: int) -> int:
    """About the bytes of memory that a JSON value takes; it stops counting above `most`."""
    size, waiting = 0, [value]
    while waiting and size <= most:
        item = waiting.pop()
        size += _NODE_BYTES
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return size
