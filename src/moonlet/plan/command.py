"""The commands that start a planned deployment, ready for a POSIX shell.

Weights that an engine cannot read as they are get a step that fetches or converts them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moonlet.errors import ConfigError, NotSupportedError
from moonlet.plan.launch import GGUF_MIX, Launch, family, published_file
from moonlet.plan.shell import as_argument, is_repository, last_part, line, when

MIXES = ("native_int4", "q2_k_xl", "q4_k_m", "q8_0", "tq1_0")  # of `moonlet convert`
_KT_METHODS = {"native_int4": "RAWINT4", "fp8": "FP8", "bf16": "BF16"}
_GGUF_TYPES = ("q", "iq", "tq", "ud_", "smol_", GGUF_MIX)  # how labels of GGUF files begin
_FLOATS = {"bf16": "bfloat16", "fp16": "float16"}
# mlx_lm.convert: bits a weight and --q-bits, --q-group-size; a group has a scale and a bias of 16 bits each.
_MLX_BITS = {
    bits + 32 / group: (bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)
}
_BPW = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,4})?) ?bpw")
_CACHE_TYPES = {
    "moonlet": {"bf16": ""},
    "vllm": {"bf16": "auto", "fp8": "fp8"},
    "sglang": {"bf16": "auto", "fp8": "fp8_e4m3"},
    "ktransformers": {"bf16": "auto", "fp8": "fp8_e4m3"},
    # Its two-byte cache is f16, which all of its kernels take.
    "llama.cpp": {"bf16": "f16", "f16": "f16", "q8_0": "q8_0", "q4_0": "q4_0"},
    "mlx": {"bf16": "", "f16": ""},
}


@dataclass(frozen=True)
class Step:
    """where: "here", or "node 0" and so on. In this order; the last of each place goes on running."""

    where: str
    command: str


def start_commands(launch: Launch) -> list[Step]:
    """What to type, and where.

    Raises NotSupportedError where the engine cannot do what the plan says, with what to do instead, and
    ConfigError for more GPUs than there are.
    """
    if launch.nodes > 1 and launch.engine not in ("vllm", "sglang"):
        raise NotSupportedError(
            f"no command is known that starts {launch.engine} on {launch.nodes} nodes: "
            "plan one node, or vllm or sglang"
        )
    known = _CACHE_TYPES[launch.engine]
    if launch.cache_dtype not in known:
        raise NotSupportedError(
            f"{launch.engine} keeps no cache in {launch.cache_dtype!r:.40}: choose from {', '.join(known)}"
        )
    return _STARTS[launch.engine](launch)


def _moonlet(launch: Launch) -> list[Step]:
    model, steps = as_argument(launch.model), []
    if launch.label != "native":
        model, steps = _converted(launch, "" if launch.label == "native_int4" else "/model.gguf")
    words = ["moonlet", "serve", model, "--cache-dir", f"{last_part(launch.model)}-cache"]
    if launch.numa > 1:  # its threads are on all of them, so its pages should be
        words = ["numactl", "--interleave=all", *words]
    threads = f"MOONLET_THREADS={launch.threads} " if launch.threads else ""
    return [*steps, Step("here", threads + line(*words, "--port", launch.port))]


def _vllm(launch: Launch) -> list[Step]:
    _needs_gpus(launch)
    tool, reasoning = _parsers(launch)
    model, made = _loaded_as(launch)
    words = ["vllm", "serve", model, "--trust-remote-code", *made]
    words += ["--tensor-parallel-size", launch.tensor]
    words += when(launch.pipeline > 1, "--pipeline-parallel-size", launch.pipeline)
    words += when(launch.expert > 1, "--enable-expert-parallel")
    words += when(_sees(launch) and launch.tensor > 1, "--mm-encoder-tp-mode", "data")
    words += ["--max-model-len", launch.context, "--max-num-seqs", launch.streams]
    words += when(launch.chunk, "--max-num-batched-tokens", launch.chunk)
    words += ["--kv-cache-dtype", _cache_type(launch)]
    words += when(tool, "--enable-auto-tool-choice", "--tool-call-parser", tool)
    words += when(reasoning, "--reasoning-parser", reasoning)
    words += ["--port", launch.port]
    if launch.nodes == 1:
        return [Step("here", line(*words))]
    join = line("ray", "start", "--block", "--address", f"{launch.head}:6379")
    return [
        Step("node 0", line("ray", "start", "--head", "--port", 6379)),
        *(Step(f"node {node}", join) for node in range(1, launch.nodes)),
        Step("node 0", line(*words, "--distributed-executor-backend", "ray")),
    ]


def _sglang(launch: Launch) -> list[Step]:
    _needs_gpus(launch)
    model, made = _loaded_as(launch)
    words = ["--model-path", model, "--trust-remote-code", *made]
    words += ["--tp-size", launch.tensor]
    words += when(launch.pipeline > 1, "--pp-size", launch.pipeline)
    words += when(launch.expert > 1, "--ep-size", launch.expert)
    words += ["--context-length", launch.context, "--max-running-requests", launch.streams]
    start = line(*_SGLANG, *words, *_sglang_words(launch))
    if launch.nodes == 1:
        return [Step("here", start)]
    address = f"{launch.head}:20000"
    return [
        Step(f"node {node}", f"{start} {line(*_of(launch.nodes, node), address)}")
        for node in range(launch.nodes)
    ]


def _ktransformers(launch: Launch) -> list[Step]:
    """SGLang whose routed experts run on the processor: it reads the weights as files, once for both."""
    method = _KT_METHODS.get(launch.holds)
    if method is None or launch.label != "native":
        raise NotSupportedError(
            f"ktransformers runs INT4, FP8 or BF16 weights as they are stored, and not {launch.holds!r:.40} "
            f"as {launch.quantization!r:.40}: use llama.cpp or moonlet"
        )
    _needs_gpus(launch)
    folder, steps = as_argument(launch.model), []
    if is_repository(launch.model):
        folder = last_part(launch.model)
        steps.append(Step("here", line("hf", "download", launch.model, "--local-dir", folder)))
    words = ["--model", folder, "--kt-weight-path", folder, "--kt-method", method]
    words += when(launch.threads, "--kt-cpuinfer", launch.threads)
    words += ["--kt-threadpool-count", launch.numa, "--kt-num-gpu-experts", launch.gpu_experts]
    words += ["--kt-gpu-prefill-token-threshold", 400, "--disable-shared-experts-fusion"]
    words += ["--trust-remote-code", "--tensor-parallel-size", launch.tensor]
    words += when(launch.tensor > 1, "--enable-p2p-check")
    words += ["--attention-backend", "flashinfer", "--enable-mixed-chunk"]
    words += ["--max-running-requests", launch.streams]
    words += ["--max-total-tokens", launch.context * launch.streams]
    return [*steps, Step("here", line(*_SGLANG, *words, *_sglang_words(launch)))]


def _llama_cpp(launch: Launch) -> list[Step]:
    model, steps = _gguf(launch)
    words = ["llama-server", *model, "-fa", "on", "--jinja"]
    words += ["-c", launch.context * launch.streams, "-np", launch.streams]
    words += ["-ngl", 99 if launch.gpus else 0]
    words += when(launch.gpus and launch.cpu_layers, "--n-cpu-moe", launch.cpu_layers)
    words += when(launch.chunk, "-b", launch.chunk, "-ub", launch.chunk)
    words += ["-ctk", _cache_type(launch)]
    words += when(launch.threads, "-t", launch.threads)
    words += when(launch.numa > 1, "--numa", "distribute")
    return [*steps, Step("here", line(*words, "--port", launch.port))]


def _mlx(launch: Launch) -> list[Step]:
    model, steps = _mlx_folder(launch)
    words = ["mlx_lm.server", "--model", model, "--trust-remote-code"]
    # Without it an answer ends after 512 tokens, thinking included.
    words += ["--max-tokens", launch.context, "--decode-concurrency", launch.streams]
    words += when(launch.chunk, "--prefill-step-size", launch.chunk)
    return [*steps, Step("here", line(*words, "--port", launch.port))]


_SGLANG = ("python", "-m", "sglang.launch_server")
_STARTS: dict[str, Callable[[Launch], list[Step]]] = {
    "moonlet": _moonlet,
    "vllm": _vllm,
    "sglang": _sglang,
    "ktransformers": _ktransformers,
    "llama.cpp": _llama_cpp,
    "mlx": _mlx,
}


def _gguf(launch: Launch) -> tuple[list[str], list[Step]]:
    """How llama.cpp is told the model, and what has to be done before."""
    name = last_part(launch.model)
    tag = "" if launch.label == "native" else f":{launch.quantization.upper()}"
    if launch.model.endswith(".gguf") and launch.label == "native":
        return ["-m", as_argument(launch.model)], []
    if is_repository(launch.model) and "gguf" in name.lower() and launch.label != GGUF_MIX:
        return ["-hf", launch.model + tag], []
    if is_repository(launch.model) and launch.label.startswith("ud_"):  # Unsloth's files
        return ["-hf", f"unsloth/{name}-GGUF{tag}"], []
    file, steps = _converted(launch, "/model.gguf")
    seeing = ["--mmproj", str(Path(file).with_name("mmproj-model.gguf"))]
    return ["-m", file, *(seeing if _sees(launch) else [])], steps


def _converted(launch: Launch, file: str) -> tuple[str, list[Step]]:
    """`moonlet convert` into a folder of this one; without a mix it keeps what is stored, INT4 as Q4_0."""
    if launch.label not in ("native", GGUF_MIX, *MIXES):
        raise NotSupportedError(
            f"moonlet convert makes no {launch.quantization!r:.40} of {launch.model!r:.80}, only "
            f"{', '.join(MIXES)} and mixes of .toml files: fetch a file of that kind and name it as the model"
        )
    mix = launch.label.replace("_", "-", 1) if launch.label == "native_int4" else launch.label
    name = "gguf" if mix == "native" else mix
    if mix == GGUF_MIX:
        mix, name = as_argument(launch.quantization), Path(launch.quantization).stem
    target = f"{last_part(launch.model)}-{name}{file}"
    words = ["moonlet", "convert", as_argument(launch.model), target]
    step = Step("here", line(*words, *when(mix != "native", "--mix", mix)))
    return target, [step]


def _loaded_as(launch: Launch) -> tuple[str, list[str | int]]:
    """The model as vLLM and SGLang are told it, and what makes of it what is planned."""
    model, wanted = as_argument(launch.model), launch.label
    if wanted == "native":
        return model, []
    if launch.holds in _FLOATS and wanted == "fp8":  # while it is loaded
        return model, ["--quantization", "fp8"]
    if launch.holds in _FLOATS and wanted in _FLOATS:
        return model, ["--dtype", _FLOATS[wanted]]
    file = published_file(launch.model, wanted)
    if file is None:
        raise NotSupportedError(
            f"{launch.engine} makes no {launch.quantization!r:.40} of {launch.model!r:.80}, which holds "
            f"{launch.holds}: it needs a repository or folder that is stored so, named as the model"
        )
    return file, []


def _mlx_folder(launch: Launch) -> tuple[str, list[Step]]:
    """What MLX serves, and how mlx_lm.convert makes it."""
    _needs_no_gguf(launch)
    model, target = as_argument(launch.model), f"{last_part(launch.model)}-mlx"
    convert = ["mlx_lm.convert", "--trust-remote-code", "--hf-path"]

    def as_floats(kind: str) -> Step:
        words = [model, "--mlx-path", f"{target}-{kind}", "--dequantize", "--dtype", _FLOATS[kind]]
        return Step("here", line(*convert, *words))

    if launch.label == "native":
        return model, []
    if launch.label in _FLOATS:
        return f"{target}-{launch.label}", [as_floats(launch.label)]
    said = _BPW.fullmatch(launch.label)
    if said is None or float(said[1]) not in _MLX_BITS:
        raise NotSupportedError(
            f"mlx_lm.convert makes no {launch.quantization!r:.40} of {launch.model!r:.80}, as it gives all "
            "matrices the same 2, 3, 4, 5, 6 or 8 bits: plan 2.5, 3.5, 4.5, 5.5, 6.5 or 8.5bpw, scales included, "
            "or name a folder that is stored so as the model"
        )
    steps, (bits, group) = [], _MLX_BITS[float(said[1])]
    source = model
    if launch.holds == "native_int4":  # in one go the experts would stay as they are (mlx-lm 907)
        steps, source = [as_floats("bf16")], f"{target}-bf16"
    words = ["--quantize", "--q-bits", bits, "--q-group-size", group]
    target += f"-{float(said[1]):g}bpw"
    steps.append(Step("here", line(*convert, source, "--mlx-path", target, *words)))
    return target, steps


def _needs_gpus(launch: Launch) -> None:
    """Raises unless the GPUs can be split as planned, and the weights are not those of a GGUF file."""
    if not launch.gpus:
        raise NotSupportedError(f"{launch.engine} needs a GPU: use llama.cpp or moonlet without")
    if launch.tensor * launch.pipeline > launch.gpus * launch.nodes:
        raise ConfigError(
            f"tensor {launch.tensor} times pipeline {launch.pipeline} needs more than the "
            f"{launch.gpus * launch.nodes} GPUs that are there"
        )
    _needs_no_gguf(launch)


def _needs_no_gguf(launch: Launch) -> None:
    if launch.label.startswith(_GGUF_TYPES) or launch.model.endswith(".gguf"):
        raise NotSupportedError(
            f"{launch.engine} runs models as they were published, and no GGUF files "
            f"({launch.quantization:.40}): use llama.cpp or moonlet"
        )


def _sglang_words(launch: Launch) -> list[str | int]:
    tool, reasoning = _parsers(launch)
    return [
        *when(launch.chunk, "--chunked-prefill-size", launch.chunk),
        *("--kv-cache-dtype", _cache_type(launch)),
        *when(tool, "--tool-call-parser", tool),
        *when(reasoning, "--reasoning-parser", reasoning),
        *("--port", launch.port),
    ]


def _of(nodes: int, node: int) -> list[str | int]:
    return ["--nnodes", nodes, "--node-rank", node, "--dist-init-addr"]


def _cache_type(launch: Launch) -> str:
    return _CACHE_TYPES[launch.engine][launch.cache_dtype]


def _parsers(launch: Launch) -> tuple[str, str]:
    """Of tool calls and of thinking, "" for none."""
    engine = "vllm" if launch.engine == "vllm" else "sglang"
    return tuple(family(launch.model).get(engine, ("", "")))


def _sees(launch: Launch) -> bool:
    return family(launch.model).get("vision", False)
