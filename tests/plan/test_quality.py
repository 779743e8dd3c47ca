"""What is known of quantizations: as published, as measured here, or said to be unknown."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.plan.quality import _data, _key, quality_of

DOCS = Path(__file__).parents[2] / "docs" / "quantization.md"


def rows(block: str) -> dict[str, list[str]]:
    """The table that the benchmark wrote between two marks of the page: cells by their first."""
    text = DOCS.read_text().split(f"<!-- {block}: begin -->")[1].split(f"<!-- {block}: end -->")[0]
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, *rest = (cell.strip(" `") for cell in line.strip("|").split("|"))
            found.setdefault(first, rest)  # of several tables in a block the first
    return found


def test_a_published_loss_by_hand() -> None:
    quality = quality_of("UD-Q2_K_XL", "deepseek-ai/DeepSeek-R1-0528")
    assert quality.is_known
    (figure,) = quality.figures
    assert figure.loss == pytest.approx(3.5278 / 3.2130 - 1)
    assert "perplexity 3.5278 against 3.213 (q8_0), +9.8%" in quality.sentence
    assert figure.source.endswith("discussions/715")


def test_int4_is_lossless_only_for_models_trained_for_it() -> None:
    for label in ("native", "native-int4", "native int4", "INT4"):
        kimi = quality_of(label, "moonshotai/Kimi-K2.5")
        assert "These models were trained for their INT4" in kimi.sentence, label
        assert "nano" not in kimi.sentence
        assert "9.68%" not in kimi.sentence
        assert any("moonshotai/Kimi-K2-Thinking" in source for source in kimi.sources)
    other = quality_of("native-int4", "Moonlight-16B-A3B")
    assert "trained" not in other.sentence
    assert other.sentence.startswith(
        "Of Moonlight-16B-A3B as native-int4 no measurement was found."
    )
    assert "9.68%" in other.sentence
    anyone = quality_of("native-int4").sentence
    assert "Kimi-K2-Thinking, Kimi-K2.5, Kimi-K2.6: these models were trained" in anyone


def test_what_was_published_loses_nothing_whatever_it_is() -> None:
    quality = quality_of("native", "moonshotai/Kimi-K2-Instruct")
    assert quality.is_known
    assert quality.sentence.startswith("The weights as they were published: nothing is lost")
    assert "INT4" not in quality.sentence


def test_nothing_is_compared_with_itself() -> None:
    assert quality_of("bf16", "Kimi-K2.5").sentence.startswith("What other forms are compared with")
    assert quality_of("q8_0").figures[0].model == "DeepSeek-V3.1"  # of R1 it is the reference
    for label in ("bf16", "q8_0", "smol_iq5_ks"):
        assert all(figure.reference_value != figure.value for figure in quality_of(label).figures)


def test_the_asked_model_comes_first() -> None:
    assert quality_of("q4_0", "DeepSeek-V3.1").figures[0].model == "DeepSeek-V3.1"
    assert quality_of("q4_0", "DeepSeek-R1-0528-GGUF").figures[0].model == "DeepSeek-R1-0528"
    k25 = quality_of("q4_0", "Kimi-K2.5")
    assert k25.sentence.startswith(
        "Of Kimi-K2.5 as q4_0 no measurement was found. DeepSeek-R1-0528:"
    )


@pytest.mark.parametrize("label", ["nvfp4", "q2_k_xl", "UD-TQ1_0", "mxfp4", "", "x" * 1000])
def test_unknown_is_said(label: str) -> None:
    quality = quality_of(label, "Kimi-K2.5")
    assert not quality.is_known
    assert not quality.figures
    assert quality.sentence.startswith(f"What Kimi-K2.5 loses as {label} is unknown")


def test_a_file_named_tq1_0_is_not_ternary() -> None:
    assert "Three values a weight" in quality_of("tq1_0").sentence
    assert "Three values" not in quality_of("UD-TQ1_0").sentence


def test_fewer_bits_never_lose_less_where_one_table_has_both() -> None:
    """Of types whose sizes are known from their blocks, in one family each."""
    orders = [
        ["bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"],
        ["iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"],
        ["bf16", "q8_0", "ud_q4_k_xl", "ud_q2_k_xl"],
        ["smol_iq5_ks", "iq4_ks", "iq3_ks", "iq2_kl", "iq2_ks", "smol_iq2_ks", "smol_iq1_kt"],
    ]
    for table in _data()["table"][:-1]:  # nano's differences are smaller than their last digit
        for order in orders:
            values = [table["values"][label] for label in order if label in table["values"]]
            assert values == sorted(values), (table["model"], order)


def test_every_entry_has_a_source_and_its_labels_can_be_asked_for() -> None:
    data = _data()
    labels = [*data["rounding"]["percent"], *data["aliases"].values()]
    for entry in [*data["table"], *data["said"], data["rounding"]]:
        assert str(entry["as_of"])[:2] == "20"
        assert len(entry["source"]) > 10 or entry["source"] == "by definition"
        labels += entry.get("labels", entry.get("values", ()))
    for table in data["table"]:
        assert table["reference"] in table["values"]
        assert min(table["values"].values()) > 1  # no perplexity is less
    assert all(_key(label) == label for label in labels)


def test_our_own_measurements_are_those_of_the_page() -> None:
    """When `benchmarks/quantization.py --write` has changed the page, quality.toml must follow."""
    nano = next(table for table in _data()["table"] if table["model"] == "nano")["values"]
    names = {"float": "bf16", "INT4": "native_int4", "Q8_0": "q8_0"}
    names |= {"Q4_K_M": "q5_0", "Q2_K_XL": "iq4_nl", "TQ1_0": "q4_0"}  # what it is in nano
    page = rows("nano")
    for row, label in names.items():
        loss = float(page[row][3])
        assert nano[label] == pytest.approx(math.exp(loss), abs=5e-5), row
    types = rows("types")
    for label, percent in _data()["rounding"]["percent"].items():
        row = "INT4" if label == "native_int4" else label.upper()
        assert percent == float(types[row][1].rstrip("%")), row


@given(st.text(), st.text())
def test_any_label_and_model_has_an_answer(label: str, model: str) -> None:
    quality = quality_of(label, model)
    assert quality.sentence
    assert re.search(r"[.%]$", quality.sentence)
