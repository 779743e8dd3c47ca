"""`moonlet plan --check-claims FILE`: which claims hold, with the arithmetic.

The JSON document:

    {"file": path, "tolerance": share of the true figure that "about" may hide,
     "counts": {verdict: number},
     "claims": [{"text", "kind", "model", "verdict",
                 "parts": [{"what", "verdict", "arithmetic": [sentence], "figures": {name: number}}]}]}

A verdict is "holds", "does not hold" or "cannot be judged"; kind is that of the file; figures are in bytes, tokens
per second, US dollars and shares of 1.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from moonlet.cli.console import print_json, printable
from moonlet.plan.claims import judge
from moonlet.plan.claims_file import EXAMPLES, read_claims
from moonlet.plan.judged import TOLERANCE, VERDICTS, Judged

_STYLES = {"holds": "green", "does not hold": "red", "cannot be judged": "yellow"}


def check(path_or_word: Path, as_json: bool = False) -> int:
    """Judges a file, or the one that moonlet has under that word (k25). 0 whatever the verdicts are.

    Raises ConfigError where the file is no table of claims.
    """
    path = EXAMPLES.get(str(path_or_word), path_or_word)
    found = document(path)
    if as_json:
        print_json(found)
    else:
        _print(found)
    return 0


def document(path: Path) -> dict[str, Any]:
    """Raises ConfigError."""
    judged = [judge(claim) for claim in read_claims(path)]
    counts = Counter(one.verdict for one in judged)
    return {
        "file": str(path),
        "tolerance": TOLERANCE,
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "claims": [_claim(one) for one in judged],
    }


def _claim(judged: Judged) -> dict[str, Any]:
    claim = judged.claim
    parts = [
        {
            "what": part.what,
            "verdict": part.verdict,
            "arithmetic": list(part.arithmetic),
            "figures": dict(part.figures),
        }
        for part in judged.parts
    ]
    return {
        "text": claim.text,
        "kind": claim.kind,
        "model": claim.model,
        "verdict": judged.verdict,
        "parts": parts,
    }


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def styled(verdict: str) -> Text:
        return Text(verdict, style=_STYLES[verdict])

    table = Table("", "claim", "verdict", "of its parts")
    for number, claim in enumerate(found["claims"], 1):
        parts = ", ".join(f"{part['what']} {part['verdict']}" for part in claim["parts"])
        several = parts if len(claim["parts"]) > 1 else ""
        text = Text(printable(claim["text"]))
        table.add_row(str(number), text, styled(claim["verdict"]), several)
    console.print(table)
    for number, claim in enumerate(found["claims"], 1):
        console.print(Text(printable(f"\n{number}. {claim['text']}"), style="bold"), soft_wrap=True)
        for part in claim["parts"]:
            console.print(Text(f"   {part['what']}: ").append_text(styled(part["verdict"])))
            for sentence in part["arithmetic"]:
                console.print(Text(printable(f"      {sentence}")), soft_wrap=True)
    told = ", ".join(f"{verdict} {count}" for verdict, count in found["counts"].items())
    console.print(f"\nOf {len(found['claims'])} claims: {told}.", markup=False, soft_wrap=True)
