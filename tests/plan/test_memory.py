"""Cache and buffers, against hand arithmetic, published figures, and what a forward pass in torch holds."""

import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config import preset
from moonlet.errors import ConfigError
from moonlet.plan.memory import (
    CACHE_KINDS,
    buffers,
    buffers_bytes,
    cache_alternatives,
    cache_bytes_per_token,
    moonlet_buffers_bytes,
    vision_bytes,
)

K25, K2, MOONLIGHT = preset("kimi-k2.5"), preset("kimi-k2"), preset("moonlight-16b-a3b")


def test_cache_of_k25() -> None:
    assert cache_bytes_per_token(K25) == 70_272
    assert cache_bytes_per_token(K25, "fp8") == 35_136
    assert cache_bytes_per_token(K25, "fp32") == 140_544
    assert cache_bytes_per_token(K25, "q8_0") == 61 * 18 * 34
    # vLLM's log of K2 on GPUs: 46.80 GiB hold 715,072 tokens.
    assert 46.80 * 2**30 / cache_bytes_per_token(K25) == pytest.approx(715_072, rel=1e-4)
    assert cache_bytes_per_token(MOONLIGHT) == 27 * 576 * 2


def test_what_other_attention_would_take() -> None:
    mha, gqa = cache_alternatives(K25)
    assert (mha.name, gqa.name) == ("mha", "gqa8")
    assert mha.bytes_per_token == 61 * 64 * (192 + 128) * 2
    assert mha.times_latent == pytest.approx(35.56, abs=0.01)
    assert gqa.bytes_per_token == 61 * 8 * (192 + 128) * 2
    assert gqa.times_latent == pytest.approx(4.44, abs=0.01)
    few = cache_alternatives(replace(K25, num_attention_heads=4))
    assert few[0].bytes_per_token == few[1].bytes_per_token == 61 * 4 * 320 * 2


def test_buffers_of_k25_by_hand() -> None:
    found = buffers(K25, 2048, 3)
    assert found.hidden == 2051 * 3 * 7168 * 2
    assert found.attention == 2051 * (1536 + 576 + 64 * 640) * 2 + 64 * 512 * 512 * 4
    assert found.mlp == 2051 * ((8 * (2 * 7168 + 3 * 2048) + 3 * 2048) * 2 + 2 * 384 * 4)
    assert found.logits == 4 * 163840 * 4
    assert found.peak == found.hidden + found.mlp + found.logits
    assert buffers(K25, 0, 1).logits == 163840 * 4
    # A dense network is its MLP.
    dense = replace(K25, first_k_dense_replace=61)
    assert buffers(dense, 2048, 3).mlp == 2051 * 3 * 18432 * 2


@given(st.integers(0, 10_000), st.integers(0, 500), st.sampled_from(["bf16", "fp16", "fp32"]))
def test_more_tokens_take_more(chunk: int, streams: int, dtype: str) -> None:
    size = buffers_bytes(K25, chunk, streams, dtype)
    assert buffers_bytes(K25, chunk + 1, streams, dtype) > size
    assert buffers_bytes(K25, chunk, streams + 1, dtype) > size
    assert buffers_bytes(K25, chunk, streams, "fp32") >= size


def test_vision_of_k25_by_hand() -> None:
    patches = 16_384
    always = patches * (588 + 2 * 1152)
    assert vision_bytes(K25, patches) == 2 * (always + patches * 2 * 4304)  # the MLP is widest
    assert vision_bytes(K2, patches) == 0
    assert vision_bytes(K25, 0) == 0


@pytest.mark.parametrize("kind", ["int3", "BF16", "", "\n" * 999])
def test_unknown_types_are_one_sentence(kind: str) -> None:
    assert kind not in CACHE_KINDS
    for ask in (
        lambda: cache_bytes_per_token(K25, kind),
        lambda: buffers(K25, 1, 1, kind),
        lambda: vision_bytes(K25, 1, kind),
    ):
        with pytest.raises(ConfigError, match="give one of") as error:
            ask()
        assert "\n" not in str(error.value)


def test_negative_numbers_are_refused() -> None:
    for ask in (lambda: buffers(K25, -1), lambda: vision_bytes(K25, -1)):
        with pytest.raises(ConfigError):
            ask()


def most_alive(run: Any) -> int:
    """The most bytes of new tensors that lived at once while `run` ran without gradients."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    alive, most, seen = 0, 0, weakref.WeakSet()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal alive, most
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if not isinstance(tensor, torch.Tensor):
                    continue
                storage = tensor.untyped_storage()
                if storage in seen:
                    continue
                seen.add(storage)
                alive += storage.nbytes()
                most = max(most, alive)
                weakref.finalize(storage, release, storage.nbytes())
            return out

    def release(size: int) -> None:
        nonlocal alive
        alive -= size

    with torch.no_grad(), Count():
        run()
    return most


def test_a_forward_pass_in_torch_holds_about_as_much() -> None:
    """Plain modules keep a few copies more than fused kernels, and masks, but not twice as much."""
    torch = pytest.importorskip("torch")
    from moonlet.model import Model

    config = replace(
        preset("tiny"), hidden_size=256, moe_intermediate_size=96, intermediate_size=256, num_hidden_layers=2,
        vision=None, model_type="kimi_k2", media_placeholder_token_id=None,
    )  # fmt: skip
    model = Model(config).eval()
    ids = torch.randint(0, config.vocab_size, (1, 512))
    held = most_alive(lambda: model.logits(model.hidden(ids)[:, -1:]))
    planned = buffers_bytes(config, 512, 0, "fp32")
    assert planned < held < 2 * planned


MEASURE = """
import re, sys, torch
from pathlib import Path
from moonlet.model import load_packed
model, tokens = load_packed(Path(sys.argv[1])), int(sys.argv[2])
def bytes_of(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
cache = model.new_cache(1, tokens)
cache.rows.fill_(0)
model.hidden(torch.ones(1, 8, dtype=torch.long))
before = bytes_of("VmRSS")
with torch.inference_mode():
    model.hidden(torch.randint(0, 99, (1, tokens)), cache=cache)
print(bytes_of("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_kernels_take_what_is_planned(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from moonlet.checkpoint import save_checkpoint
    from tests.checkpoint.tiny import random_tensors

    config = replace(
        MOONLIGHT, hidden_size=1024, intermediate_size=2048, moe_intermediate_size=512, n_routed_experts=8,
        num_hidden_layers=2, vocab_size=256, bos_token_id=None, eos_token_ids=(),
    )  # fmt: skip
    save_checkpoint(tmp_path / "m", config, random_tensors(config, torch.bfloat16), quantize="int4")
    argv = [sys.executable, "-c", MEASURE, str(tmp_path / "m"), "2048"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    planned = moonlet_buffers_bytes(config, 2048)
    assert int(done.stdout) == pytest.approx(planned, rel=0.2)
