"""Batched generation with the cache against one prompt at a time without; and what counts as right."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moonlet.chat.media import MediaLimits
from moonlet.chat.tokenizer import Tokenizer
from moonlet.checkpoint import save_checkpoint
from moonlet.config import preset
from moonlet.model import Media, Model, load_packed
from moonlet.nano import evaluate
from moonlet.nano.card import FILE, write_card
from moonlet.nano.digits import load_samples
from moonlet.nano.evaluate import Score, generate, held_out_cases
from moonlet.nano.recipe import PATCH_LIMIT
from moonlet.nano.rendering import Conversation, Renderer
from moonlet.nano.skills import SKILLS, Case, CaseMaker
from moonlet.nano.vocabulary import learn_tokens, save_tokenizer

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    # Every byte pair of a long text, so that the vocabulary reaches nano's 768 tokens.
    texts = [
        f"{a}{b}" * (i + 1)
        for i, a in enumerate("abcdefghijklmnopqrstuvwxyz")
        for b in "aeiourstlnmcdpgbvfhjqxzywk"
    ]
    save_tokenizer(folder, learn_tokens(texts))
    return Renderer(Tokenizer.from_folder(folder), MediaLimits(image_patches=PATCH_LIMIT))


def alone(model: Model, prompt: Conversation, end_ids: frozenset[int], count: int) -> list[int]:
    """The same greedy continuation by whole forward passes over one prompt."""
    ids, reply = list(prompt.token_ids), []
    media = None
    if prompt.media:
        patches = torch.cat([torch.from_numpy(item.patches) for item in prompt.media])
        media = Media(patches, [item.grid for item in prompt.media])
    for _ in range(count):
        token = int(model(torch.tensor([ids]), media=media)[0, -1].argmax())
        if token in end_ids:
            break
        reply.append(token)
        ids.append(token)
    return reply


def test_prompts_of_all_lengths_get_the_reply_they_get_alone(renderer: Renderer) -> None:
    torch.manual_seed(0)
    model = Model(preset("nano")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from uniform, so that ties cannot hide a difference
    maker, rng = CaseMaker(load_samples(True), True), random.Random(2)
    prompts = [renderer.prompt(maker.draw(rng, skill)) for skill in SKILLS for _ in range(2)]
    assert len({len(prompt.token_ids) for prompt in prompts}) > 5
    # Some tokens end a reply, so that rows stop at different times.
    ends = frozenset(range(0, 1024, 16))
    with torch.no_grad():
        wanted = [alone(model, prompt, ends, 12) for prompt in prompts]
    assert len({len(reply) for reply in wanted}) > 1
    assert generate(model, prompts, ends, 12) == wanted


def test_a_quantized_model_gives_the_replies_it_gives_alone(
    renderer: Renderer, tmp_path: Path
) -> None:
    config = replace(preset("nano"), initializer_range=0.1)
    save_checkpoint(tmp_path / "int4", config, Model(config).state_dict(), quantize="int4")
    model = load_packed(tmp_path / "int4")
    prompts = [renderer.prompt(case) for _, [case] in held_out_cases(1, 3)]
    with torch.no_grad():
        wanted = [alone(model, prompt, frozenset(), 6) for prompt in prompts]
    assert generate(model, prompts, frozenset(), 6) == wanted


def test_a_seed_draws_the_same_cases() -> None:
    drawn = dict(held_out_cases(3, 1))
    assert tuple(drawn) == SKILLS
    assert {skill: cases[:2] for skill, cases in drawn.items()} == dict(held_out_cases(2, 1))
    assert drawn != dict(held_out_cases(3, 2))


def test_only_the_last_line_of_the_answer_counts(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(
        "sum_instant", [{"role": "user", "content": "21+30"}], False, "", "steps\n21 + 30 = 51"
    )
    said = ["21 + 30 = 51", "other steps\n21 + 30 = 51", "21 + 30 = 52", "21 + 30 = 51\n"]
    replies = [renderer.tokenizer.encode(text) for text in said]
    monkeypatch.setattr(evaluate, "generate", lambda *_: replies)
    scored = evaluate.score(Model(preset("tiny")), renderer, "sum_instant", [case] * 4)
    assert (scored.correct, scored.cases, scored.accuracy) == (2, 4, 0.5)
    assert len(scored.mistakes) == 2
    assert "21+30" in scored.mistakes[0]


def test_card_shows_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moonlet.nano.card.read_config", lambda _: preset("nano"))
    write_card(tmp_path, [Score(skill, 487, 500) for skill in SKILLS], seed=7)
    text = (tmp_path / FILE).read_text()
    assert text.count("| 487 of 500 | 97.4% |") == len(SKILLS)
    assert "python -m moonlet.nano --cases 500 --seed 7" in text
    assert "4.1 million" in text
