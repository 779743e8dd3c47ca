"""`moonlet bench`: what is measured and what is refused. Never how fast anything is."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.support.random_gguf import write_random
from moonlet.cli.bench import STEPS
from moonlet.cli.main import main
from moonlet.config import preset
from moonlet.config.sizes import model_sizes
from moonlet.errors import EngineError
from moonlet.kernels import limits
from moonlet.kernels.limits import Arithmetic
from moonlet.model import Model, load_packed
from moonlet.model.profile import PARTS, Step, bytes_read, operations, profile
from moonlet.model.speed import Decode, Prefill

pytestmark = pytest.mark.usefixtures("_quick")
SMALL = ["--prefill", "8", "--depth", "0,20", "--batch", "1,2", "--repeat", "2"]


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No large buffer is read, and torch leaves the cores to others."""
    monkeypatch.setattr(limits, "BUFFER_BYTES", 1 << 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def benched(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["bench", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    found = benched(capsys, "random:tiny", "--layers", "2", *SMALL)
    assert set(found) == {
        "model", "context_length", "machine", "limits_before", "limits_after", "load_s", "first_token_s",
        "prefill", "decode", "skipped",
    }  # fmt: skip
    assert found["model"] == "tiny"
    assert found["first_token_s"] is None
    assert found["skipped"] == []
    (prefill,) = found["prefill"]
    assert set(prefill) == {"tokens", "tok_s", "seconds", "bandwidth", "parts"}
    assert len(prefill["seconds"]) == 2
    assert prefill["tok_s"] > 0
    assert [(case["depth"], case["batch"]) for case in found["decode"]] == [(0, 1), (0, 2), (20, 1), (20, 2)]  # fmt: skip
    for case in found["decode"]:
        read = case["bytes_per_token"]
        assert set(read) == {
            "attention", "dense", "router", "experts", "shared_experts", "head", "cache",
        }  # fmt: skip
        assert (read["cache"] > 0) == (case["depth"] > 0)
        assert case["bandwidth_share"] > 0
        assert [part["part"] for part in case["parts"]][-1] == "rest"
        assert all(part["seconds"] >= 0 and part["share"] >= 0 for part in case["parts"])


def test_the_embedded_model_starts_in_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = benched(capsys, *SMALL[:2], "--depth", "", "--batch", "", "--repeat", "1")
    assert found["model"] == "nano"
    assert found["first_token_s"] > 0
    assert found["decode"] == []


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "random:tiny", "--layers", "2", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "prefill, medians of 2" in out
    assert "MB read for a token" in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_exceeds_the_context_is_left_out_with_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    context = preset("tiny").max_position_embeddings
    sizes = [f"4,{context + 1}", "--depth", str(context - STEPS + 1), "--batch", "1"]
    found = benched(capsys, "random:tiny", "--layers", "1", "--repeat", "1", "--prefill", *sizes)
    assert [case["tokens"] for case in found["prefill"]] == [4]
    assert found["decode"] == []
    assert len(found["skipped"]) == 2
    assert f"takes {context + 1} positions" in found["skipped"][0]


def test_what_exceeds_the_memory_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["random:tiny", "--layers", "1", "--prefill", "", "--depth", "0", "--batch", "1"]
    monkeypatch.setattr(limits, "available_bytes", lambda: 10**6)
    found = benched(capsys, *argv, "--repeat", "1")
    assert found["decode"] != []
    found = benched(capsys, *argv[:-3], "4000", "--batch", "8", "--repeat", "1")
    assert "its cache needs" in found["skipped"][0]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["random:kimi-k2.5"], "random:kimi-k2.5 needs 2,052.8 GB"),
        (["random:tiny", "--layers", "4"], "1 to 3"),
        (["--layers", "1"], "--layers cuts only random:PRESET"),
        (["--prefill", "0"], "at least 1"),
        (["--repeat", "0"], "at least 1"),
        (["nowhere"], "nowhere"),
    ],
)
def test_mistakes(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1,x", "-1", "99999999999", "1.5"])
def test_lists_are_of_whole_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", f"--depth={text}"])
    assert stopped.value.code == 2
    assert "is not a list of whole numbers" in capsys.readouterr().err


def test_a_process_that_cannot_load_is_told_of(tmp_path: Path) -> None:
    from moonlet.cli.first_token import seconds_to_first_token

    with pytest.raises(EngineError, match="could not load"):
        seconds_to_first_token(tmp_path / "nothing")


def tiny() -> Model:
    return Model(preset("tiny")).eval().requires_grad_(False)


def test_bytes_and_operations_are_those_of_the_weights() -> None:
    model, config = tiny(), preset("tiny")
    sizes = model_sizes(config)
    everything = Step(batch=1, new=10**6, depth=0)  # so many tokens choose every expert
    read = bytes_read(model, everything)
    for part in ("attention", "dense", "experts", "shared_experts", "head"):
        # The gains of the latents' norms are read there and counted as norms.
        gains = config.num_hidden_layers * ((config.q_lora_rank or 0) + config.kv_lora_rank)
        extra = 4 * gains if part == "attention" else 0
        assert read[part] == 4 * sizes.parameters(part) + extra, part
    one = bytes_read(model, Step(1, 1, 7))
    assert one["experts"] == read["experts"] * config.num_experts_per_tok // config.n_routed_experts
    assert one["cache"] == 7 * config.num_hidden_layers * config.latent_size * 4
    work = operations(config, Step(2, 3, 5))
    assert work["dense"] == 2 * 6 * sizes.parameters("dense")
    assert work["head"] == 2 * 2 * sizes.parameters("head")
    pairs = 2 * (6 + 7 + 8)
    per_pair = config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    assert work["scores"] == 2 * pairs * per_pair * config.num_hidden_layers


def test_a_profile_changes_nothing_and_counts_the_experts_that_were_read() -> None:
    model = tiny()
    step = Step(1, 1, 4)
    decode = Decode(model, 4, 1, 1)
    ids = torch.arange(6)[None]
    before = model(ids)
    parts = profile(model, step, decode.step, 1e9, Arithmetic(1e9, None, 1e9))
    assert torch.equal(model(ids), before)
    assert all("forward" not in vars(module) for module in model.modules())
    assert {part.part: part.bytes for part in parts}["experts"] == bytes_read(model, step)[
        "experts"
    ]


def test_every_run_begins_at_the_same_depth() -> None:
    decode = Decode(tiny(), 5, 2, 3)
    for _ in range(2):
        decode.run()
        assert decode._cache.length == 5 + 3
    assert decode._cache.rows[:, :, :5].abs().sum() > 0


def test_a_prompt_can_ask_for_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny(), []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: (asked.append(hidden.shape[1]), logits(hidden))[1])  # fmt: skip
    Prefill(model, 5).run()
    Prefill(model, 5, all_logits=True).run()
    assert asked == [1, 5]


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    config = replace(
        preset("moonlight-16b-a3b"), vocab_size=512, hidden_size=256, intermediate_size=256,
        moe_intermediate_size=64, num_hidden_layers=3, n_routed_experts=8, kv_lora_rank=64,
        num_attention_heads=2, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32,
        bos_token_id=1, eos_token_ids=(2,),
    )  # fmt: skip
    path = tmp_path / "small.gguf"
    write_random(path, config, "Q4_0", lambda text: None)
    return path


def test_a_quantized_file(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = benched(capsys, str(quantized), *SMALL)
    assert found["model"] == "small"
    assert found["first_token_s"] > 0
    parts = {part["part"]: part for part in found["decode"][0]["parts"]}
    assert set(parts) == {*PARTS, "rest"}
    # gate, up and down of six experts in two layers, 18 bytes for 32 weights, on pages of 4096 bytes
    expert = -(-3 * 256 * 64 // 32 * 18 // 4096) * 4096
    assert parts["experts"]["bytes"] == 2 * 6 * expert
    assert parts["shared_experts"]["bytes"] == 2 * 3 * 256 * 128 // 32 * 18
    assert parts["head"]["bytes"] == 512 * 256 // 32 * 34


def test_a_quantized_layer_that_is_watched_computes_the_same(quantized: Path) -> None:
    model = load_packed(quantized)
    found: list[torch.Tensor] = []

    def step() -> None:
        with torch.inference_mode():
            found.append(model(torch.arange(7)[None]))

    step()
    profile(model, Step(1, 7, 0), step, 1e9, Arithmetic(1e9, None, 1e9))
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-3)
    assert all("forward" not in vars(module) for module in model.modules())
