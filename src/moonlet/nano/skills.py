"""Seeded conversations that show what nano can do, each with the reasoning and answer wanted.

A `Case` is a conversation in the shape of the OpenAI API, so that training and test go through the
same parser and prompt template as a served request. Training and test are disjoint by construction: sums
and typed questions are told apart by their hash, identity questions and handwritten samples by lists.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moonlet.nano import arithmetic, beyond, identity
from moonlet.nano.digits import DigitSamples, data_url, draw_row

SKILLS = (
    "sum_thinking",
    "sum_small",
    "sum_instant",
    "digits_thinking",
    "digits_instant",
    "identity",
    "beyond",
)
# Share of each skill in training: the ones that are harder to learn get more.
WEIGHTS = {"sum_thinking": 30, "sum_small": 9, "sum_instant": 9, "digits_thinking": 14, "digits_instant": 14, "identity": 16, "beyond": 8}  # fmt: skip

IMAGE_PHRASES = {
    "en": """what number is this|what digits are these|which digits do you see|read the digits|read this number|read the number in the image|what is written in the image|what does it say|what number do you see
what is in the image|what does the image show|read this|which number is in the picture|what are the digits|tell me the digits|can you read this|what number is in the image|digits|number|which digits are in the image
describe the image|look at the picture and read the number|please read the handwritten digits|what do you see|and this one|and now|what about this image|transcribe the digits|which number is this|read it""",
    "pt": """que número é este|que número é esse|que dígitos são estes|que dígitos vês|quais dígitos você vê|lê os dígitos|leia os dígitos|lê este número|leia o número na imagem|o que está escrito na imagem|o que diz aqui
o que está na imagem|o que mostra a imagem|lê isto|leia isto|qual é o número na imagem|quais são os dígitos|diz-me os dígitos|consegues ler isto|você consegue ler isto|que número está na imagem|dígitos|número
descreve a imagem|olha para a imagem e lê o número|lê os dígitos escritos à mão|o que vês|o que você vê|e este|e agora|e esta imagem|transcreve os dígitos|que número vês|lê""",
}  # fmt: skip
IMAGE_ANSWER = {"en": "The image shows {}.", "pt": "A imagem mostra {}."}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.|You are moonlet nano.|You are a helpful and concise assistant.|Be brief.|You are an AI assistant.|Answer the user.|You are a friendly assistant."
    "|You are a math tutor.|Answer truthfully.|És um assistente útil.|Você é um assistente prestativo.|Sê breve.|You are Kimi, an AI assistant created by Moonshot AI.|Help the user with short answers."
).split("|")  # fmt: skip
OPENINGS = {
    "en": ("please ", "hi, ", "hello, ", "hey, ", "so, ", "ok, ", "now ", "hi! ", "hello! ", "moonlet, ", "question: ", "tell me, ", "excuse me, "),
    "pt": ("por favor ", "olá, ", "oi, ", "bom dia, ", "então, ", "ok, ", "agora ", "olá! ", "oi! ", "moonlet, ", "pergunta: ", "diz-me, ", "desculpa, "),
}  # fmt: skip
CLOSINGS = {"en": (" please", ", please", " thanks", ". thanks", " now"), "pt": (" por favor", ", por favor", " obrigado", ". obrigado", " agora")}  # fmt: skip
_NO_IMAGE = tuple(identity.INTENTS["no_image"].answer.values())
_FOLD = str.maketrans("áàâãéêíóôõúüç", "aaaaeeiooouuc")


@dataclass(frozen=True)
class Case:
    """A conversation to answer. `messages` ends with the user's turn; `skill` is that turn's."""

    skill: str
    messages: list[dict[str, Any]]
    thinking: bool
    reasoning: str
    answer: str


@dataclass(frozen=True)
class _Turn:
    """A question (plain text or content parts) and its reply."""

    content: str | list[dict[str, Any]]
    reasoning: str
    answer: str


@dataclass(frozen=True)
class CaseMaker:
    """Draws cases. `test` selects the held-out share of everything; `samples` must match it."""

    samples: DigitSamples
    test: bool
    makers: dict[str, Callable[[random.Random, str, bool], _Turn]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        makers = {
            "sum_thinking": self._sum,
            "sum_small": self._small_sum,
            "sum_instant": self._sum,
            "digits_thinking": self._digits,
            "digits_instant": self._digits,
            "identity": self._identity,
            "beyond": self._beyond,
        }
        object.__setattr__(self, "makers", makers)

    def draw(self, rng: random.Random, skill: str | None = None) -> Case:
        """One case, of a given skill or in the training mix; sometimes after other turns."""
        skill = skill or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        language = rng.choice(identity.LANGUAGES)
        thinking = _thinks(skill, rng)
        turn = self.makers[skill](rng, language, thinking)
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.15:
            messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        for _ in range(rng.choices((0, 1, 2), (75, 17, 8))[0]):
            earlier = rng.choice(SKILLS)
            past = self.makers[earlier](rng, language, _thinks(earlier, rng))
            messages += [
                {"role": "user", "content": past.content},
                {"role": "assistant", "content": past.answer},
            ]
            if turn.answer in _NO_IMAGE and not isinstance(past.content, str):
                messages = messages[:-2]  # an image was sent after all
        messages.append({"role": "user", "content": turn.content})
        return Case(skill, messages, thinking, turn.reasoning if thinking else "", turn.answer)

    def _sum(self, rng: random.Random, language: str, thinking: bool) -> _Turn:
        question = arithmetic.draw_sum(rng)
        while question.is_held_out != self.test or (question.is_small and not thinking):
            question = arithmetic.draw_sum(rng)
        text = _dress(arithmetic.ask(question, language, rng), language, rng)
        worked = arithmetic.steps(question)
        if thinking:
            return _Turn(text, worked, question.answer)
        return _Turn(text, "", f"{worked}\n{question.answer}")

    def _small_sum(self, rng: random.Random, language: str, thinking: bool) -> _Turn:
        """All 882 small sums are in training: what is held out is the way they are asked."""
        while True:
            question = arithmetic.draw_sum(rng, small=True)
            text = _dress(arithmetic.ask(question, language, rng), language, rng)
            # The plainest ways to ask must be learnt for every pair, so they are never held out.
            plain = len(text) <= len("20 + 20 = ?")
            if (arithmetic.held_out(text) and not plain) == self.test:
                return _Turn(text, "", question.answer)

    def _digits(self, rng: random.Random, language: str, thinking: bool) -> _Turn:
        digits, image = draw_row(self.samples, rng, augment=not self.test)
        picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
        text = _dress(rng.choice(_phrases(IMAGE_PHRASES[language])), language, rng)
        words = {"type": "text", "text": text}
        content = [picture, words] if rng.random() < 0.6 else [words, picture]
        count = f"{len(digits)} digit{'s' if len(digits) > 1 else ''}"
        return _Turn(
            content, f"{count}: {', '.join(digits)}", IMAGE_ANSWER[language].format(digits)
        )

    def _identity(self, rng: random.Random, language: str, thinking: bool) -> _Turn:
        name = rng.choice([*identity.INTENTS, "who", "maker", "able", "other"])
        intent = identity.INTENTS[name]
        text = identity.phrasing(name, language, self.test, rng)
        return _Turn(_dress(text, language, rng), intent.thought, intent.answer[language])

    def _beyond(self, rng: random.Random, language: str, thinking: bool) -> _Turn:
        text = _dress(beyond.question(language, self.test, rng), language, rng)
        return _Turn(text, beyond.THOUGHT, beyond.ANSWER[language])


def _thinks(skill: str, rng: random.Random) -> bool:
    if skill in ("identity", "beyond"):
        return rng.random() < 0.5
    return skill.endswith("thinking")


def _phrases(block: str) -> list[str]:
    return [phrase for line in block.split("\n") for phrase in line.split("|")]


def _dress(text: str, language: str, rng: random.Random) -> str:
    """A bare phrase as somebody may type it: politeness, capitals, accents left out, punctuation."""
    if rng.random() < 0.2:
        text = rng.choice(OPENINGS[language]) + text
    if rng.random() < 0.12:
        text += rng.choice(CLOSINGS[language])
    if language == "pt" and rng.random() < 0.15:
        text = text.translate(_FOLD)
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    elif rng.random() < 0.05:
        text = text.upper()
    if text[-1] not in "?=!":
        text += rng.choices(("", "?", ".", "!", " ?", "??"), (30, 45, 12, 6, 4, 3))[0]
    return text
