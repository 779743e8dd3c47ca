"""The embedded model through the API, as the README's first command offers it."""

import base64
import io
import json
import random
import shlex
from collections.abc import Iterator

import pytest
from openai import OpenAI
from PIL import Image

from moonlet import nano
from moonlet.checkpoint import read_config
from moonlet.cli import serve as cli_serve
from moonlet.cli.models import load_provider
from moonlet.engine import LocalProvider
from moonlet.engine.local import compute_type
from moonlet.model import load_model
from moonlet.nano.digits import data_url, draw_plain_row, load_samples
from moonlet.nano.evaluate import generate
from moonlet.nano.rendering import Renderer
from moonlet.nano.skills import SKILLS, CaseMaker
from moonlet.server import create_app
from tests.server.running import serving


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    provider = load_provider(None)
    assert isinstance(provider, LocalProvider)
    with serving(create_app(provider)) as server, server.client() as client:
        yield client
    provider.close()


def ask(client: OpenAI, content: object, thinking: bool = True) -> tuple[str, str]:
    """Reasoning and answer."""
    answer = client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": content}],  # pyright: ignore[reportArgumentType]
        extra_body={"thinking": {"type": "enabled" if thinking else "disabled"}},
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "stop"
    return getattr(message, "reasoning_content", None) or "", message.content or ""


def test_the_request_that_serve_prints_is_answered_with_reasoning(client: OpenAI) -> None:
    provider = load_provider(None)
    assert isinstance(provider, LocalProvider)
    words = shlex.split(cli_serve.request("http://x", provider))
    provider.close()
    body = json.loads(words[words.index("-d") + 1])
    answer = client.chat.completions.create(
        model=body["model"], messages=body["messages"], extra_body={"thinking": body["thinking"]}
    )
    message = answer.choices[0].message
    assert "632" in (message.content or "")
    assert "carry 1" in getattr(message, "reasoning_content", "")


def test_small_sums_at_once(client: OpenAI) -> None:
    reasoning, answer = ask(client, "What is 7 + 5?", thinking=False)
    assert reasoning == ""
    assert answer.endswith("12")


@pytest.mark.parametrize(
    ("question", "name"), [("Who are you?", "moonlet nano"), ("Quem é você?", "moonlet nano")]
)
def test_it_says_who_it_is(client: OpenAI, question: str, name: str) -> None:
    assert name in ask(client, question)[1].lower()


def test_it_reads_an_image(client: OpenAI) -> None:
    samples, rng = load_samples(test=True), random.Random(5)
    right = 0
    for _ in range(10):
        text, pixels = draw_plain_row(samples, rng)
        image = {"type": "image_url", "image_url": {"url": data_url(pixels)}}
        question = {"type": "text", "text": "What number is in the image?"}
        right += text in ask(client, [image, question])[1]
    assert right >= 8


@pytest.mark.parametrize("skill", SKILLS)
def test_the_server_says_what_the_evaluation_counts(client: OpenAI, skill: str) -> None:
    """The card's figures come from batched decoding; the served path must give the same answers."""
    model = load_model(nano.folder(), compute_type(read_config(nano.folder())))
    renderer = Renderer.from_folder(nano.folder())
    maker, rng = CaseMaker(load_samples(test=True), test=True), random.Random(11)
    cases = [maker.draw(rng, skill) for _ in range(8)]
    replies = generate(
        model, [renderer.prompt(case) for case in cases], renderer.tokenizer.end_ids, 200
    )
    for case, reply in zip(cases, replies, strict=True):
        thinking = {"type": "enabled" if case.thinking else "disabled"}
        answer = client.chat.completions.create(
            model="nano",
            messages=case.messages,  # pyright: ignore[reportArgumentType]
            extra_body={"thinking": thinking},
        )
        assert answer.choices[0].message.content == renderer.answer(case, reply)


def test_a_large_photograph_does_no_harm(client: OpenAI) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((1500, 900), 80).convert("RGB").save(buffer, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert ask(
        client, [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    )
