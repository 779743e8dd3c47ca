"""What `moonlet bench` shows a person: the JSON document as tables that fit 80 columns."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moonlet.cli.doctor import limits_text

if TYPE_CHECKING:
    from rich.table import Table

SHORT: dict[str, str] = {"attention": "attn", "experts": "routed", "shared_experts": "shared"}
Result = dict[str, Any]


def print_report(document: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    found = document["machine"]
    console.print(f"{found['cpu']}, {found['threads']} threads, {found['isa']}", markup=False)
    for when in ("before", "after"):
        for threads, limits in document[f"limits_{when}"].items():
            name = f"{when}, {threads.replace('_', ' ')}"
            console.print(f"  {name:20} {limits_text(limits, found['isa'])}")
    waited = document["first_token_s"]
    start = f", {waited:.2f} s from the start of a process to its first token" if waited else ""
    console.print(f"{document['model']}: loaded in {document['load_s']:.2f} s{start}", markup=False)
    for kind, keys in (("prefill", ("tokens",)), ("decode", ("depth", "batch"))):
        if results := document[kind]:
            console.print(_speeds(kind, keys, results))
            console.print(_parts(keys, results))
    if results := document["decode"]:
        console.print(_bytes(results))
        console.print("Depths are random latents in the cache: nothing was computed for them.")
    for sentence in document["skipped"]:
        console.print(sentence, markup=False)


def _speeds(kind: str, keys: tuple[str, ...], results: list[Result]) -> "Table":
    title = f"{kind}, medians of {len(results[0]['seconds'])}"
    columns = (*keys, "tok/s", "GB/s beside")
    rows = [
        [f"{result[key]:,}" for key in keys]
        + [f"{result['tok_s']:,.1f}", f"{result['bandwidth'] / 1e9:.1f}"]
        for result in results
    ]
    if kind == "decode":
        columns += ("used",)
        for row, result in zip(rows, results, strict=True):
            row.append(f"{result['bandwidth_share']:.0%}")
    return _table(title, columns, rows)


def _parts(keys: tuple[str, ...], results: list[Result]) -> "Table":
    """The time of each part, and the share of the limit."""
    parts: list[str] = list(
        dict.fromkeys(part["part"] for result in results for part in result["parts"])
    )
    rows = []
    for result in results:
        times = {part["part"]: part for part in result["parts"]}
        rows.append(
            [f"{result[key]:,}" for key in keys] + [_time(times.get(part)) for part in parts]
        )
    title = "milliseconds of a step, and share of the limit"
    return _table(title, (*keys, *(SHORT.get(part, part) for part in parts)), rows)


def _time(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    milliseconds = part["seconds"] * 1e3
    text = f"{milliseconds:.2f}" if milliseconds < 100 else f"{milliseconds:.0f}"
    return f"{text} {part['share']:.0%}" if part["bytes"] else text


def _bytes(results: list[Result]) -> "Table":
    read = [result["bytes_per_token"] for result in results]
    parts: list[str] = [part for part in read[0] if any(one[part] for one in read)]
    rows = [
        [f"{result['depth']:,}", str(result["batch"])]
        + [f"{count / 1e6:,.1f}" for count in (*(one[part] for part in parts), sum(one.values()))]
        for result, one in zip(results, read, strict=True)
    ]
    columns = ("depth", "batch", *(SHORT.get(part, part) for part in parts), "all")
    return _table("MB read for a token", columns, rows)


def _table(title: str, columns: Iterable[str], rows: list[list[str]]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
