"""`moonlet plan` for people: first whether it fits and how fast, then by engine, then of the best why, and how to start it.

Sentences are wrapped on a terminal and whole in a pipe; commands are never wrapped, so that they can be copied.
"""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moonlet.cli.console import printable
from moonlet.cli.inspect import size

_ABOUT = " (about)"  # how a quantization is marked of which only the size is known
_STEP = {
    "rest": "attention and other weights",
    "cache": "reading the cache",
    "layers": "starting layers",
    "links": "links between GPUs",
    "crossing": "going to the processor and back",
    "experts in VRAM": "experts in the GPUs",
    "experts in RAM": "experts in memory",
}
_UPGRADES = 3


def print_plan(document: dict[str, Any]) -> None:
    """The tables of a document of `plan_document`."""
    _Report(document).show()


class _Report:
    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.console = Console(highlight=False)
        self.model = document["published_as"] or document["model"]
        self.unified = any(one["unified"] for one in document["machine"]["accelerators"])
        self.fitting = [plan for plan in document["plans"] if plan["fits"]]
        self.refused = [plan for plan in document["plans"] if not plan["fits"]]

    def show(self) -> None:
        if self.fitting:
            self._verdict(self.fitting[0])
            self.console.print(self._engines())
        else:
            self._refusal()
        if self.refused:
            self._say(f"Does not run: {'; '.join(_reasons(self.refused))}.")
        if self.fitting:
            self._best(self.fitting[0])
            self._cost()
            self._start(self.fitting[0]["start"])
        self._notes()

    def _say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, soft_wrap=not self.console.is_terminal)

    def _verdict(self, best: dict[str, Any]) -> None:
        request = self.document["request"]
        self._say(f"{self.model} fits on {self.document['machine']['name']}{_from_disk(best)}.")
        streams = f"{request['streams']} streams of " if request["streams"] > 1 else ""
        self._say(
            f"Best: {best['engine']} with {_kind(best)} weights ({_size(best['bytes'])}), "
            f"{_pair(best['each_tok_s'])} tokens/s, the first after {_seconds(best['first_token_s'])}; "
            f"room for {streams}{request['context']:,} tokens."
        )

    def _engines(self) -> Table:
        request = self.document["request"]
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("engine", no_wrap=True)
        table.add_column("weights", min_width=11, max_width=20, overflow="fold")
        many = ("all streams",) if request["streams"] > 1 else ()
        for column in ("size", "first token", "tokens/s", *many):
            table.add_column(column, justify="right", no_wrap=column != "first token")
        for plan in self.fitting:
            cells = [plan["engine"], _kind(plan), _size(plan["bytes"])]
            cells += [_seconds(plan["first_token_s"]), _pair(plan["each_tok_s"])]
            cells += [_pair(plan["all_tok_s"])] if many else []
            table.add_row(*(Text(printable(cell)) for cell in cells))
        return table

    def _refusal(self) -> None:
        document, name = self.document, self.document["machine"]["name"]
        short = [plan for plan in self.refused if plan["missing_bytes"] > 0]
        if short:
            least = min(short, key=lambda plan: plan["missing_bytes"])
            self._say(
                f"{self.model} does not fit on {name}: {_size(least['missing_bytes'])} of "
                f"{self._tier(least['tier'])} are missing, even for {least['engine']} with {_stored(least)}."
            )
        else:
            self._say(f"{self.model} does not run on {name}.")
        near = document["nearest"]
        if near is None:
            self._say("Nothing comes near: take a smaller model or more memory.")
            return
        plan, what = near["plan"], near["change"]
        if not what.startswith(plan["engine"]):
            what += f" with {plan['engine']}"
        self._say(
            f"The nearest thing that works: {what} ({_size(plan['bytes'])}), "
            f"{_pair(plan['each_tok_s'])} tokens/s{_from_disk(plan)}."
        )

    def _best(self, plan: dict[str, Any]) -> None:
        for tier, found in plan["memory"].items():
            parts = sorted(found["parts"].items(), key=lambda part: -part[1])
            holds = ", ".join(f"{name} {_size(part)}" for name, part in parts)
            left = plan["tokens_left"] if "cache" in found["parts"] else 0
            room = f"; room for {left:,.0f} tokens more" if left >= 1 else ""
            self._say(
                f"{plan['engine']} takes {_size(found['used'])} of {_size(found['capacity'])} of "
                f"{self._tier(tier)}: {holds}{room}."
            )
        step = sum(plan["step_s"].values())
        parts = sorted(plan["step_s"].items(), key=lambda item: -item[1])
        said = ", ".join(
            f"{_STEP.get(name, name)} {seconds / step:.0%}"
            for name, seconds in parts
            if seconds / step >= 0.01
        )
        load = f" Loading takes {_seconds(plan['load_s'])}." if plan["load_s"] is not None else ""
        self._say(f"A token takes {step * 1000:,.2g} ms: {said}.{load}")
        if better := self.document["upgrades"][:_UPGRADES]:
            self._say(f"Faster would be {'; '.join(map(_upgrade, better))}.")
        rows = plan["rests_on_rows"]
        on = f"{len(rows)} published measurements with {plan['engine']}"
        request = self.document["request"]
        many = (
            ", that of all streams with the time of their prompts,"
            if request["streams"] > 1
            else ""
        )
        self._say(
            f"Speeds are those after a prompt of {request['prompt']:,} tokens{many} and rest on "
            f"{on if rows else 'what was measured of this machine'}; in brackets lie nine of ten measurements."
        )
        self._say(plan["quality"]["sentence"])

    def _cost(self) -> None:
        cost = self.document["cost"]
        if "problem" in cost:
            self._say(f"Cost: {cost['problem']}.")
            return
        each = cost["per_million"]
        self._say(
            f"With {cost['streams']} streams a million tokens cost {_usd(each['input']['total'])} of prompt and "
            f"{_usd(each['output']['total'])} of answer (${cost['usd']:,.0f} over {cost['years']:g} years, "
            f"{cost['watts']:,.0f} W at ${cost['kwh_usd']:g} a kWh)."
        )
        for api in cost["apis"]:
            when = f", {api['as_of']}" if api["as_of"] else ""
            head = f"{api['api']} takes ${api['input']:g} and ${api['output']:g}{when}: "
            self._say(head + " ".join(api["sentences"][-1:]))

    def _start(self, start: dict[str, Any]) -> None:
        if not start["commands"]:
            self._say(f"No start command: {start['problem']}.")
            return
        made = start["made_for"]
        self._say(f"Start it (options of {made['version']}, {made['as_of']}):")
        for one in start["commands"]:
            where = "" if one["where"] == "here" else f"{one['where']}: "
            self.console.print(
                printable(f"  {where}{one['command']}"), markup=False, soft_wrap=True
            )

    def _notes(self) -> None:
        notes, head = self.document["assumed"], "assumed: "
        if assumed := [note.removeprefix(head) for note in notes if note.startswith(head)]:
            self._say(f"Assumed: {'; '.join(assumed)}.")
        for note in notes:
            if not note.startswith(head):
                self._say(f"{note[:1].upper()}{note[1:]}.")

    def _tier(self, tier: str) -> str:
        if tier == "vram":
            return "the chip's memory" if self.unified else "the GPUs' memory"
        return {"ram": "memory", "disk": "the disk"}[tier]


def _reasons(plans: list[dict[str, Any]]) -> list[str]:
    """Each reason once, behind the engines that have it."""
    found: dict[str, list[str]] = {}
    for plan in plans:
        reason = plan["reason"].removeprefix(plan["engine"]).strip()
        if plan["missing_bytes"] > 0:
            reason += f" for {_stored(plan)}"
        found.setdefault(reason, []).append(plan["engine"])
    return [f"{', '.join(engines)}: {reason}" for reason, engines in found.items()]


def _upgrade(one: dict[str, Any]) -> str:
    price = f" for about ${one['usd']:,.0f}" if one["usd"] else ""
    return f"{one['change']}{price}, {one['times_faster']:.2f} times"


def _from_disk(plan: dict[str, Any]) -> str:
    """Said wherever something fits, as it is then slow."""
    reads = plan["experts"].get("disk", 0) > 0
    return ", partly read from the disk at every token" if reads else ""


def _kind(plan: dict[str, Any]) -> str:
    return plan["quantization"].removesuffix(_ABOUT)


def _stored(plan: dict[str, Any]) -> str:
    return f"{_kind(plan)} ({_size(plan['bytes'])})"


def _size(num_bytes: float) -> str:
    """594195292672.0 -> "594 GB": one decimal below 10."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB")):
        if (number := num_bytes / scale) >= 1:
            return f"{number:,.0f} {unit}" if number >= 9.95 else f"{number:.1f} {unit}"
    return size(int(num_bytes))


def _pair(estimate: dict[str, float]) -> str:
    """A value, and its interval."""
    low, high = _short(estimate["low"]), _short(estimate["high"])
    return f"{_short(estimate['value'])} ({low}-{high})"


def _seconds(value: dict[str, float] | float | None) -> str:
    if value is None:
        return "?"
    seconds = value["value"] if isinstance(value, dict) else value
    if seconds >= 600:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _usd(value: float) -> str:
    return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"
