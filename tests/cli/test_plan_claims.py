"""`moonlet plan --check-claims`: the table, the document, the exit status."""

import json
from pathlib import Path

import pytest

from moonlet.cli.main import main

CLAIM = '[[claim]]\ntext = "{text}"\nkind = "active"\nmodel = "kimi-k2.5"\npercent = {percent}\n'


def test_the_shipped_table_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--check-claims", "k25"]) == 0
    shown = capsys.readouterr().out
    assert "1. FP16: about 2 TB, on 8x H100 80 GB" in shown
    assert "   size: holds\n      kimi-k2.5 as fp16 takes 2,053.8 GB: " in shown
    assert "   fit: does not hold\n" in shown
    assert shown.endswith("Of 8 claims: holds 3, does not hold 5, cannot be judged 0.\n")


def test_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(CLAIM.format(text="few", percent=3.2) + CLAIM.format(text="many", percent=50))
    assert main(["plan", "--check-claims", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"file", "tolerance", "counts", "claims"}
    assert found["file"] == str(file)
    assert found["tolerance"] == 0.05
    assert found["counts"] == {"holds": 1, "does not hold": 1, "cannot be judged": 0}
    few, many = found["claims"]
    assert set(few) == {"text", "kind", "model", "verdict", "parts"}
    assert (few["text"], few["kind"], few["verdict"]) == ("few", "active", "holds")
    assert (many["text"], many["verdict"]) == ("many", "does not hold")
    (part,) = few["parts"]
    assert set(part) == {"what", "verdict", "arithmetic", "figures"}
    assert part["figures"]["active_share_with_embedding"] == pytest.approx(0.0320, abs=1e-4)


def test_every_sentence_of_the_document_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--check-claims", "k25", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["plan", "--check-claims", "k25"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for claim in found["claims"]:
        for part in claim["parts"]:
            assert all(sentence in lines for sentence in part["arithmetic"])


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_bad_file_is_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(CLAIM.format(text="few", percent=3.2) + CLAIM.format(text="many", percent=0))
    assert main(["plan", "--check-claims", str(file), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"moonlet: {file}, claim 2: percent is 0, but it must be a number above 0\n"
    assert main(["plan", "--check-claims", str(tmp_path / "none"), *flags]) == 2
    assert "(k25)" in capsys.readouterr().err


def test_a_file_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(CLAIM.format(text=r"\u001b[2J[bold]few[/bold]", percent=3.2))
    assert main(["plan", "--check-claims", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "[bold]few[/bold]" in shown
