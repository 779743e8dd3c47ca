"""What a template may spend: a budget of memory, in characters, and one of processor time.

Operations pay before they run, by the size of what they are given, and each payment looks at the
clock. `spend` outside a budget (while jinja2 compiles) raises, which stops constant folding.
"""

import re
import time
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext

MAX_WORK = 2**27  # characters that may be produced, or their equivalent
MAX_SECONDS = 2.0  # of the thread's own processor time, so that a busy machine changes nothing
MAX_NUMBER = 10**4  # as a width or a count; and decimal digits of a product are fewer
ROUND = 300  # what a round of a loop or looking at an item costs besides, in characters
CALL = 1000  # what a call costs besides
LOOK = 50  # what a comparison, a test or a slice costs besides
WIDE = re.compile(r"\{[^{}]*\d{3}|%(?:\([^()%]*\))?[-+ #\d.]*\d{3}")  # widths of formats

# Filters that give back items of a list; any other would turn the list into text.
_ON_LISTS = {
    *("length", "count", "first", "last", "min", "max", "sum", "random", "default", "d", "attr"),
    *("list", "map", "select", "selectattr", "reject", "rejectattr", "sort", "unique", "reverse"),
    *("groupby", "batch", "slice", "dictsort", "items"),
}
# Filters and methods whose time or output has little to do with the size of what they are given.
_FORBIDDEN = {"expandtabs", "striptags", "urlize", "wordwrap", "pprint", "xmlattr"}
_SPLITTING = {"split", "rsplit", "splitlines", "list"}
_View = KeysView | ValuesView | ItemsView
_PIECE = 16  # a piece of a text takes more memory than its characters


@dataclass
class _Budget:
    left: int
    deadline: float


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def budget() -> Iterator[None]:
    """A fresh budget for everything inside."""
    token = _budget.set(_Budget(MAX_WORK, time.thread_time() + MAX_SECONDS))
    try:
        yield
    finally:
        _budget.reset(token)


def spend(amount: int) -> None:
    """Take from the budget. Raises SecurityError when it or the time is used up."""
    current = _budget.get()
    current.left -= amount
    if current.left < 0 or time.thread_time() > current.deadline:
        raise SecurityError("it does more work than any chat template needs")


def pay(name: str, subject: Any, args: list[Any]) -> None:
    """The most that a method or filter may produce is its subject times its largest argument."""
    if name in _FORBIDDEN:
        raise SecurityError(f"{name} is not allowed")
    if name in ("format", "format_map") and WIDE.search(str(subject)):
        raise SecurityError(f"{name} is too wide")
    check_numbers(args)
    cost = size(subject) if name in _ON_LISTS else deep(subject)
    if name in _SPLITTING and isinstance(subject, str):
        cost *= _PIECE
    spend(ROUND + cost * max([1, *map(factor, args)]))


def check_numbers(args: list[Any]) -> None:
    if any(is_int(value) and abs(value) > MAX_NUMBER for value in args):
        raise SecurityError(f"a number is larger than {MAX_NUMBER}")


def listed(value: Any) -> Any:
    """Ranges and iterators as lists, so that their size is known; each item pays."""
    lazy = isinstance(value, Iterator | range) and not isinstance(value, LoopContext)
    return list(rounds(value)) if lazy else value


def rounds(items: Any, cost: int = 0) -> Iterator[Any]:
    """The items one by one, each paid for when its turn comes."""
    for item in items:
        toll(cost)
        yield item


def toll(cost: int) -> None:
    """Pay for a round that writes `cost` characters."""
    spend(ROUND + max(cost, 0))  # a template may name this as a filter, too


def look(value: Any) -> Any:
    """`value`, paid for as something that is looked through."""
    spend(LOOK + deep(value))
    return value


def factor(value: Any) -> int:
    """How much larger an operation can become by it: a number may be a width or a count."""
    return min(abs(value), MAX_WORK) if is_int(value) else deep(value)


def size(value: Any) -> int:
    """Characters of a text, items of a list, digits of a number (roughly)."""
    if isinstance(value, str | bytes | list | tuple | dict | set | _View):
        return len(value) + 1
    return 16 + value.bit_length() // 3 if isinstance(value, int) else 16


def deep(value: Any) -> int:
    """Like `size` with all that a container holds, paying for each item that it looks at."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, list | tuple | set | _View):
        return size(value)
    spend(ROUND * len(value))
    return sum(map(deep, value), 2)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
