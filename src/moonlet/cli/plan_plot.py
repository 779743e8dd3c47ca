"""`moonlet plan --plot FILE`: where memory goes, how speed falls with the context, and what use costs, in one picture.

The picture is drawn in memory, written beside FILE and renamed, so that FILE is whole or as it was. No display
is needed.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moonlet.cli.console import UsageError, printable
from moonlet.plan.answer import Answer, Estimate, Question, answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")
FIRST_CONTEXT = 1024  # tokens, where the curves begin
POINTS = 33  # of a curve
_PARTS = {  # of memory, and how each is filled
    "routed experts": "#4477aa",
    "other weights": "#66ccee",
    "copies of weights": "#aa3377",
    "cache": "#ccbb44",
    "buffers": "#bbbbbb",
}
_TIERS = {"vram": "GPUs", "ram": "memory", "disk": "disk"}


def draw(
    path: Path, question: Question, answers: Sequence[Answer], document: dict[str, Any]
) -> None:
    """Writes the picture of `document` and its `answers`; without a known cost it has two panels.

    Raises UsageError for another suffix, a place that cannot be written, a plan in which nothing fits, and where
    matplotlib is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {str(path)!r:.80}: its name must end in {', '.join(SUFFIXES)}")
    fitting = [one for one in answers if one.fits]
    if not fitting:
        raise UsageError("nothing fits, so that --plot has nothing to draw")
    _write(path, _picture(path.suffix.lower(), question, fitting, document))


def _write(path: Path, picture: bytes) -> None:
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        with open(handle, "wb") as file:
            file.write(picture)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(handle, 0o666 & ~umask)  # as of any other file: mkstemp makes private ones
        os.replace(name, path)
    except (OSError, ValueError) as error:
        if name is not None:
            with suppress(OSError):
                os.unlink(name)
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--plot {str(path)!r:.80} cannot be written: {reason}") from error


def _picture(
    suffix: str, question: Question, fitting: Sequence[Answer], document: dict[str, Any]
) -> bytes:
    # It warns of a home that it cannot write into, and then does without.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            f"--plot needs {error.name}, which draws: pip install 'moonlet[plot]'"
        ) from error
    cost: dict[str, Any] = document["cost"] or {"problem": "nothing fits"}
    is_known = "problem" not in cost
    # What names hold is text: a dollar or a backslash in them is no formula.
    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "moonlet", "font.size": 9}):
        panels = 3 if is_known else 2
        figure = Figure(figsize=(5.2 * panels, 4.6), layout="constrained")
        axes = figure.subplots(1, panels)
        name = document["published_as"] or document["model"]
        figure.suptitle(
            printable(f"{name} on {document['machine']['name']}").replace("\n", " ")[:160]
        )
        _memory(axes[0], [plan for plan in document["plans"] if plan["fits"]])
        _speed(axes[1], question, fitting)
        if is_known:
            _cost(axes[2], cost)
        made = BytesIO()
        stamp = (
            {"Date": None}
            if suffix == ".svg"
            else {"CreationDate": None}
            if suffix == ".pdf"
            else {}
        )
        figure.savefig(
            made, format=suffix[1:], dpi=120, metadata=stamp
        )  # the same plan, the same bytes
    return made.getvalue()


def _memory(axes: "Axes", plans: list[dict[str, Any]]) -> None:
    """Of each engine one bar for each tier: what lies there, in the outline of what could."""
    labels, shown = [], set()
    for plan in plans:
        for tier, found in plan["memory"].items():
            at, low = len(labels), 0.0
            for part, color in _PARTS.items():
                high = found["parts"].get(part, 0.0) / 1e9
                if high > 0:
                    label = None if part in shown else part
                    axes.bar(at, high, 0.7, low, color=color, label=label)
                    shown.add(part)
                low += high
            axes.bar(at, found["capacity"] / 1e9, 0.8, fill=False, edgecolor="black", linewidth=1)
            labels.append(f"{plan['engine']}\n{_TIERS[tier]}")
    axes.set_xticks(range(len(labels)), labels, rotation=60 if len(labels) > 4 else 0)
    axes.set_ylabel("GB (outline: capacity)")
    axes.set_title("memory by tier")
    axes.legend(loc="upper center", ncols=2)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)  # room for the legend


def _speed(axes: "Axes", question: Question, fitting: Sequence[Answer]) -> None:
    """Of each engine a stream's speed, and where nine of ten measurements should lie, as far as it fits."""
    for number, one in enumerate(fitting):
        curve = list(speed_over_context(one))
        contexts = [context for context, _ in curve]
        color = f"C{number}"
        axes.plot(
            contexts, [each.value for _, each in curve], color=color, label=_name(one),
            marker="o" if len(curve) == 1 else None,
        )  # fmt: skip
        low, high = [each.low for _, each in curve], [each.high for _, each in curve]
        axes.fill_between(contexts, low, high, color=color, alpha=0.12, linewidth=0)
    axes.axvline(question.context, color="black", linewidth=0.6, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k")
    _logarithmic(axes, "y", lambda value, _: f"{value:,g}")
    axes.set_xlabel("tokens of context behind it (dotted: as asked)")
    axes.set_ylabel("tokens/s of one stream")
    axes.set_title("speed over context, 90 % band")
    axes.legend(loc="lower left", framealpha=0.8)


def speed_over_context(plan: Answer) -> Iterator[tuple[int, Estimate]]:
    """Contexts up to the model's, and a stream's speed with so many tokens behind it, as far as they fit.

    Each context is placed anew: a longer cache pushes experts out of faster memory.
    """
    longest = plan.question.config.max_position_embeddings
    first = min(FIRST_CONTEXT, longest)
    steps = (longest / first) ** (1 / (POINTS - 1))
    for context in dict.fromkeys(round(first * steps**point) for point in range(POINTS)):
        question = replace(plan.question, context=context, prompt=context, answer=0, streams=1)
        each = answer(question, plan.engine).each_tok_s
        if each is None:
            return
        yield context, each


def _cost(axes: "Axes", cost: dict[str, Any]) -> None:
    """Dollars a day over tokens a day: the machine up to what it can serve, APIs without an end."""
    most = cost["most_per_day"]
    meets = [api["tokens_per_day"] for api in cost["apis"] if api["pays"]]
    right = 1.6 * max(most, *meets) if meets else 1.6 * most
    left = min([most, *meets]) / 100
    uses = [left * (right / left) ** (step / 100) for step in range(101)]
    own = [use for use in uses if use < most] + [most]
    axes.plot(own, [own_usd(cost, use) for use in own], color="black", label="this machine")
    axes.axvline(most, color="black", linewidth=0.6, linestyle=":")
    axes.text(
        most, 0.02, f"its most, {_tokens(most)} ", rotation=90, ha="right", va="bottom",
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    for number, api in enumerate(cost["apis"]):
        price, color = api["usd_per_million"] / 1e6, f"C{number}"
        axes.plot(uses, [use * price for use in uses], color=color, label=printable(api["api"]))
        if api["pays"]:
            even = api["tokens_per_day"]
            axes.plot([even], [even * price], "o", color=color)
            axes.annotate(
                f"break-even,\n{_tokens(even)}", (even, even * price), (-4, 6),
                textcoords="offset points", ha="right",
            )  # fmt: skip
    _logarithmic(axes, "x", lambda value, _: _tokens(value), (1.0,))
    _logarithmic(axes, "y", lambda value, _: f"${value:,g}")
    axes.set_ylim(top=axes.get_ylim()[1] * 4)  # room for the legend
    prompt = 1 - cost["mix"]["output"]
    axes.set_xlabel(f"tokens a day, {prompt:.0%} of them prompt")
    axes.set_ylabel("US dollars a day")
    axes.set_title("cost over use")
    axes.legend(loc="upper left")


def own_usd(cost: dict[str, Any], tokens: float) -> float:
    """What a day costs in which this machine serves so many tokens."""
    fixed = cost["hardware_usd_per_day"] + cost["idle_usd_per_day"]
    return fixed + tokens / 1e6 * cost["usd_per_million_more"]


def _logarithmic(
    axes: "Axes", which: Literal["x", "y"], said: Any, marks: Sequence[float] = (1.0, 2.0, 5.0)
) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=marks))
    axis.set_major_formatter(said)
    axis.set_minor_formatter(NullFormatter())


def _name(plan: Answer) -> str:
    return printable(f"{plan.engine.name}, {plan.weights.label[:24]}").replace("\n", " ")


def _tokens(count: float) -> str:
    for scale, unit in ((1e9, " billion"), (1e6, " million")):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:,.0f}"
