"""Held-out accuracy of each skill, by letting the model answer.

Prompts come from the same template that serves; decoding is greedy, with the latent cache. A case counts when
the final answer is the expected text: for a worked sum, its last line.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moonlet.model import Media, Model, load_model
from moonlet.nano.digits import load_samples
from moonlet.nano.rendering import Conversation, Renderer
from moonlet.nano.skills import SKILLS, Case, CaseMaker

BATCH = 100
MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Score:
    """How many of `cases` held-out cases of `skill` were right; `mistakes` shows some of the rest."""

    skill: str
    correct: int
    cases: int
    mistakes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        return self.correct / self.cases


def evaluate(
    folder: Path, cases: int = 500, seed: int = 1, skills: Sequence[str] = SKILLS
) -> Iterator[Score]:
    """Score the model in `folder` on `cases` fresh held-out cases of each skill, one skill after another.

    Raises CheckpointError for a folder that holds no usable model, NotSupportedError without scikit-learn.
    """
    model, renderer = load_model(folder, torch.float32), Renderer.from_folder(folder)
    for skill, drawn in held_out_cases(cases, seed, skills):
        yield score(model, renderer, skill, drawn)


def held_out_cases(
    cases: int, seed: int, skills: Sequence[str] = SKILLS
) -> Iterator[tuple[str, list[Case]]]:
    """`cases` of each skill, the same ones for the same seed. Raises NotSupportedError without scikit-learn."""
    maker = CaseMaker(load_samples(test=True), test=True)
    for skill in skills:
        rng = random.Random(f"{seed} {skill}")
        yield skill, [maker.draw(rng, skill) for _ in range(cases)]


def score(model: Model, renderer: Renderer, skill: str, cases: Sequence[Case]) -> Score:
    """How well `model` answers `cases`."""
    prompts = [renderer.prompt(case) for case in cases]
    replies = generate(model, prompts, renderer.tokenizer.end_ids, MAX_NEW_TOKENS)
    correct, mistakes = 0, []
    for case, reply in zip(cases, replies, strict=True):
        said = renderer.answer(case, reply)
        if said.rpartition("\n")[2] == case.answer.rpartition("\n")[2]:
            correct += 1
        else:
            question = case.messages[-1]["content"]
            mistakes.append(
                f"{question if isinstance(question, str) else '(image)'} -> {said!r}, not {case.answer!r}"
            )
    return Score(skill, correct, len(cases), tuple(mistakes[:20]))


def generate(
    model: Model, prompts: Sequence[Conversation], end_ids: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    """The greedy continuation of each prompt, without the end token; prompts of like length run together."""
    replies: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = _generate_batch(model, [prompts[i] for i in chosen], end_ids, max_new_tokens)
        for index, reply in zip(chosen, batch, strict=True):
            replies[index] = reply
    return replies


@torch.inference_mode()
def _generate_batch(
    model: Model, prompts: Sequence[Conversation], end_ids: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    lengths = torch.tensor([len(prompt.token_ids) for prompt in prompts])
    longest = int(lengths.max())
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt.token_ids)] = torch.tensor(prompt.token_ids)
    cache = model.new_cache(len(prompts), longest + max_new_tokens)
    hidden = model.hidden(input_ids, media=_media(prompts), cache=cache)
    logits = model.logits(hidden[torch.arange(len(prompts)), lengths - 1])
    replies: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    for step in range(max_new_tokens):
        chosen = logits.argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            running[row] = running[row] and token not in end_ids
            if running[row]:
                replies[row].append(token)
        if not any(running):
            break
        # A row's padding lies beyond its own positions, where it is overwritten before it is seen.
        positions = (lengths + step)[:, None]
        logits = model(chosen[:, None], positions=positions, cache=cache)[:, -1]
    return replies


def _media(prompts: Sequence[Conversation]) -> Media | None:
    items = [item for prompt in prompts for item in prompt.media]
    if not items:
        return None
    patches = np.concatenate([item.patches for item in items])
    return Media(torch.from_numpy(patches), [item.grid for item in items])
