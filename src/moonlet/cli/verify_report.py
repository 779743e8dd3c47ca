"""What `moonlet verify` found, for a person."""

from collections.abc import Sequence
from typing import Any

from moonlet.cli.console import printable


def print_results(document: dict[str, Any]) -> None:
    """A table of the groups, each failure with its sentence, and why others were skipped."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("group", "passed", "failed", "skipped"):
        table.add_column(column, justify="left" if column == "group" else "right")
    groups: dict[str, dict[str, int]] = {}
    for check in document["checks"]:
        group = groups.setdefault(
            check["id"].partition("/")[0], dict.fromkeys(document["counts"], 0)
        )
        group[check["outcome"]] += 1
    for name, group in groups.items():
        table.add_row(name, *(str(count) if count else "" for count in group.values()))
    console.print(table)
    for outcome, style in (("failed", "red"), ("skipped", "dim")):
        for sentence, ids in _by_detail(document["checks"], outcome).items():
            console.print(
                printable(f"{outcome}  {ids}: {sentence}"),
                style=style,
                markup=False,
                soft_wrap=True,
            )
    told = ", ".join(f"{count} {name}" for name, count in document["counts"].items())
    name = f"{document['model']} at {document['url']}, profile {document['profile']}"
    console.print(printable(f"{name}: {told}"), markup=False, soft_wrap=True)


def _by_detail(checks: Sequence[dict[str, Any]], outcome: str) -> dict[str, str]:
    """Sentence -> the checks that it is told of."""
    found: dict[str, list[str]] = {}
    for check in checks:
        if check["outcome"] == outcome:
            found.setdefault(check["detail"], []).append(check["id"])
    return {
        sentence: ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"
        for sentence, ids in found.items()
    }


def print_scores(document: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)

    def say(name: str, value: str) -> None:
        console.print(printable(f"{name:16} {value}"), markup=False, soft_wrap=True)

    schemas, triggers = document["schemas"], document.get("triggers")
    say("model", f"{document['model']} at {document['url']}")
    say("samples", f"{document['samples']}, of which {document['unanswered']} have no answer")
    reasons = ", ".join(f"{name} {count}" for name, count in document["finish_reasons"].items())
    say("finished with", reasons)
    told = f"{schemas['valid']} of {schemas['calls']} calls in {schemas['answers']} answers"
    say("schema accuracy", f"{_share(document['schema_accuracy'])} ({told})")
    if schemas["unjudged"]:
        say("not judged", f"{schemas['unjudged']} calls of tools whose schema is none")
    if triggers is not None:
        told = (
            f"both {triggers['both']}, only this {triggers['only_this']}, only the reference "
            f"{triggers['only_reference']}, of {triggers['compared']} samples"
        )
        say("tool call F1", f"{_share(document['tool_call_f1'])} ({told})")
    for error in document["errors"]:
        say("no answer", error)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.2%}"
