"""Renders Jinja templates that nobody vouches for: no side effects, bounded work and output.

jinja2's immutable sandbox forbids reaching Python's internals, but not `"x" * 10 ** 12` nor four
nested loops. So every render has a budget of work: loops pay per round; operators, literals, methods,
filters and outputs pay for the characters and items they may produce, before they produce them.
"""

import json
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 2**20  # characters; published chat templates have a few thousand
MAX_OUTPUT = 2**25  # characters
MAX_WORK = 2**28  # characters that may be produced, or their equivalent
_ROUND = 300  # what a round of a loop or looking at an item costs besides, in the same unit
_CALL = 1000  # what a call costs besides
_MAX_NUMBER = 10**4  # as a width or a count; and decimal digits of a product are fewer
_WIDE = re.compile(r"\d{5,}")
# Filters that give back items of a list; any other would turn the list into text.
_ON_LISTS = {
    *("length", "count", "first", "last", "min", "max", "sum", "random", "default", "d", "attr"),
    *("list", "map", "select", "selectattr", "reject", "rejectattr", "sort", "unique", "reverse"),
    *("groupby", "batch", "slice", "dictsort", "items"),
}

_work: ContextVar[list[int]] = ContextVar("work")


class SandboxError(Exception):
    """The template is wrong, forbidden, too expensive, or refuses the conversation."""


class SandboxedTemplate:
    """A compiled template. Raises SandboxError when it cannot be compiled."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise SandboxError(f"it has {len(source)} characters, {MAX_SOURCE} are allowed")
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=_output
        )
        try:
            tree = _Metered().visit(environment.parse(source))
            self._template = environment.from_string(tree)
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise SandboxError(_sentence(error)) from error

    def render(self, **variables: Any) -> str:
        """The output. Raises SandboxError for whatever happens in the template."""
        token = _work.set([MAX_WORK])
        try:
            pieces, size = [], 0
            for piece in self._template.generate(**variables):
                size += len(piece)
                if size > MAX_OUTPUT:
                    raise SandboxError(f"its output has more than {MAX_OUTPUT} characters")
                pieces.append(piece)
            return "".join(pieces)
        except SandboxError:
            raise
        except Exception as error:  # a template may run into any exception of Python
            raise SandboxError(_sentence(error)) from error
        finally:
            _work.reset(token)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: _paid(function, name) for name, function in self.filters.items()}
        self.filters |= {"tojson": _tojson, "_rounds": _rounds, "_concat": _concat}
        self.filters["_literal"] = _output
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and _is_int(left) and _is_int(right)):
            if not all(isinstance(n, int | float) and abs(n) < 2**63 for n in (left, right)):
                raise SecurityError("a number is too large")
            if operator == "**" and abs(right) > 64:
                raise SecurityError("an exponent is too large")
        elif operator == "%" and isinstance(left, str) and (_WIDE.search(left) or "*" in left):
            raise SecurityError("a format is too wide")
        elif operator == "+":
            _spend(_deep(left) + _deep(right))
        else:
            _spend(_deep(left) * _deep(right))
        return super().call_binop(context, operator, left, right)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Methods pay for what they may produce; macros and globals pay a round."""
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        subject = getattr(method, "__self__", None)
        if isinstance(subject, str | bytes | list | tuple | dict):
            _pay(getattr(method, "__name__", ""), subject, [*args, *kwargs.values()])
        else:
            _spend(_CALL)
            _check_numbers([*args, *kwargs.values()])
            for value in [*args, *kwargs.values()]:
                _deep(value)  # dict(a=x, b=x) doubles x; measuring it pays for its items
        return super().call(__context, __obj, *args, **kwargs)


class _Metered(NodeTransformer):
    """Rewrites a template so that loops, macros and `~` pay."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise SecurityError("recursive loops are not allowed")
        self.generic_visit(node)
        cost = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filter(node.iter, "_rounds", nodes.Const(cost + _ROUND))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        cost = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        charge = _filter(nodes.List([nodes.Const("")]), "_rounds", nodes.Const(cost + _ROUND))
        node.body = [nodes.ExprStmt(charge), *node.body]
        return node

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Expr:
        """A literal pays for all it holds, or `[x, x]` repeated would grow without end."""
        self.generic_visit(node)
        stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if stored else _filter(node, "_literal")

    visit_Tuple = visit_Dict = visit_List

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), "_concat")


def _filter(subject: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(subject, name, list(args), [], None, None)


def _spend(amount: int) -> None:
    """Take from the budget. Without one (while compiling) it raises, which stops constant folding."""
    left = _work.get()
    left[0] -= amount
    if left[0] < 0:
        raise SecurityError("it does more work than any chat template needs")


def _rounds(items: Iterable[Any], cost: int) -> list[Any]:
    """The items of a loop as a list, paid for: `cost` for each."""
    rounds = []
    for item in items:
        _spend(max(cost, _ROUND))  # a template may name this filter, too
        rounds.append(item)
    return rounds


def _concat(values: list[Any]) -> str:
    _spend(_deep(values))
    return "".join(map(str, values))


def _output(value: Any) -> Any:
    _spend(_deep(value))
    return value


def _paid(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter that pays. `wraps` keeps the mark by which jinja2 passes it its environment."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        subject, *rest = args[passed:]
        _pay(name, subject, [*rest, *kwargs.values()])
        return function(*args, **kwargs)

    return paid


def _pay(name: str, subject: Any, args: list[Any]) -> None:
    """The most that a method or filter may produce is its subject times its largest argument."""
    if name == "expandtabs" or (name in ("format", "format_map") and _WIDE.search(str(subject))):
        raise SecurityError(f"{name} is too wide")
    _check_numbers(args)
    size = _size(subject) if name in _ON_LISTS else _deep(subject)
    _spend(_ROUND + size * max([1, *map(_deep, args)]))


def _check_numbers(args: list[Any]) -> None:
    if any(_is_int(value) and abs(value) > _MAX_NUMBER for value in args):
        raise SecurityError(f"a number is larger than {_MAX_NUMBER}")


def _size(value: Any) -> int:
    """Characters of a text, items of a list, the value of a number (a width or a count)."""
    if isinstance(value, str | bytes | list | tuple | dict | set):
        return len(value) + 1
    return min(abs(value), MAX_WORK) if _is_int(value) else 16


def _deep(value: Any) -> int:
    """Like `_size` with all that a container holds, paying for each item that it looks at."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, list | tuple | set):
        return _size(value)
    _spend(_ROUND * len(value))
    return sum(map(_deep, value), 2)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers gives it to chat templates: no HTML escapes, non-ASCII kept."""
    _check_numbers([indent])
    _spend(_deep(value) * max(1, indent or 1))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return text


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(style: str) -> str:
    return datetime.now().strftime(style)


def _sentence(error: BaseException) -> str:
    """The first line of an error, short and without its final stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
