"""The training loop: a recipe and an empty folder in, a trained model out; interrupted, it goes on.

A step is a function of the recipe and its number alone: `recipe.examples(step)` draws the data, so a
run that is resumed continues exactly where it stopped.

    examples -> micro-batches -> loss, gradients -> clip by norm -> MuonClip -> log line

Weights, gradients and products are float32: bfloat16 autocast was a fifth slower for a model of four
million parameters on a CPU that has it. Only Newton-Schulz runs in bfloat16, as in Kimi's recipe.
"""

import hashlib
import json
import math
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.errors import CheckpointError, TrainingError
from moonlet.model import Model
from moonlet.model.attention import LatentAttention
from moonlet.train.batch import IGNORED, Batch, Example, micro_batches
from moonlet.train.muonclip import MuonClip
from moonlet.train.schedule import wsd

STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"
# The files in a recipe's folder that decide which ids and patches its examples become.
DATA_FILES = ("tiktoken.model", "tokenizer_config.json", "preprocessor_config.json")


class Recipe(Protocol):
    """What to train and how: settings, and the data of every step.

    A dataclass whose fields decide the whole run, but for `folder`, if it has one: the place of the
    DATA_FILES, of which only the content counts.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

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
    step, saves and raises KeyboardInterrupt. Raises CheckpointError when the state is another recipe's or
    damaged, or cannot be written, and TrainingError when the numbers are no longer finite; the last state
    that was saved stays as it is.
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
    """One optimizer step over all examples of `step`.

    Raises TrainingError, before any weight changes, when the loss or its gradient is not finite.
    """
    start = time.perf_counter()
    batches = micro_batches(recipe.examples(step), recipe.micro_batch_tokens)
    num_targets = sum(batch.num_targets for batch in batches)
    loss = 0.0
    for batch in batches:
        share = loss_sum(model, batch) / num_targets
        share.backward()
        loss += float(share.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step}: the loss is {loss} and the gradient norm {norm}, so the run cannot go on; "
            "try a lower learning rate in another folder"
        )
    lr = wsd(step, recipe.steps, recipe.peak_lr, recipe.warmup_steps, recipe.decay_steps)
    seen = optimizer.step(lr)
    optimizer.zero_grad()
    return StepReport(
        step=step,
        loss=loss,
        lr=lr,
        grad_norm=norm,
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
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch wraps what the disk says into words of its own
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise CheckpointError(f"cannot write {path}: {reason}; an earlier one is kept") from error
    finally:
        beside.unlink(missing_ok=True)


def _resume(path: Path, recipe: Recipe, model: Model, optimizer: MuonClip) -> int:
    """Take up the state at `path` if there is one; returns how many steps are done."""
    if not path.exists():
        return 0
    with _told_if_damaged(path):
        state = torch.load(path, weights_only=True)
        found = state["recipe"]
    if found != _identity(recipe):
        raise CheckpointError(
            f"{path} is the state of another recipe or other data; choose another folder or remove it"
        )
    with _told_if_damaged(path):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["done"]


@contextmanager
def _told_if_damaged(path: Path) -> Iterator[None]:
    wrong = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError)
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of torch, about files that it did not write
            yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (*wrong, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is damaged or no state of a training run; remove it to train from the start"
        ) from error


def _identity(recipe: Recipe) -> str:
    """What decides the run: every setting, and the content of the files behind the data."""
    decides = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name != "folder"}
    folder: Path | None = getattr(recipe, "folder", None)
    for path in [folder / name for name in DATA_FILES] if folder else []:
        if path.exists():
            decides[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return repr(decides)


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
