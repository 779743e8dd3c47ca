"""Whatever the weights: random tokens under a mask make JSON that its schema validates."""

import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLParserLimits

import moonlet.nano
from moonlet.chat.tokenizer import Tokenizer
from moonlet.engine import grammar
from moonlet.engine.grammar import GrammarCompiler
from moonlet.engine.guide import Guide
from moonlet.errors import EngineError, PromptError

TOKENIZER = Tokenizer.from_folder(Path(moonlet.nano.__file__).parent / "weights")
SIZE = TOKENIZER.vocab_size + 40  # models pad their vocabulary
COMPILER = GrammarCompiler(TOKENIZER, SIZE, TOKENIZER.end_ids)
BYTES = {TOKENIZER.decode_bytes([i])[0]: i for i in range(256)}  # a vocabulary begins with them
CLOSING = [TOKENIZER.encode(text)[0] for text in '"]}']


def drive(guide: Guide, seed: int, limit: int = 1500) -> str | None:
    """The text of random tokens up to an end token; None where the limit comes first.

    Evenly over the mask, but for three in ten that close something if they may: answers without a bound end
    some time, too.
    """
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < limit:
        mask = guide.mask()
        assert mask is not None
        assert mask.shape == (SIZE,)
        allowed = np.flatnonzero(mask)
        assert len(allowed), TOKENIZER.decode(tokens)
        closing = [i for i in (*CLOSING, *TOKENIZER.end_ids) if mask[i]]
        token = int(rng.choice(closing if closing and rng.random() < 0.3 else allowed))
        guide.accept(token)
        if token in TOKENIZER.end_ids:
            assert set(np.flatnonzero(guide.mask())) == TOKENIZER.end_ids
            return TOKENIZER.decode_bytes(tokens).decode()
        tokens.append(token)
    return None


def takes(guide: Guide, text: str) -> bool:
    """Whether the guide allows `text`, byte by byte, and then the end."""
    for byte in text.encode():
        mask = guide.mask()
        if mask is not None and not mask[BYTES[byte]]:
            return False
        guide.accept(BYTES[byte])
    mask = guide.mask()
    return mask is None or all(mask[i] for i in TOKENIZER.end_ids)


def validates(text: str, schema: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def obj(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


WORD, INT = {"type": "string", "maxLength": 5}, {"type": "integer", "minimum": -3, "maximum": 120}
LIST = {"$ref": "#/$defs/list"}
BOUNDED = [
    {"type": "boolean"}, {"type": "null"}, INT, WORD, {"type": ["string", "null"], "maxLength": 3},
    {"type": "string", "minLength": 4, "maxLength": 6}, {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "integer", "minimum": 7, "maximum": 7}, {"type": "integer", "minimum": 99, "maximum": 1001},
    {"enum": ["a", "ab", 'quo"te', "\n", "é日本😀", "<|im_end|>"]}, {"enum": [1, -20, 300]}, {"enum": [0.5, 2.25, -1]},
    {"enum": [None, True, {"a": [1]}]}, {"const": {"a": [1, "b", None]}}, {"const": None},
    obj({}, additionalProperties=False), obj({"a": INT}, "a", additionalProperties=False),
    obj({"a": INT, "b": WORD, "c": {"type": "null"}}, "b", additionalProperties=False),
    obj({"outer": obj({"inner": obj({"x": INT}, "x", additionalProperties=False)}, additionalProperties=False)},
        "outer", additionalProperties=False),
    {"type": "array", "items": INT, "maxItems": 4}, {"type": "array", "items": WORD, "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 2},
    {"anyOf": [INT, WORD, {"type": "null"}]},
    {"anyOf": [obj({"kind": {"const": "a"}, "x": INT}, "kind", "x", additionalProperties=False),
               obj({"kind": {"const": "b"}, "y": WORD}, "kind", "y", additionalProperties=False)]},
    {"$defs": {"point": obj({"x": INT}, "x", additionalProperties=False)},
     "type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 3},
    obj({"a/b~c": INT, "é": {"$ref": "#/properties/a~1b~0c"}}, "é", additionalProperties=False),
    {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]},
    {"oneOf": [INT, WORD]}, {"type": "string", "pattern": "^[a-c]{2,4}-\\d$"}, {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"}, {"type": "integer", "minimum": 0, "maximum": 500, "multipleOf": 7},
    {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4},
    {"type": "array", "prefixItems": [INT, WORD], "items": False, "minItems": 2},
    {"type": "integer", "minimum": 2**53 + 2, "maximum": 2**53 + 9}, {"type": "integer", "minimum": -(10**30), "maximum": -5},
    {"type": "integer", "minimum": -(2**63), "maximum": 2**64}, {"type": "integer", "minimum": 2**60, "maximum": 2**60},
    {"type": "integer", "exclusiveMinimum": -(2**53) - 4, "exclusiveMaximum": 2**53 + 4},
]  # fmt: skip
UNBOUNDED = [
    {}, {"type": "object"}, {"type": "array"}, {"type": "string"}, {"type": "number"}, {"type": "integer"},
    {"type": "number", "minimum": 0.1, "maximum": 2.5}, {"type": "number", "minimum": -1}, {"type": "string", "minLength": 3},
    obj({"a": INT}), obj({"a": INT}, "a", "undeclared"), obj({"a": INT}, "a", additionalProperties=WORD),
    obj({"a": INT}, additionalProperties={}), {"type": "object", "minProperties": 1, "additionalProperties": INT},
    {"type": "object", "maxProperties": 2, "additionalProperties": WORD}, {"type": "array", "items": INT, "minItems": 1},
    {"type": "object", "patternProperties": {"^x-": INT}, "additionalProperties": False},
    obj({"value": INT, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}}, "value", additionalProperties=False),
    {"$defs": {"list": {"anyOf": [{"type": "null"}, obj({"head": INT, "tail": LIST}, "head", "tail")]}}, "$ref": "#/$defs/list"},
]  # fmt: skip


@pytest.mark.parametrize("schema", BOUNDED, ids=lambda schema: json.dumps(schema)[:60])
def test_what_a_bounded_schema_lets_through_is_valid_and_ends(schema: dict[str, Any]) -> None:
    texts = {drive(COMPILER.schema(schema), seed) for seed in range(25)}
    assert None not in texts
    for text in texts:
        assert text is not None
        assert validates(text, schema), text


@pytest.mark.parametrize("schema", UNBOUNDED, ids=lambda schema: json.dumps(schema)[:60])
def test_what_an_unbounded_schema_lets_through_is_valid(schema: dict[str, Any]) -> None:
    texts = [drive(COMPILER.schema(schema), seed, 400) for seed in range(25)]
    done = [text for text in texts if text is not None]
    assert len(done) > 5
    for text in done:
        assert validates(text, schema), text
        assert "\n" not in text


@pytest.mark.parametrize(
    "schema",
    [{"type": "integer"}, {"type": "number"}, {"type": "number", "minimum": -1}, {"type": "integer", "minimum": 1},
     obj({"a": {"type": "integer"}}, "a", additionalProperties=False)],
    ids=json.dumps,
)  # fmt: skip
@pytest.mark.parametrize("likes", [b"0.eE-", b"9.e", b"-1e+0.", b"10E", b"5"])
def test_numbers_end_however_much_the_model_likes_digits(
    schema: dict[str, Any], likes: bytes
) -> None:
    guide, text = COMPILER.schema(schema), b""
    for _ in range(80):
        mask = guide.mask()
        assert mask is not None
        allowed = np.flatnonzero(mask)
        token = next((BYTES[like] for like in likes if mask[BYTES[like]]), int(allowed[0]))
        guide.accept(token)
        if token in TOKENIZER.end_ids:
            break
        text += TOKENIZER.decode_bytes([token])
    else:
        pytest.fail(f"no end: {text}")
    assert validates(text.decode(), schema)


def test_digits_that_mean_something_are_all_allowed() -> None:
    for text in ("9223372036854775807", "-1.7976931348623157e308", "5e-324", "0.1234567890123456789", "[1e10,12e1]"):  # fmt: skip
        assert takes(COMPILER.schema({}), text)
    long = "1" * 40
    for text in (f'"{long}"', f'"\\\"{long}"', f'{{"{long}":"{long}"}}', f'["",{"9" * 19},"{long}"]'):  # fmt: skip
        assert takes(COMPILER.schema({}), text)
    assert takes(COMPILER.schema({"enum": [10**22, 1]}), str(10**22))
    for text in (long, f"0.{long}", "1e1111", f'["\\",{long}]', f'{{"a":{long}}}'):
        assert not takes(COMPILER.schema({}), text)


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of the MFJS subset whose values are bounded."""
    small = st.integers(0, 4)
    words = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=4)
    leaf = st.one_of(
        st.sampled_from([{"type": "null"}, {"type": "boolean"}]),
        st.tuples(st.integers(-99, 99), st.integers(0, 999)).map(
            lambda t: {"type": "integer", "minimum": t[0], "maximum": t[0] + t[1]}
        ),
        st.tuples(small, small).map(
            lambda t: {"type": "string", "minLength": t[0], "maxLength": t[0] + t[1]}
        ),
        st.lists(words, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=4).map(
            lambda numbers: {"enum": numbers}
        ),
    )

    def larger(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        properties = st.dictionaries(words, inner, max_size=4)
        return st.one_of(
            st.tuples(properties, st.sets(st.integers(0, 3))).map(
                lambda t: obj(t[0], *[k for i, k in enumerate(t[0]) if i in t[1]], additionalProperties=False)
            ),
            st.tuples(inner, small, small).map(
                lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
            ),
            st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        )  # fmt: skip

    return st.recursive(leaf, larger, max_leaves=6)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(schemas(), st.integers(0, 2**32))
def test_any_bounded_schema_comes_out_right(schema: dict[str, Any], seed: int) -> None:
    text = drive(COMPILER.schema(schema), seed, 4000)
    assert text is not None
    assert validates(text, schema), text


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":1}', True),
        ('{"a":1,"é":"日😀"}', True),
        ('{"a":1,"b":"<|im_end|></think><|tool_call_end|>"}', True),
        ('{"a": 1}', False),
        ('{"a":1} ', False),
        ('{"a":1,\n"b":2}', False),
        ('{"b":1,"a":1}', False),
        ('{"a":1,"a":2}', False),
        ('{"a":1,"\\u0061":"x"}', False),  # spells the key a once more, past its schema
        ('{"a":01}', False),
        ('{"a":1', False),
        ("", False),
    ],
)
def test_texts_that_fit_and_that_do_not(text: str, fits: bool) -> None:
    assert takes(COMPILER.schema(obj({"a": {"type": "integer"}}, "a")), text) == fits


def test_a_character_that_is_split_over_tokens_is_finished() -> None:
    guide = COMPILER.schema({"type": "string", "maxLength": 1})
    for byte in '"😀'.encode()[:-1]:
        guide.accept(BYTES[byte])
    mask = guide.mask()
    assert mask is not None
    found = {TOKENIZER.decode_bytes([i]) for i in np.flatnonzero(mask)}
    assert all(0x80 <= token[0] < 0xC0 for token in found)
    assert takes(COMPILER.schema({"type": "string", "maxLength": 2}), '"😀é"')
    assert not takes(COMPILER.schema({"type": "string", "maxLength": 2}), '"😀é!"')


def test_special_tokens_never_belong_to_an_answer() -> None:
    guide = COMPILER.schema({"type": "string"})
    guide.accept(BYTES[ord('"')])
    mask = guide.mask()
    assert mask is not None
    assert not mask[sorted(TOKENIZER.special.values())].any()
    assert not mask[TOKENIZER.vocab_size :].any()


def test_a_fork_goes_its_own_way() -> None:
    guide = COMPILER.schema({"enum": ["ab", "cd"]})
    guide.accept(BYTES[ord('"')])
    other = guide.fork()
    guide.accept(BYTES[ord("a")])
    assert takes(other, 'cd"')
    assert takes(guide, 'b"')
    assert takes(COMPILER.schema({"enum": ["ab", "cd"]}), '"ab"')  # and the cache has not moved


def test_a_token_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(EngineError, match="does not fit"):
        COMPILER.schema({"type": "null"}).accept(BYTES[ord("x")])


def test_many_threads_compile_and_run_at_once() -> None:
    failed: list[object] = []

    def work(number: int) -> None:
        try:
            for seed in range(10):
                schema = obj({f"key{number % 3}": INT, "seed": {"const": seed}}, "seed")
                text = drive(COMPILER.schema(schema), seed, 600)
                assert text is None or validates(text, schema)
        except Exception as error:  # noqa: BLE001  told by the assertion below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "foo"}, "Invalid type"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"enum": []}, "Unsatisfiable"),
        ({"minLength": "a"}, "minLength"),
        ({"properties": {"a": {"not": {}}}}, "'not' is not supported"),
        ({"const": json.loads("[" * 200 + "]" * 200)}, "recursion limit"),
        ({"allOf": [{"anyOf": [obj({f"{i}{j}": INT}) for i in range(10)]} for j in range(8)]}, "too large"),
    ],
)  # fmt: skip
def test_schemas_that_cannot_be_held(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(PromptError, match=reason) as caught:
        COMPILER.schema(schema, "text.format")
    assert caught.value.param == "text.format"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 10**30}, {"type": "array", "maxItems": 10**30}, {"type": "string", "minLength": 100_000},
        {"type": "string", "pattern": "((a{100}){100}){100}"}, {"type": "string", "pattern": "^(a|b)*a.{20}$"},
        {"const": "x" * 100_000}, {"enum": [f"value {i}" for i in range(5000)]}, obj({f"p{i}": WORD for i in range(1500)}),
        {"$defs": {f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 10} for i in range(50)}
            | {"d50": {"type": "null"}}, "$ref": "#/$defs/d0"},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)  # fmt: skip
def test_large_schemas_take_their_steps(schema: dict[str, Any]) -> None:
    guide = COMPILER.schema(schema)
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = guide.mask()
        assert mask is not None
        guide.accept(int(rng.choice(np.flatnonzero(mask))))


def test_the_lexer_is_built_where_the_schema_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is by its first mask; in the engine's thread all other answers would wait for it."""
    masked: list[LLMatcher] = []

    class Recorded:
        grammar_from_json_schema = LLMatcher.grammar_from_json_schema

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.inner = LLMatcher(*arguments, **options)

        def __getattr__(self, name: str) -> Any:
            if name == "compute_bitmask":
                masked.append(self.inner)
            return getattr(self.inner, name)

    monkeypatch.setattr(grammar, "LLMatcher", Recorded)
    COMPILER.schema({"const": "compiled here for the first time"})
    assert len(masked) == 1


def test_a_grammar_that_becomes_too_complex_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "_LIMITS", LLParserLimits(max_lexer_states=1000))
    guide = COMPILER.schema({"type": "string", "maxLength": 5001})
    with pytest.raises(PromptError, match="cannot go on: lexer error: too many states") as caught:
        takes(guide, '"' + "ab" * 500)
    assert caught.value.param == "response_format"
