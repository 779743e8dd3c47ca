"""Writes the tables of docs/cluster.md: `python tools/cluster_page.py`. A test holds the page to what they say."""

from pathlib import Path

from moonlet.plan.paper import Sheet, sheets

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"


def main() -> None:
    page = PAGE.read_text()
    for sheet in sheets():
        page = replaced(page, sheet)
    PAGE.write_text(page)


def replaced(page: str, sheet: Sheet) -> str:
    """The page with the sheet between its two marks. Raises SystemExit where the page has no such marks."""
    begin, end = f"<!-- {sheet.name}: begin -->", f"<!-- {sheet.name}: end -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE.name} has no marks for the table {sheet.name}")
    return f"{before}{begin}\n{text(sheet)}\n{end}{after}"


def text(sheet: Sheet) -> str:
    """The table, and under it what it rests on."""
    assumed = "".join(f"\n- {sentence}" for sentence in sheet.assumed)
    return sheet.markdown() + (f"\n\nAssumed:\n{assumed}" if assumed else "")


if __name__ == "__main__":
    main()
