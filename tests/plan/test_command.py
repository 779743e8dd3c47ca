"""Start commands: the words that reach the program, whatever a model is called."""

import os
import shlex
import subprocess
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.cli import convert, serve
from moonlet.errors import ConfigError, MoonletError, NotSupportedError
from moonlet.plan.choice import CANDIDATES
from moonlet.plan.command import _STARTS, MIXES, Step, start_commands
from moonlet.plan.launch import Launch, engines, made_for
from moonlet.plan.shell import as_argument
from moonlet.quant.mixes import NAMES

K25 = "moonshotai/Kimi-K2.5"
PROGRAMS = (
    "moonlet",
    "vllm",
    "python",
    "llama-server",
    "mlx_lm.server",
    "hf",
    "ray",
    "numactl",
    "mlx_lm.convert",
)


def words(step: Step) -> list[str]:
    return shlex.split(step.command)


def option(step: Step, name: str) -> str:
    found = words(step)
    return found[found.index(name) + 1]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs that print what they were called with."""
    folder = tmp_path_factory.mktemp("bin")
    for name in PROGRAMS:
        (folder / name).write_text('#!/bin/sh\nprintf \'%s\\0\' "${0##*/}" "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def run(command: str, stubs: Path, cwd: Path) -> list[str]:
    """What reaches the program when a shell runs the command."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": str(stubs), "HOME": "/me"},
        cwd=cwd,
        capture_output=True,
        check=True,
    )
    return os.fsdecode(done.stdout).split("\0")[:-1]


def test_moonlet_serves_what_is_there() -> None:
    (step,) = start_commands(Launch("moonlet", K25))
    assert step == Step("here", f"moonlet serve {K25} --cache-dir Kimi-K2.5-cache --port 8000")
    assert start_commands(Launch("moonlet", K25, "int4")) == [step]  # which it is published in
    (file,) = start_commands(Launch("moonlet", "a/b.gguf", "q4_k_m", stored="q4_k_m", threads=8))
    assert (
        file.command == "MOONLET_THREADS=8 moonlet serve a/b.gguf --cache-dir b-cache --port 8000"
    )


def test_moonlet_converts_what_is_not() -> None:
    steps = start_commands(Launch("moonlet", "moonshotai/Moonlight-16B-A3B", "q4_k_m", numa=2))
    assert [step.command for step in steps] == [
        "moonlet convert moonshotai/Moonlight-16B-A3B Moonlight-16B-A3B-q4_k_m/model.gguf --mix q4_k_m",
        "numactl --interleave=all moonlet serve Moonlight-16B-A3B-q4_k_m/model.gguf "
        "--cache-dir Moonlight-16B-A3B-cache --port 8000",
    ]
    folder = start_commands(Launch("moonlet", "moonshotai/Moonlight-16B-A3B", "native-int4"))
    assert folder[0].command.endswith("Moonlight-16B-A3B-native-int4 --mix native-int4")
    with pytest.raises(NotSupportedError, match="makes no 'UD-TQ1_0'"):
        start_commands(Launch("moonlet", K25, "UD-TQ1_0"))


def test_moonlets_own_parsers_take_the_commands() -> None:
    parser = ArgumentParser(exit_on_error=False)
    commands = parser.add_subparsers()
    serve.add_parser(commands)
    convert.add_parser(commands)
    for mix in MIXES:
        for model in (K25, "-m", "a b"):
            for step in start_commands(Launch("moonlet", model, mix, stored="bf16")):
                name, *rest = words(step)
                assert name == "moonlet"
                parsed: Any = parser.parse_args(rest)
                if rest[0] == "convert":
                    assert parsed.mix.replace("-", "_") == mix
    assert sorted(mix.replace("_", "-") for mix in MIXES) == sorted(
        mix.replace("_", "-") for mix in NAMES
    )


def test_vllm_as_its_recipe_says() -> None:
    (step,) = start_commands(
        Launch("vllm", K25, gpus=8, tensor=8, streams=16, context=131_072, cache_dtype="fp8")
    )
    assert step.command == (
        f"vllm serve {K25} --trust-remote-code --tensor-parallel-size 8 --mm-encoder-tp-mode data "
        "--max-model-len 131072 --max-num-seqs 16 --kv-cache-dtype fp8 --enable-auto-tool-choice "
        "--tool-call-parser kimi_k2 --reasoning-parser kimi_k2 --port 8000"
    )


def test_vllm_on_two_nodes() -> None:
    steps = start_commands(
        Launch(
            "vllm", "moonshotai/Kimi-K2-Instruct", gpus=8, nodes=2, tensor=8, pipeline=2, head="n0"
        )
    )
    assert [step.where for step in steps] == ["node 0", "node 1", "node 0"]
    assert steps[0].command == "ray start --head --port 6379"
    assert steps[1].command == "ray start --block --address n0:6379"
    assert option(steps[2], "--tensor-parallel-size") == "8"
    assert option(steps[2], "--pipeline-parallel-size") == "2"
    assert option(steps[2], "--distributed-executor-backend") == "ray"
    assert "--reasoning-parser" not in steps[2].command  # K2-Instruct does not think
    assert "--mm-encoder-tp-mode" not in steps[2].command  # nor see


def test_sglang_on_two_nodes() -> None:
    steps = start_commands(
        Launch("sglang", K25, gpus=8, nodes=2, tensor=16, expert=16, cache_dtype="fp8", head="n0")
    )
    assert [step.where for step in steps] == ["node 0", "node 1"]
    for rank, step in enumerate(steps):
        assert words(step)[:3] == ["python", "-m", "sglang.launch_server"]
        assert option(step, "--tp-size") == "16"
        assert option(step, "--ep-size") == "16"
        assert option(step, "--kv-cache-dtype") == "fp8_e4m3"
        assert option(step, "--nnodes") == "2"
        assert option(step, "--node-rank") == str(rank)
        assert option(step, "--dist-init-addr") == "n0:20000"


def test_ktransformers_fetches_the_weights_that_it_reads_twice() -> None:
    launch = Launch(
        "ktransformers", K25, gpus=4, tensor=4, gpu_experts=30, threads=96, numa=2, streams=2
    )
    fetch, step = start_commands(launch)
    assert fetch.command == f"hf download {K25} --local-dir Kimi-K2.5"
    assert option(step, "--model") == option(step, "--kt-weight-path") == "Kimi-K2.5"
    assert option(step, "--kt-method") == "RAWINT4"
    assert option(step, "--kt-cpuinfer") == "96"
    assert option(step, "--kt-threadpool-count") == "2"
    assert option(step, "--kt-num-gpu-experts") == "30"
    assert option(step, "--max-total-tokens") == str(2 * 32_768)
    assert option(step, "--reasoning-parser") == "kimi_k2"
    (here,) = start_commands(Launch("ktransformers", "/w/Kimi-K2-Instruct", gpus=1))
    assert option(here, "--kt-method") == "FP8"


def test_llama_cpp_with_experts_in_memory() -> None:
    (step,) = start_commands(
        Launch(
            "llama.cpp", "k/K.gguf", "q2_k", stored="q2_k", gpus=1, cpu_layers=58, chunk=4096, threads=32, numa=2,
            streams=4, context=8192, cache_dtype="q8_0",
        )
    )  # fmt: skip
    assert step.command == (
        "llama-server -m k/K.gguf -fa on --jinja -c 32768 -np 4 -ngl 99 --n-cpu-moe 58 -b 4096 -ub 4096 "
        "-ctk q8_0 -t 32 --numa distribute --port 8000"
    )


def test_llama_cpp_fetches_or_converts() -> None:
    (own,) = start_commands(Launch("llama.cpp", "me/K-GGUF", "q4_k_m"))
    assert option(own, "-hf") == "me/K-GGUF:Q4_K_M"
    assert option(own, "-ngl") == "0"
    assert option(own, "-ctk") == "f16"
    (dynamic,) = start_commands(Launch("llama.cpp", K25, "UD-Q2_K_XL"))
    assert option(dynamic, "-hf") == "unsloth/Kimi-K2.5-GGUF:UD-Q2_K_XL"
    keep, step = start_commands(Launch("llama.cpp", K25))
    assert keep.command == f"moonlet convert {K25} Kimi-K2.5-gguf/model.gguf"
    assert option(step, "-m") == "Kimi-K2.5-gguf/model.gguf"
    assert option(step, "--mmproj") == "Kimi-K2.5-gguf/mmproj-model.gguf"
    mix, text = start_commands(Launch("llama.cpp", "moonshotai/Moonlight-16B-A3B", "q4_k_m"))
    assert mix.command.endswith("Moonlight-16B-A3B-q4_k_m/model.gguf --mix q4_k_m")
    assert "--mmproj" not in text.command
    with pytest.raises(NotSupportedError, match="makes no 'iq1_s'"):
        start_commands(Launch("llama.cpp", K25, "iq1_s"))


def test_mlx_does_not_cut_answers_off() -> None:
    (step,) = start_commands(Launch("mlx", "me/K-MLX", context=65_536, streams=3, port=8080))
    assert step.command == (
        "mlx_lm.server --model me/K-MLX --trust-remote-code --max-tokens 65536 --decode-concurrency 3 "
        "--port 8080"
    )


MOONLIGHT = "moonshotai/Moonlight-16B-A3B"


def test_gpu_engines_make_what_they_can_while_they_load() -> None:
    """Not the published weights under another name: 32 GB of bf16 where 17 GB of fp8 were planned."""
    for engine in ("vllm", "sglang"):
        (fp8,) = start_commands(Launch(engine, MOONLIGHT, "fp8", gpus=1))
        assert option(fp8, "--quantization") == "fp8"
        (fp16,) = start_commands(Launch(engine, MOONLIGHT, "FP16", gpus=1))
        assert option(fp16, "--dtype") == "float16"
        for asked in ("native", "bf16"):
            (kept,) = start_commands(Launch(engine, MOONLIGHT, asked, gpus=1))
            assert "--quantization" not in kept.command
            assert "--dtype" not in kept.command
        (published,) = start_commands(Launch(engine, "deepseek-ai/DeepSeek-V3", "fp8", gpus=8))
        assert "--quantization" not in published.command  # it is stored so


def test_gpu_engines_take_the_repository_that_is_stored_so() -> None:
    (vllm,) = start_commands(Launch("vllm", K25, "nvfp4", gpus=8, tensor=8))
    assert words(vllm)[:3] == ["vllm", "serve", "nvidia/Kimi-K2.5-NVFP4"]
    assert option(vllm, "--tool-call-parser") == "kimi_k2"
    (sglang,) = start_commands(Launch("sglang", K25.lower(), "NVFP4", gpus=8, tensor=8))
    assert option(sglang, "--model-path") == "nvidia/Kimi-K2.5-NVFP4"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("model", "quantization", "holds"),
    [
        (MOONLIGHT, "nvfp4", "bf16"),
        (MOONLIGHT, "mxfp4", "bf16"),
        (MOONLIGHT, "int4", "bf16"),
        (K25, "bf16", "native_int4"),
        (K25, "fp8", "native_int4"),
        ("deepseek-ai/DeepSeek-V3", "nvfp4", "fp8"),
        ("deepseek-ai/DeepSeek-V3.1", "bf16", "fp8"),
        ("/my/Kimi-K2.5", "nvfp4", "native_int4"),
    ],
)
def test_gpu_engines_without_such_a_file_get_no_command(
    engine: str, model: str, quantization: str, holds: str
) -> None:
    with pytest.raises(NotSupportedError) as caught:
        start_commands(Launch(engine, model, quantization, gpus=8, tensor=8))
    sentence = f"{engine} makes no '{quantization}' of '{model}', which holds {holds}: it needs a"
    assert str(caught.value).startswith(sentence)


def test_mlx_serves_what_it_converted() -> None:
    """Four bits, and in every group of 64 a scale and a bias of 16 bits: 4.5."""
    convert, serve_it = start_commands(Launch("mlx", MOONLIGHT, "4.5bpw"))
    assert convert.command == (
        f"mlx_lm.convert --trust-remote-code --hf-path {MOONLIGHT} --mlx-path Moonlight-16B-A3B-mlx-4.5bpw "
        "--quantize --q-bits 4 --q-group-size 64"
    )
    assert option(serve_it, "--model") == "Moonlight-16B-A3B-mlx-4.5bpw"
    (native,) = start_commands(Launch("mlx", MOONLIGHT, "bf16"))
    assert option(native, "--model") == MOONLIGHT
    floats, serve_it = start_commands(Launch("mlx", MOONLIGHT, "fp16"))
    assert option(floats, "--dtype") == "float16"
    assert option(serve_it, "--model") == option(floats, "--mlx-path")


def test_mlx_unpacks_int4_before_it_takes_fewer_bits() -> None:
    """In one go the experts keep their four bits: 640 GB where 449 were wanted (mlx-lm issue 907)."""
    unpack, convert, serve_it = start_commands(Launch("mlx", K25, "3.5 bpw"))
    assert "--dequantize" in words(unpack)
    assert option(unpack, "--hf-path") == K25
    assert option(convert, "--hf-path") == option(unpack, "--mlx-path") == "Kimi-K2.5-mlx-bf16"
    assert (option(convert, "--q-bits"), option(convert, "--q-group-size")) == ("3", "64")
    assert option(serve_it, "--model") == option(convert, "--mlx-path") == "Kimi-K2.5-mlx-3.5bpw"


def test_mlx_makes_every_size_that_is_planned_without_being_asked() -> None:
    sizes = [name for name in CANDIDATES["mlx"] if name.endswith("bpw")]
    assert len(sizes) > 2
    for name in sizes:
        *_, convert, _ = start_commands(Launch("mlx", K25, name))
        bits, group = int(option(convert, "--q-bits")), int(option(convert, "--q-group-size"))
        assert f"{bits + 2 * 16 / group}bpw" == name


@pytest.mark.parametrize("quantization", ["3.33bpw", "7.5bpw", "int4"])
def test_mlx_has_no_command_for_a_mix_of_bits(quantization: str) -> None:
    with pytest.raises(NotSupportedError, match=f"makes no '{quantization}' .* the same 2, 3, 4"):
        start_commands(Launch("mlx", MOONLIGHT, quantization))


def test_a_mix_of_ones_own_is_converted_whatever_it_is_called() -> None:
    for mix in ("My-Mix.toml", "dir/fp8.toml", "q4.TOML"):
        for engine in ("moonlet", "llama.cpp"):
            convert_it, start = start_commands(Launch(engine, MOONLIGHT, mix))
            target = f"Moonlight-16B-A3B-{Path(mix).stem}/model.gguf"
            assert words(convert_it) == ["moonlet", "convert", MOONLIGHT, target, "--mix", mix]
            assert target in words(start)
    (again, _) = start_commands(Launch("llama.cpp", "me/K-GGUF", "x.toml"))
    assert option(again, "--mix") == "x.toml"
    (dashed, _) = start_commands(Launch("moonlet", MOONLIGHT, "-x.toml"))
    assert option(dashed, "--mix") == "./-x.toml"


def test_a_file_that_is_to_be_something_else_is_converted() -> None:
    convert_it, start = start_commands(Launch("llama.cpp", "k/K.gguf", "q4_k_m"))
    assert words(convert_it)[2:] == ["k/K.gguf", "K-q4_k_m/model.gguf", "--mix", "q4_k_m"]
    assert option(start, "-m") == "K-q4_k_m/model.gguf"


@pytest.mark.parametrize(
    ("launch", "sentence"),
    [
        (Launch("vllm", K25, "fp8.toml", gpus=8), "no GGUF files (fp8.toml)"),
        (Launch("mlx", K25, "a/4.5bpw.toml"), "no GGUF files"),
        (Launch("mlx", "k.gguf"), "no GGUF files"),
        (Launch("ktransformers", K25, "x.toml", gpus=1), "not 'native_int4' as 'x.toml'"),
        (Launch("moonlet", K25, nodes=2), "no command is known that starts moonlet on 2 nodes"),
        (Launch("vllm", K25), "needs a GPU"),
        (Launch("ktransformers", K25), "needs a GPU"),
        (Launch("vllm", K25, "q4_k_m", gpus=8), "no GGUF files"),
        (Launch("sglang", "k.gguf", gpus=8), "no GGUF files"),
        (
            Launch("sglang", K25, gpus=8, tensor=16),
            "tensor 16 times pipeline 1 needs more than the 8",
        ),
        (Launch("ktransformers", K25, "q4_k_m", gpus=1), "not 'native_int4' as 'q4_k_m'"),
        (Launch("llama.cpp", K25, cache_dtype="fp8"), "choose from bf16, f16, q8_0, q4_0"),
        (Launch("moonlet", K25, cache_dtype="fp8"), "keeps no cache in 'fp8'"),
    ],
)
def test_what_cannot_be_started_says_what_can(launch: Launch, sentence: str) -> None:
    with pytest.raises(MoonletError) as caught:
        start_commands(launch)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"engine": "ollama"}, "engine 'ollama': name one of moonlet, vllm"),
        ({"model": ""}, "'' is no model"),
        ({"model": "a\0b"}, "is no model"),
        ({"streams": 0}, "streams is 0"),
        ({"context": -5}, "context is -5"),
        ({"gpu_experts": -1}, "gpu_experts is -1"),
    ],
)
def test_what_is_no_launch(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Launch(**{"engine": "moonlet", "model": "m", **values})


def test_every_engine_says_for_which_version_its_options_are() -> None:
    assert engines() == tuple(_STARTS)
    for engine in engines():
        made = made_for(engine)
        assert made["version"]
        assert made["as_of"][:3] == "202"
        assert len(made["source"]) > 10


HOSTILE = [
    "-rf",
    "--help",
    "a; touch HIT",
    "$(touch HIT)",
    "`touch HIT`",
    "a' && touch HIT && '",
    'a"; touch HIT; "',
    "a\ntouch HIT\n",
    "a|touch HIT",
    "a > HIT",
    "*",
    "o/~",
    "~/$(touch HIT)",
    "..",
    "/",
    "é 模型/x y",
    "$(touch HIT)/b",
]


def launches(model: str) -> list[Launch]:
    return [
        Launch("moonlet", model, threads=2, numa=2),
        Launch("moonlet", model, "q8_0", stored="bf16"),
        Launch("vllm", model, gpus=8, tensor=8),
        Launch("vllm", model, gpus=8, nodes=2, tensor=8, pipeline=2, head=model),
        Launch("sglang", model, gpus=8, nodes=2, tensor=16, head=model),
        Launch("ktransformers", model, gpus=1, stored="bf16"),
        Launch("llama.cpp", model),
        Launch("llama.cpp", model, "ud-" + model),
        Launch("mlx", model),
        Launch("mlx", model, "4.5bpw", stored="int4"),
        Launch("llama.cpp", model, f"{model}.toml"),
        Launch("vllm", model, "fp8", stored="bf16", gpus=1),
    ]


def at_home(word: str) -> str:
    return f"/me{word[1:]}" if word.startswith("~/") else word


def check(model: str, stubs: Path, cwd: Path) -> None:
    """Shell and program see the words that were meant, and no option that was not."""
    for launch in launches(model):
        try:
            steps = start_commands(launch)
        except NotSupportedError:
            continue
        for step in steps:
            meant = [at_home(word) for word in words(step) if not word.startswith("MOONLET_")]
            got = run(step.command, stubs, cwd)
            assert got == meant
            assert model not in got or not model.startswith("-")
            if got[0] == "vllm":
                assert got[:4] == [
                    *("vllm", "serve", at_home(as_argument(model)), "--trust-remote-code")
                ]
    assert not (cwd / "HIT").exists()


@pytest.mark.parametrize("model", HOSTILE)
def test_hostile_names_run_nothing(model: str, stubs: Path, tmp_path: Path) -> None:
    check(model, stubs, tmp_path)


def test_the_check_would_notice(stubs: Path, tmp_path: Path) -> None:
    run("moonlet serve $(: > HIT)", stubs, tmp_path)
    assert (tmp_path / "HIT").exists()


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=30))
def test_any_name_stays_one_word(
    stubs: Path, tmp_path_factory: pytest.TempPathFactory, model: str
) -> None:
    check(model, stubs, tmp_path_factory.getbasetemp())
