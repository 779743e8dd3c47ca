"""docs/quantization.md: its tables are those of the recorded figures, and its commands are ones that exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import quantization as script
from moonlet.cli.commands import build_parser
from moonlet.quant.mixes import FALLBACKS, load_mix


def test_the_document_shows_the_recorded_figures() -> None:
    document = script.DOCUMENT.read_text()
    tables = script.all_tables(json.loads(script.RESULTS.read_text()))
    assert set(tables) == set(re.findall(r"<!-- (\w+): begin -->", document))
    for name, table in tables.items():
        assert f"<!-- {name}: begin -->\n{table}\n<!-- {name}: end -->" in document


def test_what_is_recorded_of_mixes_and_types_is_still_true() -> None:
    recorded = json.loads(script.RESULTS.read_text())
    assert recorded["mixes"] == {
        mix: {model: script.mix_bytes(model, mix) for model in script.SHAPES}
        for mix in script.NAMES
    }
    for name, found in script.type_errors().items():
        assert found == {**recorded["types"][name], "error": pytest.approx(recorded["types"][name]["error"], rel=0.02)}  # fmt: skip


def test_tables_replace_what_stands_between_their_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: begin -->\n<!-- x: end -->\nb\n")
    monkeypatch.setattr(script, "DOCUMENT", page)
    for text in ("new\nlines", "newer"):
        script.put("x", text)
        assert page.read_text() == f"a\n<!-- x: begin -->\n{text}\n<!-- x: end -->\nb\n"
    with pytest.raises(SystemExit, match="no marks for the table y"):
        script.put("y", "z")


def test_every_command_of_the_document_can_be_parsed() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", script.DOCUMENT.read_text(), re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    assert len(lines) > 5
    for line in lines:
        program, *argv = shlex.split(line)
        assert program == "moonlet"
        build_parser().parse_args(argv)


def test_the_mix_of_the_document_is_one(tmp_path: Path) -> None:
    [table] = re.findall(r"```toml\n(.*?)```", script.DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "mine.toml").write_text(table)
    mix = load_mix(tmp_path / "mine.toml")
    assert mix.type_for("language_model.model.layers.1.mlp.experts.down_proj", 512, 256) == "Q5_K"


def test_the_fallbacks_of_the_document_are_the_mixes_own() -> None:
    document = " ".join(script.DOCUMENT.read_text().split())
    wanted = {
        "Q4_K becomes Q5_0": ("Q4_K", "Q5_0"),
        "Q5_K Q5_1": ("Q5_K", "Q5_1"),
        "Q6_K Q8_0": ("Q6_K", "Q8_0"),
        "Q2_K, Q3_K and IQ4_XS IQ4_NL": ("Q2_K Q3_K IQ4_XS", "IQ4_NL"),
        "TQ1_0 and TQ2_0 Q4_0": ("TQ1_0 TQ2_0", "Q4_0"),
    }
    assert all(text in document for text in wanted)
    assert {kind: to for kinds, to in wanted.values() for kind in kinds.split()} == FALLBACKS
