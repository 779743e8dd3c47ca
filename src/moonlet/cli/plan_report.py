"""`moonlet plan` for people: which engines fit, and of the best one where everything goes and why it is so fast."""

from typing import Any

from rich.console import Console
from rich.table import Table

from moonlet.cli.console import printable
from moonlet.cli.inspect import size

_TIERS = {"vram": "GPUs", "ram": "memory", "disk": "disk"}


def print_plan(document: dict[str, Any]) -> None:
    """The tables of a document of `plan_document`."""
    console = Console(highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(printable(text), markup=False)

    request = document["request"]
    say(
        f"{document['model']} on {document['machine']['name']}, {request['streams']} x {request['context']:,} tokens; "
        f"a prompt of {request['prompt']:,}, an answer of {request['answer']:,}"
    )
    if any(plan["fits"] for plan in document["plans"]):
        console.print(_engines(document["plans"], request["streams"]))
    for plan in document["plans"]:
        if not plan["fits"]:
            say(f"{plan['quantization']} does not run: {plan['reason']}.")
    best = next((plan for plan in document["plans"] if plan["fits"]), None)
    if best is None:
        _print_refusal(document, say)
    else:
        console.print(_memory(best))
        _print_best(document, best, say)
    for note in document["assumed"]:
        say(note)


def _engines(plans: list[dict[str, Any]], streams: int) -> Table:
    table = Table("engine", "stored as")
    columns = ("bytes", "load", "first token", "tokens/s", "9 of 10")
    for column in (*columns, *(("all streams", "9 of 10") if streams > 1 else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for plan in plans:
        if plan["fits"]:
            cells = [
                plan["engine"],
                plan["quantization"],
                size(int(plan["bytes"])),
                _seconds(plan["load_s"]),
            ]
            cells += [_seconds(plan["first_token_s"]), *_pair(plan["each_tok_s"])]
            cells += _pair(plan["all_tok_s"]) if streams > 1 else []
            table.add_row(*cells)
    return table


def _memory(plan: dict[str, Any]) -> Table:
    table = Table("", "holds", title=f"where {plan['engine']} puts it")
    for column in ("bytes", "of", "tokens more"):
        table.add_column(column, justify="right")
    for tier, found in plan["memory"].items():
        holds = ", ".join(f"{name} {size(int(part))}" for name, part in found["parts"].items())
        free = f"{plan['tokens_left']:,.0f}" if "cache" in found["parts"] else ""
        table.add_row(
            _TIERS[tier], holds, size(int(found["used"])), size(int(found["capacity"])), free
        )
    return table


def _print_best(document: dict[str, Any], plan: dict[str, Any], say: Any) -> None:
    step = sum(plan["step_s"].values())
    parts = sorted(plan["step_s"].items(), key=lambda item: -item[1])
    said = ", ".join(
        f"{name} {seconds / step:.0%}" for name, seconds in parts if seconds / step >= 0.01
    )
    say(f"A step takes {step * 1000:,.1f} ms: {said}.")
    for one in document["upgrades"][:3]:
        price = f" for about ${one['usd']:,.0f}" if one["usd"] else ""
        say(f"With {one['change']}{price} it would be {one['times_faster']:.2f} times as fast.")
    rows = plan["rests_on_rows"]
    say(
        f"Speeds rest on {len(rows)} published measurements with {plan['engine']} (rows {', '.join(map(str, rows))}); nine of "
        "ten should lie in the intervals."
        if rows
        else "Speeds rest on what was measured of this machine."
    )
    say(plan["quality"]["sentence"])
    _print_cost(document["cost"], say)
    start = plan["start"]
    if start["commands"]:
        say(f"Start it (options of {start['made_for']['version']}, {start['made_for']['as_of']}):")
        for one in start["commands"]:
            say(f"  {'' if one['where'] == 'here' else one['where'] + ': '}{one['command']}")
    else:
        say(start["problem"])


def _print_cost(cost: dict[str, Any] | None, say: Any) -> None:
    if cost is None:
        return
    if "problem" in cost:
        say(f"Cost: {cost['problem']}.")
        return
    each = cost["per_million"]
    say(
        f"A million tokens cost ${each['input']['total']:,.2f} of prompt and ${each['output']['total']:,.2f} of answer "
        f"with {cost['streams']} streams (${cost['usd']:,.0f} over {cost['years']:g} years, {cost['watts']:,.0f} W at ${cost['kwh_usd']:g} a kWh)."
    )
    for api in cost["apis"]:
        when = f", {api['as_of']}" if api["as_of"] else ""
        head = f"{api['api']} takes ${api['input']:g} and ${api['output']:g}{when}: "
        say(head + " ".join(api["sentences"][-1:]))


def _print_refusal(document: dict[str, Any], say: Any) -> None:
    near = document["nearest"]
    if near is None:
        say("Nothing that moonlet knows works on this machine: take a smaller model.")
        return
    plan = near["plan"]
    say(
        f"The nearest thing that works: {near['change']}: {plan['engine']} with {plan['quantization']} "
        f"({size(int(plan['bytes']))}), {_about(plan['each_tok_s'])} tokens/s."
    )


def _pair(estimate: dict[str, float]) -> list[str]:
    """A value, and its interval."""
    return [_short(estimate["value"]), f"{_short(estimate['low'])} to {_short(estimate['high'])}"]


def _about(estimate: dict[str, float]) -> str:
    value, interval = _pair(estimate)
    return f"{value} ({interval})"


def _seconds(value: dict[str, float] | float | None) -> str:
    if value is None:
        return "?"
    seconds = value["value"] if isinstance(value, dict) else value
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
