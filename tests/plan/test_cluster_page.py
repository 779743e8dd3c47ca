"""docs/cluster.md: its tables are what the code says."""

import re

import pytest

from moonlet.plan.paper import Sheet, sheets
from tools import cluster_page


@pytest.fixture(scope="module")
def found() -> list[Sheet]:
    return list(sheets())


def test_the_page_shows_what_the_code_says(found: list[Sheet]) -> None:
    page = cluster_page.PAGE.read_text()
    assert {sheet.name for sheet in found} == set(re.findall(r"<!-- (\w+): begin -->", page))
    for sheet in found:
        assert (
            f"<!-- {sheet.name}: begin -->\n{cluster_page.text(sheet)}\n<!-- {sheet.name}: end -->"
            in page
        )


def test_every_figure_is_near_what_is_published(found: list[Sheet]) -> None:
    (checks,) = (sheet for sheet in found if sheet.name == "checks")
    for name, published, here, _ in checks.rows:
        figure = float(str(published).removeprefix("about "))
        assert here == pytest.approx(figure, rel=0.12), name


def test_a_sheet_replaces_what_stands_between_its_marks() -> None:
    sheet = Sheet("x", ("a", "b"), (("one", 1234.5), ("two", 0.25)), ("it is so",))
    page = "before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n"
    table = "| a | b |\n| --- | ---: |\n| one | 1,234 |\n| two | 0.25 |\n\nAssumed:\n\n- it is so"
    wanted = f"before\n<!-- x: begin -->\n{table}\n<!-- x: end -->\nafter\n"
    assert cluster_page.replaced(page, sheet) == wanted
    with pytest.raises(SystemExit, match="no marks for the table y"):
        cluster_page.replaced(page, Sheet("y", ("a",), ()))
