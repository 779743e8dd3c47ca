"""The recipe of nano: which network, which data, which hyperparameters, and the folder that results.

prepare(folder)   tokenizer learnt from the training conversations; preprocessing and generation settings
Recipe            what `moonlet.train.run` runs through: settings, and the examples of each step
export(...)       weights in bfloat16 beside those files: a checkpoint folder like any other
"""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from moonlet.chat.tokenizer import KIMI_SPECIAL
from moonlet.checkpoint import save_checkpoint
from moonlet.config import ModelConfig, preset
from moonlet.model import Model
from moonlet.nano.digits import load_samples
from moonlet.nano.rendering import Conversation, Renderer
from moonlet.nano.skills import CaseMaker
from moonlet.nano.vocabulary import BASE_TOKENS, learn_tokens, save_tokenizer

TOKENIZER_CASES = 20_000
# 32 patches: a row of four digits in 28-pixel cells is 16. Larger images are shrunk to this.
PATCH_LIMIT = 32
FILES = (
    "tiktoken.model",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Recipe:
    """Settings and data of one training run. `folder` holds what `prepare` wrote."""

    folder: Path
    steps: int = 1700
    seed: int = 2026
    cases_per_step: int = 112
    peak_lr: float = 1e-2
    warmup_steps: int = 60
    decay_steps: int = 800
    easy_steps: int = 400  # images get harder up to here
    weight_decay: float = 0.1
    tau: float = 100.0
    bias_rate: float = 5e-3
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 2048
    config: ModelConfig = field(default_factory=lambda: preset("nano"))

    def examples(self, step: int) -> list[Conversation]:
        """The conversations of one step; a function of the seed and the step alone."""
        rng = random.Random(f"{self.seed} {step}")
        maker, renderer = self._source
        maker = replace(maker, difficulty=min(1.0, step / self.easy_steps))
        return [renderer.example(maker.draw(rng)) for _ in range(self.cases_per_step)]

    @cached_property
    def _source(self) -> tuple[CaseMaker, Renderer]:
        return training_cases(), Renderer.from_folder(self.folder)


def training_cases() -> CaseMaker:
    """The source of training conversations. Raises NotSupportedError without scikit-learn."""
    return CaseMaker(load_samples(test=False), test=False)


def prepare(folder: Path, seed: int = 2026) -> None:
    """Write the tokenizer and the other small files of the checkpoint to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(
        folder, learn_tokens(_texts(training_cases(), random.Random(f"{seed} tokenizer")))
    )
    media = {
        "in_patch_limit": PATCH_LIMIT,
        "in_patch_limit_each_frame": PATCH_LIMIT,
        "in_patch_limit_video": None,
        "patch_limit_on_one_side": 512,
        "fixed_output_tokens": None,
        "patch_size": 14,
        "merge_kernel_size": 2,
        "temporal_merge_kernel_size": 4,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "sample_fps": 2.0,
        "max_num_frames_each_video": None,
        "timestamp_mode": "hh:mm:ss.fff",
    }
    ends = [BASE_TOKENS + KIMI_SPECIAL[end] for end in ("<|im_end|>", "[EOS]", "[EOT]")]
    # Greedy by default: sums and digits have one right answer.
    generation = {
        "max_length": preset("nano").max_position_embeddings,
        "eos_token_id": ends,
        "do_sample": False,
    }
    _write_json(folder / "preprocessor_config.json", {"media_proc_cfg": media})
    _write_json(folder / "generation_config.json", generation)


def export(model: Model, prepared: Path, folder: Path) -> None:
    """Save `model` in bfloat16 with the files of `prepared`: the checkpoint that ships."""
    save_checkpoint(
        folder,
        model.config,
        model.state_dict(),
        dtype=torch.bfloat16,
        extra_files=[prepared / name for name in FILES],
    )


def _texts(maker: CaseMaker, rng: random.Random) -> Iterable[str]:
    for _ in range(TOKENIZER_CASES):
        case = maker.draw(rng)
        for message in case.messages:
            content = message["content"]
            parts = [{"text": content}] if isinstance(content, str) else content
            yield from (part["text"] for part in parts if "text" in part)
        yield case.reasoning
        yield case.answer


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
