"""Renders Jinja templates that nobody vouches for: no side effects, bounded work and output.

jinja2's immutable sandbox forbids reaching Python's internals, but not `"x" * 10 ** 12` nor four
nested loops. So every render has a budget of memory and of time (meter.py). Whatever makes or looks through
texts and lists (loops, operators, comparisons, slices, literals, methods, filters, tests, outputs) pays
for the characters and items before it touches them, and paying looks at the clock. What is free takes
constant time, so that no more than a moment passes between two payments.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from moonlet.chat import meter
from moonlet.chat.meter import check_numbers, deep, factor, is_int, listed, look, size, spend

MAX_SOURCE = 2**20  # characters; published chat templates have a few thousand
MAX_OUTPUT = 2**25  # characters
_MAX_DATE = 100  # characters of a date's format
# Tests that look at the whole value; the others look at its type.
_LOOKING = {
    *("lower", "upper", "in", "==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le"),
    *(">", "gt", "greaterthan", ">=", "ge"),
}


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
        try:
            with meter.budget():
                pieces, length = [], 0
                for piece in self._template.generate(**variables):
                    length += len(piece)
                    if length > MAX_OUTPUT:
                        raise SandboxError(f"its output has more than {MAX_OUTPUT} characters")
                    pieces.append(piece)
                return "".join(pieces)
        except SandboxError:
            raise
        except Exception as error:  # a template may run into any exception of Python
            raise SandboxError(_sentence(error)) from error


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: _paid(function, name) for name, function in self.filters.items()}
        self.filters |= {"tojson": _tojson, "_rounds": meter.rounds, "_toll": meter.toll}
        self.filters |= {"_concat": _concat, "_literal": _output, "_look": look, "_sliced": _sliced}
        looking = {name: _looking(self.tests[name]) for name in _LOOKING}
        self.tests = {name: _tolled(test) for name, test in self.tests.items()} | looking
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and is_int(left) and is_int(right)):
            if not all(isinstance(n, int | float) and abs(n) < 2**63 for n in (left, right)):
                raise SecurityError("a number is too large")
            if operator == "**" and abs(right) > 64:
                raise SecurityError("an exponent is too large")
        elif operator == "%" and isinstance(left, str) and (meter.WIDE.search(left) or "*" in left):
            raise SecurityError("a format is too wide")
        elif operator == "+":
            spend(deep(left) + deep(right))
        elif operator == "%":
            spend(deep(left) * deep(right))
        else:
            spend(factor(left) * factor(right))
        return super().call_binop(context, operator, left, right)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Methods pay for what they may produce; macros and globals pay for their arguments."""
        args, kwargs = tuple(map(listed, args)), {key: listed(kwargs[key]) for key in kwargs}
        values = [*args, *kwargs.values()]
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        subject = getattr(method, "__self__", None)
        if isinstance(subject, str | bytes | list | tuple | dict):
            meter.pay(getattr(method, "__name__", ""), subject, values)
        else:
            check_numbers(values)
            sizes = sum(map(deep, values))  # dict(a=x, b=x) doubles x; `deep` pays for its items
            spend(meter.CALL + (0 if isinstance(__obj, Macro) else sizes))
        return super().call(__context, __obj, *args, **kwargs)


class _Namespace(Namespace):
    """Without a text that would show all it holds, for which nobody has paid."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Metered(NodeTransformer):
    """Rewrites a template so that loops, macros, comparisons, slices, literals and `~` pay."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise SecurityError("recursive loops are not allowed")
        self.generic_visit(node)
        cost = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filter(node.iter, "_rounds", nodes.Const(cost))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        cost = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.body = [nodes.ExprStmt(_filter(nodes.Const(cost), "_toll")), *node.body]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filter(node.expr, "_look")
        for operand in node.ops:
            operand.expr = _filter(operand.expr, "_look")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter(node.node, "_sliced")
        elif not isinstance(node.arg, nodes.Const):
            node.arg = _filter(node.arg, "_look")  # a key is hashed
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


def _sliced(value: Any) -> Any:
    spend(meter.LOOK + size(value))
    return value


def _concat(values: list[Any]) -> str:
    spend(deep(values))
    return "".join(map(str, values))


def _output(value: Any) -> Any:
    spend(deep(value))
    return value


def _paid(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter that pays. `wraps` keeps the mark by which jinja2 passes it its environment."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        subject, *rest = map(listed, args[passed:])
        meter.pay(name, subject, [*rest, *kwargs.values()])
        return function(*args[:passed], subject, *rest, **kwargs)

    return paid


def _tolled(test: Callable[..., bool]) -> Callable[..., bool]:
    @wraps(test)
    def paid(*args: Any) -> bool:
        spend(meter.LOOK)
        return test(*args)

    return paid


def _looking(test: Callable[..., bool]) -> Callable[..., bool]:
    @wraps(test)
    def paid(*args: Any) -> bool:
        return test(*map(look, args))

    return paid


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers gives it to chat templates: no HTML escapes, non-ASCII kept."""
    check_numbers([indent])
    repeated = [factor(option) for option in (indent, separators) if option is not None]
    spend(deep(value) * max([1, *repeated]))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return text


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(style: str) -> str:
    if len(style) > _MAX_DATE:
        raise SecurityError(f"a date's format is longer than {_MAX_DATE} characters")
    return datetime.now().strftime(style)


def _sentence(error: BaseException) -> str:
    """The first line of an error, short and without its final stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
