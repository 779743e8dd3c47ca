"""What llama.cpp computes from files of `moonlet convert`, frozen beside this file.

    python -m tests.checkpoint.peer_convert PEER_PYTHON

converts nano and two tiny random models with each mix and lets PEER_PYTHON (a Python with `llama_cpp`, from
llama-cpp-python 0.3.36) compute logits from the files; some are kept in `peer_convert.json`. To be run again
when an encoder or a mix changes.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from moonlet import nano
from moonlet.chat.tokenizer import BYTE_TOKENS, write_vocabulary
from moonlet.checkpoint import save_checkpoint
from moonlet.checkpoint.convert import Conversion, to_gguf
from moonlet.checkpoint.parts import Wish
from moonlet.config import ModelConfig, preset, tensor_specs
from moonlet.quant.mixes import load_mix
from tests.checkpoint.peer_gguf import ask

RESULTS = Path(__file__).with_name("peer_convert.json")
TOKENS = [5, 70, 100, 300, 41, 42, 400, 7, 9, 33, 401, 12]
COLUMNS = 20  # of the logits are kept

# Rows of 256, which blocks of all types fill, but for the key half of kv_b.
K25 = replace(
    preset("tiny"), hidden_size=256, intermediate_size=256, moe_intermediate_size=256,
    num_hidden_layers=2, num_attention_heads=8, q_lora_rank=256, kv_lora_rank=256,
    qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=6,
    num_experts_per_tok=2, first_k_dense_replace=1,
)  # fmt: skip
MOONLIGHT = replace(
    K25, model_type="deepseek_v3", vision=None, media_placeholder_token_id=None, q_lora_rank=None
)
MIXES = ("f32", "q8_0", "q4_k_m", "q2_k_xl", "tq1_0", "int4")
MODELS: dict[str, ModelConfig | None] = {"nano": None, "k25": K25, "moonlight": MOONLIGHT}


def write_model(folder: Path, config: ModelConfig) -> Path:
    """Random weights, the same on every machine, of a model in which few routers are undecided."""
    rng = np.random.default_rng(3)
    weights: dict[str, torch.Tensor] = {}
    for spec in tensor_specs(config):
        values = torch.from_numpy(rng.standard_normal(spec.shape, np.float32))
        if len(spec.shape) == 1:
            values = values * 0.1 + (1 if "norm" in spec.name else 0)
        elif spec.part == "router":
            values = values * 0.5
        elif spec.part != "embedding":
            values = values * 0.7 * spec.shape[-1] ** -0.5
        weights[spec.name] = values
    save_checkpoint(folder, config, weights, dtype=torch.bfloat16)
    write_vocabulary(folder / "tiktoken.model", BYTE_TOKENS)
    return folder


def write_cases(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files, one after the other: their names and where they lie."""
    for name, config in MODELS.items():
        source = write_model(folder / name, config) if config else nano.folder()
        for mix in MIXES:
            if mix == "f32":
                wish = Wish(None, "F32")
            else:
                wish = Wish(load_mix("native-int4" if mix == "int4" else mix))
            target = folder / f"{name}-{mix}" / "m.gguf"
            to_gguf(Conversion(source, target, wish), 1, lambda done, total: None)
            yield f"{name} {mix}", target


def shown(logits: np.ndarray) -> np.ndarray:
    """The part of [tokens, vocabulary] that is kept."""
    return logits[:, :: logits.shape[1] // COLUMNS][:, :COLUMNS]


def freeze(python: str) -> dict[str, list[list[float]]]:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npy"
        for name, path in write_cases(Path(folder)):
            ask(python, "logits", path, [TOKENS, 32.0], out)
            kept = shown(np.load(out)).tolist()
            results[name] = [[float(f"{value:.5g}") for value in row] for row in kept]
    return results


if __name__ == "__main__":
    RESULTS.write_text(json.dumps(freeze(sys.argv[1])) + "\n")
