"""The schemas of the suite: inside the subset, over the whole of it, and judged rightly."""

import json
from typing import Any

import pytest

from moonlet.chat.mfjs import check_mfjs
from moonlet.errors import PromptError
from moonlet.gateway.fidelity.judge import MAX_CHARACTERS, NoSchema, problem, text_problem
from moonlet.gateway.fidelity.schemas import (
    MFJS,
    SAMPLE,
    WIDER,
    Case,
    closed,
    fixed,
    is_strict_for_openai,
)
from tests.gateway.fidelity.actor import value_of

IN_SUBSET = {
    "type", "enum", "anyOf", "$ref", "$defs", "properties", "required", "additionalProperties", "items", "minItems",
    "maxItems", "minLength", "maxLength", "minimum", "maximum", "title", "description", "default",
}  # fmt: skip


def keywords(schema: Any) -> set[str]:
    """All that stand in a schema; names of properties and definitions are none."""
    found: set[str] = set()
    for name, value in schema.items():
        found.add(name)
        if name in ("properties", "$defs"):
            inner = list(value.values())
        else:
            inner = value if isinstance(value, list) else [value]
        for part in inner:
            found |= keywords(part) if isinstance(part, dict) else set()
    return found


@pytest.mark.parametrize("case", MFJS, ids=lambda case: case.name)
def test_each_is_in_the_subset_and_has_a_value(case: Case) -> None:
    check_mfjs(case.root, "x")
    assert problem(value_of(case.root), case.root) is None
    assert problem({"nothing": "of the kind", "at": "all"}, case.root) is not None


@pytest.mark.parametrize("case", WIDER, ids=lambda case: case.name)
def test_the_wider_ones_are_outside_of_it(case: Case) -> None:
    with pytest.raises(PromptError):
        check_mfjs(case.root, "x")
    assert problem(value_of(case.root), case.root) is None


def test_they_cover_the_subset() -> None:
    assert len(MFJS) >= 30
    assert set().union(*(keywords(case.root) for case in MFJS)) == IN_SUBSET
    kinds = {kind for case in MFJS for kind in _types(case.root)}
    assert kinds == {"string", "number", "integer", "boolean", "object", "array", "null"}
    assert set(SAMPLE) <= {case.name for case in MFJS}
    assert len({case.name for case in (*MFJS, *WIDER)}) == len(MFJS) + len(WIDER)


def _types(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_types, schema))
    if not isinstance(schema, dict):
        return set()
    kind = schema.get("type", [])
    own = {kind} if isinstance(kind, str) else {one for one in kind if isinstance(one, str)}
    return own.union(*map(_types, schema.values()))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"value":"x"}', None),
        ('{"value":"x"', "is no JSON"),
        ("", "is no JSON"),
        ('{"value":NaN}', "is no JSON"),
        ('{"value":"y"}', "'y' is not one of ['x'] at ['value']"),
        ('{"value":"x","more":1}', "'more' was unexpected"),
        ("{}", "'value' is a required property"),
        ("[]", "is not of type 'object'"),
    ],
)
def test_the_judge(text: str, says: str | None) -> None:
    found = text_problem(text, fixed("x"))
    assert found is None if says is None else says in (found or "")


@pytest.mark.parametrize(
    "schema",
    [{"type": "word"}, {"$ref": "#/$defs/no"}, {"$ref": "http://127.0.0.1:1/x"}, {"type": 3}],
)
def test_what_is_no_schema(schema: Any) -> None:
    with pytest.raises(NoSchema):
        problem({}, schema)


def test_nothing_is_fetched_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr("urllib.request.urlopen", fetched.append)
    with pytest.raises(NoSchema):
        problem({}, {"$ref": "http://127.0.0.1:1/schema"})
    assert fetched == []


def test_a_value_may_be_nested_as_deep_as_it_likes() -> None:
    tree = {"type": "array", "items": {"$ref": "#"}}
    deep = json.loads("[" * 900 + "]" * 900)
    assert problem(deep, tree) in (None, "it is nested too deep")


def test_a_text_of_any_length_is_judged_at_once() -> None:
    assert "more than" in (text_problem(f"[{'1,' * MAX_CHARACTERS}1]", {"uniqueItems": True}) or "")


def test_openai_requires_every_property() -> None:
    assert is_strict_for_openai(fixed("x"))
    assert not is_strict_for_openai(closed({"a": {"type": "null"}}))
    assert not is_strict_for_openai({"anyOf": [{"type": "object"}]})
