"""What cases promise: repeatable, well formed, and never shared between training and test."""

import base64
import random
from typing import Any

import numpy as np
import pytest

from moonlet.chat.messages import parse_messages
from moonlet.nano import arithmetic
from moonlet.nano.digits import CELL, TEST_SAMPLES, draw_plain_row, draw_row, load_samples
from moonlet.nano.phrases import LANGUAGES, fill, section
from moonlet.nano.skills import SKILLS, WEIGHTS, Case, CaseMaker

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def makers() -> dict[bool, CaseMaker]:
    return {test: CaseMaker(load_samples(test), test) for test in (False, True)}


def text_of(content: Any) -> str:
    parts = [{"text": content}] if isinstance(content, str) else content
    return "".join(part.get("text", "") for part in parts)


def draw_many(maker: CaseMaker, skill: str, count: int) -> list[Case]:
    rng = random.Random(3)
    return [maker.draw(rng, skill) for _ in range(count)]


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("test", [False, True])
def test_cases_parse_and_repeat(makers: dict[bool, CaseMaker], skill: str, test: bool) -> None:
    for case in draw_many(makers[test], skill, 60):
        parsed = parse_messages(case.messages)
        assert parsed[-1].role == "user"
        assert case.answer
        assert bool(case.reasoning) == case.thinking
    assert draw_many(makers[test], skill, 5) == draw_many(makers[test], skill, 5)


def test_every_skill_is_trained() -> None:
    assert set(WEIGHTS) == set(SKILLS)


def test_the_handwritten_samples_are_split() -> None:
    train, test = load_samples(False), load_samples(True)
    assert (len(train.labels), len(test.labels)) == (1797 - TEST_SAMPLES, TEST_SAMPLES)
    assert set(np.unique(test.labels)) == set(range(10))
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_small_sums_are_asked_in_other_words_in_the_test(makers: dict[bool, CaseMaker]) -> None:
    train = {
        text_of(c.messages[-1]["content"]) for c in draw_many(makers[False], "sum_small", 1500)
    }
    test = {text_of(c.messages[-1]["content"]) for c in draw_many(makers[True], "sum_small", 300)}
    assert not train & test


@pytest.mark.parametrize("skill", ["sum_thinking", "sum_instant"])
def test_large_sums_of_the_test_are_never_trained(
    makers: dict[bool, CaseMaker], skill: str
) -> None:
    def sums(test: bool, count: int) -> set[str]:
        return {case.answer.rpartition("\n")[2] for case in draw_many(makers[test], skill, count)}

    assert not sums(False, 1500) & sums(True, 300)


@pytest.mark.parametrize("name", list(section("intent")))
@pytest.mark.parametrize("language", LANGUAGES)
def test_identity_phrasings_are_distinct(name: str, language: str) -> None:
    """No phrasing is both learnt and tested, and none belongs to two intents."""
    train, held_out = (
        set(section("intent")[name][part][language]) for part in ("train", "held_out")
    )
    assert len(held_out) >= 4
    assert not train & held_out
    for other, data in section("intent").items():
        if other != name:
            known = {*data["train"][language], *data["held_out"][language]}
            assert not known & (train | held_out), other


def test_no_training_question_contains_a_wording_of_the_test(makers: dict[bool, CaseMaker]) -> None:
    held_out = [
        phrase.partition("{")[0]
        for intent in section("intent").values()
        for language in LANGUAGES
        for phrase in intent["held_out"][language]
        if len(phrase) > 12  # shorter ones may turn up in the other language
    ]
    for case in draw_many(makers[False], "identity", 4000):
        text = text_of(case.messages[-1]["content"]).lower()
        assert not any(phrase in text for phrase in held_out), text


def test_choices_and_slots_are_filled() -> None:
    rng = random.Random(0)
    seen = {fill("(a/b )c( d/)", "en", False, rng) for _ in range(100)}
    assert seen == {"ac d", "ac", "b c d", "b c"}
    assert fill("{n}", "en", False, rng).isdigit()
    assert int(fill("{big}", "en", False, rng)) > 999


@pytest.mark.parametrize("language", LANGUAGES)
def test_questions_beyond_nano_are_filled_in(language: str) -> None:
    rng = random.Random(0)
    frames = section("beyond")["train"][language]
    asked = {
        fill(rng.choice(frames), language, test, rng) for test in (False, True) for _ in range(500)
    }
    assert len(asked) > 500
    assert not any("{" in question or "}" in question for question in asked)


def test_an_absent_image_is_only_asked_for_when_none_was_sent(
    makers: dict[bool, CaseMaker],
) -> None:
    missing = set(section("intent")["no_image"]["answer"].values())
    for case in draw_many(makers[False], "identity", 3000):
        if case.answer in missing:
            assert "image_url" not in str(case.messages)


def test_instant_mode_answers_small_sums_at_once_and_works_out_large_ones(
    makers: dict[bool, CaseMaker],
) -> None:
    for case in draw_many(makers[False], "sum_small", 100):
        assert "\n" not in case.answer
    for case in draw_many(makers[False], "sum_instant", 100):
        *worked, last = case.answer.split("\n")
        a, sign, b, _, _ = last.split(" ")
        question = arithmetic.Sum(int(a), int(b), sign == "-")
        assert "\n".join(worked) == arithmetic.steps(question)
        assert not question.is_small


def test_rows_are_images_of_the_digits_they_name() -> None:
    samples, lengths = load_samples(False), set()
    for seed in range(80):
        rng = random.Random(seed)
        for text, image in (draw_row(samples, rng, 1.0), draw_plain_row(samples, rng)):
            lengths.add(len(text))
            assert text.isdigit()
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert int(image.max()) - int(image.min()) > 60, "the ink must show"
        assert image.shape == (CELL, CELL * len(text), 3)
    assert lengths == {1, 2, 3, 4}


def test_training_images_begin_as_single_digits_on_black() -> None:
    samples = load_samples(False)
    for seed in range(20):
        text, image = draw_row(samples, random.Random(seed), 0.0)
        assert len(text) == 1
        assert image[0, 0].max() == 0


def test_images_travel_as_png_data_urls(makers: dict[bool, CaseMaker]) -> None:
    case = draw_many(makers[True], "digits_instant", 1)[0]
    url = next(p["image_url"]["url"] for p in case.messages[-1]["content"] if "image_url" in p)
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")
