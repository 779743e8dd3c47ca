"""The training loop: a recipe and an empty folder in, a trained model out; interrupted, it goes on.

A step is a function of the recipe and its number alone: `recipe.examples(step)` draws the data, so a
run that is resumed continues exactly where it stopped.

    examples -> micro-batches -> loss, gradients -> clip by norm -> MuonClip -> log line

Weights, gradients and products are float32: bfloat16 autocast was a fifth slower for a model of four
million parameters on a CPU that has it. Only Newton-Schulz runs in bfloat16, as in Kimi's recipe.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.errors import CheckpointError
from moonlet.model import Model
from moonlet.model.attention import LatentAttention
from moonlet.train.batch import IGNORED, Batch, Example, micro_batches
from moonlet.train.muonclip import MuonClip
from moonlet.train.schedule import wsd

STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"


class Recipe(Protocol):
    """What to train and how: settings, and the data of every step."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def peak_lr(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def decay_steps(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def tau(self) -> float: ...
    @property
    def bias_rate(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def micro_batch_tokens(self) -> int: ...
    def examples(self, step: int) -> Sequence[Example]: ...


@dataclass(frozen=True)
class StepReport:
    """What one step did. `loss` is per target token; `max_violation` is busiest / mean load - 1."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    max_logit: float
    clipped_heads: int
    max_violation: float
    tokens: int
    seconds: float


def run(
    recipe: Recipe,
    folder: Path,
    report: Callable[[StepReport], None] = lambda _: None,
    save_every: int = 200,
) -> Model:
    """Train to the end of the recipe and return the model, in evaluation mode.

    `folder` receives the log and the state; a state found there is continued. Ctrl-C ends the current
    step, saves and raises KeyboardInterrupt. Raises CheckpointError when the state is another recipe's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = Model(recipe.config)
    model.init_weights(recipe.seed)
    model.train()
    track_logits(model)
    optimizer = MuonClip(
        model, recipe.weight_decay, tau=recipe.tau, bias_rate=recipe.bias_rate, dtype=torch.bfloat16
    )
    done = _resume(folder / STATE_FILE, recipe, model, optimizer)
    with _interruptible() as interrupted, (folder / LOG_FILE).open("a") as log:
        for step in range(done, recipe.steps):
            last = train_step(recipe, model, optimizer, step)
            log.write(json.dumps(asdict(last)) + "\n")
            log.flush()
            report(last)
            if interrupted() or (step + 1) % save_every == 0 or step + 1 == recipe.steps:
                _save(folder / STATE_FILE, recipe, model, optimizer, step + 1)
            if interrupted():
                raise KeyboardInterrupt
    return model.eval()


def train_step(recipe: Recipe, model: Model, optimizer: MuonClip, step: int) -> StepReport:
    """One optimizer step over all examples of `step`."""
    start = time.perf_counter()
    batches = micro_batches(recipe.examples(step), recipe.micro_batch_tokens)
    num_targets = sum(batch.num_targets for batch in batches)
    loss = 0.0
    for batch in batches:
        share = loss_sum(model, batch) / num_targets
        share.backward()
        loss += float(share.detach())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    lr = wsd(step, recipe.steps, recipe.peak_lr, recipe.warmup_steps, recipe.decay_steps)
    seen = optimizer.step(lr)
    optimizer.zero_grad()
    return StepReport(
        step=step,
        loss=loss,
        lr=lr,
        grad_norm=float(norm),
        max_logit=seen["max_logit"],
        clipped_heads=int(seen["clipped_heads"]),
        max_violation=seen["max_violation"],
        tokens=sum(batch.input_ids.numel() for batch in batches),
        seconds=time.perf_counter() - start,
    )


def loss_sum(model: Model, batch: Batch) -> Tensor:
    """Summed cross entropy of the targets, in float32; only their logits are computed."""
    hidden = model.hidden(batch.input_ids, media=batch.media)
    wanted = batch.targets != IGNORED
    logits = model.logits(hidden[wanted])
    return F.cross_entropy(logits.float(), batch.targets[wanted], reduction="sum")


def track_logits(model: Model) -> None:
    """Have every attention layer keep the maxima that QK-Clip needs."""
    for module in model.modules():
        if isinstance(module, LatentAttention):
            module.track_max_logit = True


def _save(path: Path, recipe: Recipe, model: Model, optimizer: MuonClip, done: int) -> None:
    state = {
        "done": done,
        "recipe": _identity(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    os.replace(beside, path)


def _resume(path: Path, recipe: Recipe, model: Model, optimizer: MuonClip) -> int:
    """Take up the state at `path` if there is one; returns how many steps are done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged; remove it to train from the start") from error
    if state["recipe"] != _identity(recipe):
        raise CheckpointError(
            f"{path} is the state of another recipe; choose another folder or remove it"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["done"]


def _identity(recipe: Recipe) -> str:
    names = ("config", "seed", "steps", "peak_lr", "warmup_steps", "decay_steps", "weight_decay", "tau", "bias_rate", "max_grad_norm")  # fmt: skip
    return repr({name: getattr(recipe, name) for name in names})


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C only sets a flag, so that a step is never cut in two; the second one kills."""
    hits: list[int] = []

    def remember(number: int, _frame: object) -> None:
        hits.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(hits)
    finally:
        signal.signal(signal.SIGINT, before)
