"""What a model loses by being stored in fewer bits, as far as anybody has measured it.

`quality.toml` beside this file has the figures, each with its source and what it was measured on. What is not
there is unknown, and said to be: memory and bits tell nothing of what a model still knows.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("quality.toml")


@dataclass(frozen=True)
class Figure:
    """One measurement. loss: `value` above `reference_value`, as a share of it (0.01 is 1 %)."""

    model: str
    measure: str
    on: str
    value: float
    reference: str
    reference_value: float
    as_of: str
    source: str

    @property
    def loss(self) -> float:
        return self.value / self.reference_value - 1

    @property
    def sentence(self) -> str:
        return (
            f"{self.model}: {self.measure} {self.value:g} against {self.reference_value:g} "
            f"({self.reference}), {self.loss:+.1%}; {self.on}."
        )


@dataclass(frozen=True)
class Quality:
    """What is known of one quantization.

    is_known: somebody measured it, on this model or another. sentence: in short. figures: those of the asked
    model first.
    """

    label: str
    is_known: bool
    sentence: str
    figures: tuple[Figure, ...]
    sources: tuple[str, ...]


def quality_of(label: str, model: str = "") -> Quality:
    """What is known of weights stored as `label` ("q4_k_m", "UD-Q2_K_XL", "native-int4", ...).

    model: a name, a repository or a folder. What is said of certain models holds only for them, so that
    without it the sentence says for which it does. Never raises: a label that nobody knows is unknown.
    """
    key, name = _key(label), _name(model)
    figures = [figure for table in _data()["table"] if (figure := _figure(table, key))]
    figures.sort(key=lambda figure: _name(figure.model) != name)  # stable: else as in the file
    said = [entry for entry in _data()["said"] if key in entry["labels"] and _holds(entry, name)]
    told = any(entry.get("known", True) for entry in said)
    of_model = bool(figures) and name in ("", _name(figures[0].model))
    words = []
    if not figures and not told:
        words.append(
            f"What {model or 'a model'} loses as {label} is unknown: no measurement was found."
        )
    elif not told and not of_model:
        words.append(f"Of {model} as {label} no measurement was found.")
    words += [_said(entry, name) for entry in said]
    if of_model or (figures and not told):
        words.append(figures[0].sentence)
    sources = [entry["source"] for entry in said] + [figure.source for figure in figures]
    rounding = _data()["rounding"]
    if key in rounding["percent"] and not told:
        sources.append(rounding["source"])
        words.append(
            f"Rounding puts normally distributed weights off by {rounding['percent'][key]:g}%."
        )
    return Quality(
        label,
        told or bool(figures),
        " ".join(words),
        tuple(figures),
        tuple(dict.fromkeys(sources)),
    )


def _figure(table: dict[str, Any], key: str) -> Figure | None:
    values, reference = table["values"], table["reference"]
    if key not in values or key == reference:
        return None
    return Figure(
        model=table["model"],
        measure=table["measure"],
        on=table["on"],
        value=values[key],
        reference=table.get("reference_is", reference),
        reference_value=values[reference],
        as_of=str(table["as_of"]),
        source=table["source"],
    )


def _holds(entry: dict[str, Any], name: str) -> bool:
    return not name or "models" not in entry or name in map(_name, entry["models"])


def _said(entry: dict[str, Any], name: str) -> str:
    if name or "models" not in entry:
        return entry["text"]
    return f"{', '.join(entry['models'])}: {entry['text'][0].lower()}{entry['text'][1:]}"


def _key(label: str) -> str:
    key = label.strip().lower().replace("-", "_").replace(" ", "_")
    return _data()["aliases"].get(key, key)


def _name(model: str) -> str:
    """The last part of a repository or path, as "kimi-k2.5"."""
    return model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix("-gguf")


@cache
def _data() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(_TABLE.read_text("utf-8"))
