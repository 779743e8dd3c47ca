"""Training sequences are what a served request reads, followed by the reply and nothing else."""

import random
from pathlib import Path

import pytest

from moonlet.chat.media import MediaLimits
from moonlet.chat.tokenizer import Tokenizer
from moonlet.nano.digits import load_samples
from moonlet.nano.rendering import Renderer
from moonlet.nano.skills import SKILLS, Case, CaseMaker
from moonlet.nano.vocabulary import learn_tokens, save_tokenizer

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, learn_tokens(["347 + 285 = 632"], 300))
    return Renderer(Tokenizer.from_folder(folder), MediaLimits(image_patches=32))


def case(thinking: bool) -> Case:
    messages = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "1 + 1 = 2"},
        {"role": "user", "content": "2+2"},
    ]
    return Case("sum_small", messages, thinking, "2+2\n2+2=4: 4" if thinking else "", "2 + 2 = 4")


def test_thinking_reply_closes_the_block_that_the_prompt_opened(renderer: Renderer) -> None:
    example = renderer.example(case(thinking=True))
    text = renderer.tokenizer.decode(example.token_ids)
    assert text == (
        "<|im_user|>user<|im_middle|>1+1<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think></think>1 + 1 = 2<|im_end|>"
        "<|im_user|>user<|im_middle|>2+2<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think>2+2\n2+2=4: 4</think>2 + 2 = 4<|im_end|>"
    )
    reply = renderer.tokenizer.decode(example.token_ids[example.prompt_length :])
    assert reply == "2+2\n2+2=4: 4</think>2 + 2 = 4<|im_end|>"


def test_instant_prompt_has_the_empty_block_already(renderer: Renderer) -> None:
    example = renderer.example(case(thinking=False))
    assert renderer.tokenizer.decode(example.token_ids).endswith(
        "<think></think>2 + 2 = 4<|im_end|>"
    )
    assert renderer.prompt(case(False)).token_ids == example.token_ids[: example.prompt_length]


@pytest.mark.parametrize("thinking", [False, True])
def test_answer_is_read_back_from_a_reply(renderer: Renderer, thinking: bool) -> None:
    asked = case(thinking)
    example = renderer.example(asked)
    reply = example.token_ids[example.prompt_length : -1]
    assert renderer.answer(asked, reply) == "2 + 2 = 4"


def test_a_reply_that_never_stops_thinking_has_no_answer(renderer: Renderer) -> None:
    assert renderer.answer(case(True), renderer.tokenizer.encode("2+2")) == ""


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_fits_the_template_and_the_context(renderer: Renderer, skill: str) -> None:
    maker, rng = CaseMaker(load_samples(False), False), random.Random(1)
    pad = renderer.tokenizer.id_of("<|media_pad|>")
    for _ in range(20):
        example = renderer.example(maker.draw(rng, skill))
        assert example.token_ids.count(pad) == sum(item.num_tokens for item in example.media)
        assert example.prompt_length < len(example.token_ids) < 2048
