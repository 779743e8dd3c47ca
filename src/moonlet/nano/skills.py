"""Seeded conversations that show what nano can do, each with the reasoning and answer wanted.

A `Case` is a conversation in the shape of the OpenAI API, so that training and test go through the
same parser and prompt template as a served request. Training and test are disjoint by construction: sums
and small sums' wordings are told apart by their hash, other questions and handwritten samples by lists.
"""

import random
from dataclasses import dataclass
from typing import Any

from moonlet.nano import arithmetic
from moonlet.nano.digits import DigitSamples, data_url, draw_plain_row, draw_row
from moonlet.nano.phrases import LANGUAGES, fill, section

# Every skill with its share of the training cases: what is harder to learn gets more.
WEIGHTS = {
    "sum_thinking": 24,  # up to three digits, steps in the reasoning
    "sum_small": 20,  # instant mode, both operands up to 20: answered at once
    "sum_instant": 8,  # instant mode, larger: worked out in the answer
    "digits_thinking": 14,  # an image of one to four handwritten digits
    "digits_instant": 14,
    "identity": 14,  # who are you, what can you do, hello, thanks
    "beyond": 9,  # anything else: an honest refusal
}
SKILLS = tuple(WEIGHTS)
_FOLD = str.maketrans("áàâãéêíóôõúüç", "aaaaeeiooouuc")


@dataclass(frozen=True)
class Case:
    """A conversation to answer. `messages` ends with the user's turn, which asks for `skill`."""

    skill: str
    messages: list[dict[str, Any]]
    thinking: bool
    reasoning: str
    answer: str


@dataclass(frozen=True)
class _Turn:
    """A question, as text or as content parts, and its reply."""

    content: str | list[dict[str, Any]]
    reasoning: str
    answer: str


@dataclass(frozen=True)
class CaseMaker:
    """Draws cases. `test` selects the held-out share of everything; `samples` must match it.

    `difficulty` from 0 to 1 is that of the training images (see `digits.draw_row`).
    """

    samples: DigitSamples
    test: bool
    difficulty: float = 1.0

    def draw(self, rng: random.Random, skill: str | None = None) -> Case:
        """One case, of a given skill or in the training mix; sometimes after other turns."""
        skill = skill or rng.choices(SKILLS, list(WEIGHTS.values()))[0]
        language = rng.choice(LANGUAGES)
        thinking = _thinks(skill, rng)
        turn = self._turn(skill, language, thinking, rng)
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.15:
            prompt = rng.choice(section("dress")["system_prompts"])
            messages.append({"role": "system", "content": prompt})
        for _ in range(rng.choices((0, 1, 2), (85, 11, 4))[0]):
            messages += self._past(turn, language, rng)
        messages.append({"role": "user", "content": turn.content})
        return Case(skill, messages, thinking, turn.reasoning if thinking else "", turn.answer)

    def _past(self, turn: _Turn, language: str, rng: random.Random) -> list[dict[str, Any]]:
        """An earlier question and answer that `turn` may follow."""
        skill = rng.choice(SKILLS)
        past = self._turn(skill, language, _thinks(skill, rng), rng)
        no_image = section("intent")["no_image"]["answer"].values()
        if turn.answer in no_image and not isinstance(past.content, str):
            return []  # an image would have been sent after all
        return [
            {"role": "user", "content": past.content},
            {"role": "assistant", "content": past.answer},
        ]

    def _turn(self, skill: str, language: str, thinking: bool, rng: random.Random) -> _Turn:
        match skill:
            case "sum_thinking" | "sum_instant":
                return self._sum(language, thinking, rng)
            case "sum_small":
                return self._small_sum(language, rng)
            case "digits_thinking" | "digits_instant":
                return self._digits(language, rng)
            case "identity":
                intents = section("intent")
                # The four that matter most are drawn about twice as often.
                name = rng.choice([*intents, "who", "maker", "able", "other"])
                return self._talk(intents[name], language, rng)
            case "beyond":
                return self._talk(section("beyond"), language, rng)
        raise ValueError(f"no skill {skill!r}; there are {', '.join(SKILLS)}")

    def _sum(self, language: str, thinking: bool, rng: random.Random) -> _Turn:
        question = arithmetic.draw_sum(rng)
        while question.is_held_out != self.test or (question.is_small and not thinking):
            question = arithmetic.draw_sum(rng)
        text = _dress(arithmetic.ask(question, language, rng), language, rng)
        worked = arithmetic.steps(question)
        answer = question.answer if thinking else f"{worked}\n{question.answer}"
        return _Turn(text, worked, answer)

    def _small_sum(self, language: str, rng: random.Random) -> _Turn:
        """All 882 small sums are in training: what is held out is the way they are asked."""
        while True:
            question = arithmetic.draw_sum(rng, small=True)
            text = _dress(arithmetic.ask(question, language, rng), language, rng)
            # The plainest ways to ask must be learnt for every pair, so they are never held out.
            plain = len(text) <= len("20 + 20 = ?")
            if (arithmetic.held_out(text) and not plain) == self.test:
                return _Turn(text, "", question.answer)

    def _digits(self, language: str, rng: random.Random) -> _Turn:
        if self.test:
            digits, image = draw_plain_row(self.samples, rng)
        else:
            digits, image = draw_row(self.samples, rng, self.difficulty)
        picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
        phrases = section("image")
        words = {"type": "text", "text": _dress(rng.choice(phrases[language]), language, rng)}
        content = [picture, words] if rng.random() < 0.6 else [words, picture]
        count = f"{len(digits)} digit{'s' if len(digits) > 1 else ''}"
        reasoning = f"{count}: {', '.join(digits)}"
        return _Turn(content, reasoning, phrases["answer"][language].format(digits))

    def _talk(self, intent: dict[str, Any], language: str, rng: random.Random) -> _Turn:
        part = "train" if rng.random() < 0.5 else "frames"
        if self.test:
            part = "held_out"
        phrases = intent.get(part, intent["train"])[language]
        while True:
            text = fill(rng.choice(phrases), language, self.test, rng)
            text = _dress(text, language, rng)
            if self.test or not _gives_away(text, language):
                break
        if not self.test and rng.random() < 0.15:
            text = _mistyped(text, rng)
        return _Turn(text, intent["thought"], intent["answer"][language])


def _gives_away(text: str, language: str) -> bool:
    """Whether a wording of the test, or its beginning up to a slot, is part of `text`."""
    return any(
        phrase.partition("{")[0] in text.lower()
        for intent in section("intent").values()
        for phrase in intent["held_out"][language]
    )


def _mistyped(text: str, rng: random.Random) -> str:
    """`text` with one letter left out or doubled."""
    spots = [i for i, letter in enumerate(text) if letter.isalpha()]
    if len(spots) < 5:
        return text
    spot = rng.choice(spots)
    return text[:spot] + text[spot] * rng.choice((0, 2)) + text[spot + 1 :]


def _thinks(skill: str, rng: random.Random) -> bool:
    if skill in ("identity", "beyond"):
        return rng.random() < 0.5
    return skill.endswith("thinking")


def _dress(text: str, language: str, rng: random.Random) -> str:
    """A bare phrase as somebody may type it: politeness, capitals, accents left out, punctuation."""
    words = section("dress")
    if rng.random() < 0.2:
        text = rng.choice(words["openings"][language]) + text
    if rng.random() < 0.12:
        text += rng.choice(words["closings"][language])
    if language == "pt" and rng.random() < 0.15:
        text = text.translate(_FOLD)
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    elif rng.random() < 0.05:
        text = text.upper()
    if text[-1] not in "?=!":
        text += rng.choices(("", "?", ".", "!", " ?", "??"), (30, 45, 12, 6, 4, 3))[0]
    return text
