"""The loop on a toy task: it learns, and an interrupted run ends in the same weights as a whole one."""

import json
import os
import pickle
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moonlet.chat.media import MediaItem
from moonlet.config import ModelConfig, preset
from moonlet.errors import CheckpointError, TrainingError
from moonlet.model import Model
from moonlet.train.batch import IGNORED, Batch, collate, micro_batches
from moonlet.train.loop import LOG_FILE, STATE_FILE, StepReport, loss_sum, run
from moonlet.train.schedule import wsd


@dataclass(frozen=True)
class Toy:
    """A prompt of random tokens and its last token as the reply."""

    token_ids: list[int]
    prompt_length: int
    media: list[MediaItem] = field(default_factory=list)


@dataclass(frozen=True)
class ToyRecipe:
    config: ModelConfig = field(default_factory=lambda: replace(preset("tiny"), vision=None))
    seed: int = 1
    steps: int = 8
    peak_lr: float = 5e-3
    warmup_steps: int = 2
    decay_steps: int = 3
    weight_decay: float = 0.1
    tau: float = 100.0
    bias_rate: float = 1e-3
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 64
    more: int = 0

    def examples(self, step: int) -> Sequence[Toy]:
        rng = np.random.default_rng((self.seed, step))
        prompts = [rng.integers(0, 8, rng.integers(3, 9)).tolist() for _ in range(16)]
        return [Toy([*prompt, prompt[-1]], len(prompt)) for prompt in prompts]


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def test_learns_and_logs_every_step(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    model = run(ToyRecipe(steps=40, decay_steps=10), tmp_path, reports.append)
    assert not model.training
    assert reports[-1].loss < 0.5 * reports[0].loss
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))
    assert all(line["max_logit"] > float("-inf") for line in lines)
    assert lines[-1]["tokens"] > 0


def test_interrupted_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole = run(ToyRecipe(), tmp_path / "whole")

    def press_ctrl_c(report: StepReport) -> None:
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(ToyRecipe(), tmp_path / "cut", press_ctrl_c)
    steps: list[int] = []
    resumed = run(ToyRecipe(), tmp_path / "cut", lambda report: steps.append(report.step))
    assert steps == [4, 5, 6, 7]
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(a, b)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(ToyRecipe(steps=1), tmp_path)
    for other in (
        {"peak_lr": 1e-3},
        {"micro_batch_tokens": 65},  # it changes the order of additions
        {"more": 1},
        {"config": replace(ToyRecipe().config, rms_norm_eps=1e-3)},
    ):
        with pytest.raises(CheckpointError, match="another recipe or other data"):
            run(replace(ToyRecipe(steps=1), **other), tmp_path)


@dataclass(frozen=True)
class FolderRecipe(ToyRecipe):
    folder: Path = Path()


@pytest.mark.parametrize("name", ["tiktoken.model", "preprocessor_config.json"])
def test_the_state_belongs_to_the_files_that_made_its_data(tmp_path: Path, name: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / name).write_text("1")
    run(FolderRecipe(steps=1, folder=here), here)
    here.rename(there)  # the place does not matter
    run(FolderRecipe(steps=1, folder=there), there)
    (there / name).write_text("2")
    with pytest.raises(CheckpointError, match="other data"):
        run(FolderRecipe(steps=1, folder=there), there)


class Harm:
    """What a pickle may hold; it must never be called."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


@pytest.mark.parametrize(
    "spoil", ["cut", "empty", "text", "pickle", "list", "tensor", "keys", "part"]
)
def test_a_file_that_is_no_state_is_one_sentence(tmp_path: Path, spoil: str) -> None:
    run(ToyRecipe(steps=1), tmp_path)
    path = tmp_path / STATE_FILE
    state = torch.load(path, weights_only=True)
    match spoil:
        case "cut":
            path.write_bytes(path.read_bytes()[:1000])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a state\n")
        case "pickle":
            path.write_bytes(pickle.dumps(Harm()))
        case "list":
            torch.save([1], path)
        case "tensor":
            torch.save(torch.zeros(3), path)
        case "keys":
            torch.save({"recipe": state["recipe"]}, path)
        case _:
            state["model"].popitem()
            torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged or no state") as caught:
        run(ToyRecipe(steps=1), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_the_state_before(tmp_path: Path) -> None:
    run(ToyRecipe(), tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(report: StepReport) -> None:
        if report.step == 1:  # files may grow no more from here on
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    (tmp_path / "cut").mkdir()
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*state\.pt: ") as caught:
            run(ToyRecipe(), tmp_path / "cut", fill, save_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path / "cut")) == [LOG_FILE, STATE_FILE]
    resumed = run(ToyRecipe(), tmp_path / "cut")
    whole = torch.load(tmp_path / STATE_FILE, weights_only=True)["model"]
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), weights(resumed), strict=True))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def spoiled(model: Model, batch: Batch) -> torch.Tensor:
        loss = loss_sum(model, batch)
        if where == "loss":
            return loss * float("nan")
        weight = next(model.parameters())
        return loss + (weight - weight).sqrt().sum()  # 0, with a slope of inf - inf

    reports: list[StepReport] = []

    def later(report: StepReport) -> None:
        reports.append(report)
        if report.step == 2:
            monkeypatch.setattr("moonlet.train.loop.loss_sum", spoiled)

    with pytest.raises(TrainingError, match=rf"step 3: .*{where}.* nan.*lower learning rate"):
        run(ToyRecipe(), tmp_path, later, save_every=1)
    assert [report.step for report in reports] == [0, 1, 2]
    assert torch.load(tmp_path / STATE_FILE, weights_only=True)["done"] == 3


def test_loss_covers_the_reply_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    recipe = ToyRecipe()
    model = Model(recipe.config)
    short, long = Toy([1, 2, 3, 4], 2), Toy([5, 6, 7, 0, 1, 2, 3], 5)
    together = loss_sum(model, collate([short, long]))
    alone = loss_sum(model, collate([short])) + loss_sum(model, collate([long]))
    torch.testing.assert_close(together, alone)
    assert collate([short]).targets.tolist() == [[IGNORED, 3, 4]]


def test_micro_batches_hold_every_example_once_within_the_limit() -> None:
    examples = [Toy(list(range(n)), 1) for n in (30, 5, 9, 100, 5, 31, 8)]
    batches = micro_batches(examples, 64)
    assert sum(batch.input_ids.shape[0] for batch in batches) == len(examples)
    assert sum(batch.num_targets for batch in batches) == sum(
        len(e.token_ids) - 1 for e in examples
    )
    for batch in batches:
        assert batch.input_ids.numel() <= 64 or batch.input_ids.shape[0] == 1


def test_media_of_all_rows_are_packed_in_order() -> None:
    items = [
        MediaItem(np.full((h * w, 3, 14, 14), value, np.float32), (1, h, w))
        for value, h, w in ((1.0, 2, 2), (2.0, 2, 4))
    ]
    batch = collate([Toy([1, 2, 3], 1, [items[0]]), Toy([1, 2, 3], 1, [items[1]])])
    assert batch.media is not None
    assert batch.media.grids == [(1, 2, 2), (1, 2, 4)]
    assert batch.media.patches[:, 0, 0, 0].tolist() == [1.0] * 4 + [2.0] * 8


def test_schedule_warms_up_holds_and_decays() -> None:
    rates = [wsd(step, 100, 1.0, 10, 30, floor=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:70] == [1.0] * 60
    assert all(a > b for a, b in pairwise(rates[70:]))
    assert 0.1 <= rates[-1] < 0.11
