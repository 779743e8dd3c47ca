"""What llama.cpp computes from our GGUF files, frozen beside this file.

    python -m tests.checkpoint.peer_gguf PEER_PYTHON

writes the models of CASES, lets PEER_PYTHON (a Python with `llama_cpp`, from llama-cpp-python 0.3.36, and for
the picture its libmtmd) compute with them in float32, and keeps some of the results in `peer_gguf.json`, with
the digest of each file that it read. The last case goes through llama.cpp's own quantizer; that file is kept whole.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moonlet import nano
from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer
from moonlet.checkpoint.gguf_write import gguf_metadata
from moonlet.config import ModelConfig, RopeConfig, preset, tensor_specs
from tests.checkpoint.tiny_gguf import slots_of, write_mmproj, write_slots

RESULTS = Path(__file__).with_name("peer_gguf.json")
QUANTIZED = Path(__file__).with_name("peer_q8_0.gguf")
TOKENS = list(range(5, 45, 2))
SHOWN = (
    slice(None, None, 6),
    slice(None, None, 41),
)  # of logits [20, 512] and of a picture [16, 64]
TEXTS = [
    "Hello, world! How are you?  12345 + 67 = ?", "camelCase HTTPServer", "你好 мир naïve\n\n  x\t y",
    "it's I'LL", "tail  spaces   ", '{"a": [1, 2.5]}', "<|im_end|><think>", "\x00\x7f\xa0é",
]  # fmt: skip

K25 = replace(preset("tiny"), latent_norm_eps=1e-5)
K2 = replace(K25, model_type="kimi_k2", vision=None, media_placeholder_token_id=None)
V3 = replace(K2, model_type="deepseek_v3")
CASES: dict[str, ModelConfig] = {
    "k2": K2,
    "k2 with a hard YaRN step": replace(
        K2, rope=RopeConfig(50_000.0, "yarn", 32.0, 4096, 1.0, 1.0, 1.0, 1.0)
    ),
    "moonlight": replace(V3, q_lora_rank=None, n_shared_experts=2, rope=RopeConfig(50_000.0)),
    "deepseek_v3 in groups": replace(
        V3, n_group=4, topk_group=2, rope=RopeConfig(10_000.0, "yarn", 40.0, 4096, 32, 1, 1.0, 1.0)
    ),
    "deepseek_v2 lite": replace(
        V3, model_type="deepseek_v2", q_lora_rank=None, scoring_func="softmax", topk_method="greedy",
        norm_topk_prob=False, rope=RopeConfig(10_000.0, "yarn", 40.0, 4096, 32, 1, 0.707, 0.707),
    ),
    # Rows that fill blocks of 32, and little else: the file that is kept has 25 KB.
    "quantized": replace(
        V3, hidden_size=32, num_hidden_layers=1, first_k_dense_replace=0, num_attention_heads=1,
        qk_nope_head_dim=32, v_head_dim=32, n_routed_experts=2, num_experts_per_tok=2,
        intermediate_size=32, vocab_size=64, bos_token_id=8, eos_token_ids=(9,), pad_token_id=10,
    ),
}  # fmt: skip


def weights_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights that matter everywhere, the same on every machine."""
    rng = np.random.default_rng(0)
    weights: dict[str, torch.Tensor] = {}
    for spec in tensor_specs(config):
        values = torch.from_numpy(rng.standard_normal(spec.shape, np.float32))
        if len(spec.shape) == 1:
            values = values * 0.1 + (1 if spec.name.endswith("norm.weight") else 0)
        elif spec.part != "embedding":
            values = values * values[0].numel() ** -0.5
        weights[spec.name] = values
    return weights


def write_case(path: Path, config: ModelConfig) -> str:
    """The model as a file of floats; its digest."""
    vocabulary = None
    if config.vocab_size == len(BYTE_TOKENS) + 256:
        vocabulary = BYTE_TOKENS, Tokenizer(BYTE_TOKENS).special
    metadata = gguf_metadata(config, "tiny", 0, vocabulary)
    write_slots(path, metadata, slots_of(config, is_vision=False), weights_of(config), config)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_nano(path: Path) -> None:
    """A file with nano's vocabulary and no tensors."""
    tokenizer = Tokenizer.from_folder(nano.folder())
    tokens = [tokenizer.decode_bytes([i]) for i in range(min(tokenizer.special.values()))]
    metadata = gguf_metadata(preset("nano"), "nano", 0, (tokens, tokenizer.special))
    write_slots(path, metadata, [], {}, preset("nano"))


def picture() -> np.ndarray:
    """Bytes [112, 112, 3]: as many patches as the position table has, so nothing is resized."""
    return np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8)


PEER = """
import ctypes, json, sys
import llama_cpp, numpy as np
def load(path, **more):
    return llama_cpp.Llama(path, n_ctx=64, n_batch=64, n_ubatch=64, n_threads=1, type_k=0, type_v=0,
                           yarn_attn_factor=-1.0, flash_attn=False, verbose=False, **more)
def logits(path, arguments, out):
    tokens, beta_fast = arguments
    model = load(path, logits_all=True, yarn_beta_fast=beta_fast)
    model.eval(tokens)
    np.save(out, np.array(model.scores[:len(tokens)]))
def tokenize(path, texts, out):
    model = load(path, vocab_only=True)
    ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]
    json.dump(ids, open(out, "w"))
def quantize(path, to, _):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.nthread = 1
    assert not llama_cpp.llama_model_quantize(path.encode(), to.encode(), ctypes.byref(params))
def see(path, arguments, out):
    import llama_cpp.mtmd_cpp as mtmd
    mmproj, pixels, cells, width = arguments
    text = load(path)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.n_threads, params.warmup, params.flash_attn_type = False, 1, False, 0
    context = mtmd.mtmd_init_from_file(mmproj.encode(), text.model, params)
    data = np.load(pixels)
    bitmap = mtmd.mtmd_bitmap_init(data.shape[1], data.shape[0], (ctypes.c_uint8 * data.size)(*data.ravel()))
    prompt = mtmd.mtmd_default_marker()
    prompt = mtmd.mtmd_input_text(prompt, len(prompt), False, True)
    chunks = mtmd.mtmd_input_chunks_init()
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert not mtmd.mtmd_tokenize(context, chunks, ctypes.byref(prompt), bitmaps, 1)
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, i)
        if mtmd.mtmd_input_chunk_get_type(chunk) == 1:
            assert mtmd.mtmd_input_chunk_get_n_tokens(chunk) == cells
            assert not mtmd.mtmd_encode_chunk(context, chunk)
            found = mtmd.mtmd_get_output_embd(context)
            np.save(out, np.ctypeslib.as_array(found, (cells, width)).copy())
name, path, argument, out = sys.argv[1:]
globals()[name](path, json.loads(argument), out)
"""


def shown(values: np.ndarray) -> np.ndarray:
    """The part of logits or of a picture [rows, cols] that is kept."""
    return values[::6, :: values.shape[1] // 12]


def ask(python: str, what: str, path: Path, argument: Any, out: Path) -> None:
    command = [python, "-c", PEER, what, str(path), json.dumps(argument), str(out)]
    subprocess.run(command, check=True)


def freeze(python: str) -> dict[str, Any]:
    results: dict[str, Any] = {"logits": {}, "digest": {}}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "m.gguf", Path(folder) / "out.npy"

        def keep(name: str) -> None:
            results["logits"][name] = [
                [float(f"{value:.6g}") for value in row] for row in shown(np.load(out)).tolist()
            ]

        for name, config in CASES.items():
            results["digest"][name] = write_case(path, config)
            source = path
            if name == "quantized":
                ask(python, "quantize", path, str(QUANTIZED), out)
                source = QUANTIZED
            # llama.cpp writes the betas of this architecture but does not read them: its user has to.
            ask(python, "logits", source, [TOKENS, config.rope.beta_fast], out)
            keep(name)
        results["digest"]["picture"] = write_case(path, K25)
        mmproj, pixels = Path(folder) / "mmproj.gguf", Path(folder) / "pixels.npy"
        write_mmproj(mmproj, K25, weights_of(K25))
        np.save(pixels, picture())
        ask(python, "see", path, [str(mmproj), str(pixels), 16, K25.hidden_size], out)
        keep("picture")
        write_nano(path)
        ask(python, "tokenize", path, TEXTS, out)
        results["nano ids"] = json.loads(out.read_text())
    return results


if __name__ == "__main__":
    RESULTS.write_text(json.dumps(freeze(sys.argv[1])) + "\n")
