"""llama.cpp as the other side: its own benchmark programs, run one at a time."""

import json
import os
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path
from statistics import median

VERSION = "0.3.36"  # of llama-cpp-python, whose source package carries llama.cpp with its tools
PACKAGE = "llama-cpp-python"
VARIABLE = "MOONLET_LLAMA_CPP"
CMAKE = {"LLAMA_BUILD_TOOLS": "ON", "LLAMA_BUILD_SERVER": "OFF", "LLAMA_BUILD_TESTS": "OFF",
         "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_APP": "OFF", "LLAMA_TOOLS_INSTALL": "OFF",
         "LLAVA_BUILD": "OFF"}  # fmt: skip
HOW = (
    f"No llama.cpp to compare with: give --peer DIR (or {VARIABLE}), the folder with llama-bench, or let "
    "--setup DIR build one, which takes about six minutes on two cores."
)


class Peer:
    """The programs in the folder `programs`. Every speed is in tokens per second."""

    def __init__(self, programs: Path, threads: int) -> None:
        self._programs, self._threads = programs, threads
        self._env = {**os.environ, "LD_LIBRARY_PATH": str(programs)}

    def version(self) -> str:
        """What llama-bench says of itself, in one line."""
        command = [str(self._programs / "llama-bench"), "--version"]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True)
        return " ".join((done.stdout + done.stderr).split())[:200]

    def prefill(self, model: Path, tokens: int, all_logits: bool) -> float:
        extra = ["-embd", "1"] if all_logits else []  # else its last layer sees one token only
        return self._bench(model, "-p", str(tokens), "-n", "0", *extra)

    def decode(self, model: Path, depth: int, steps: int) -> float:
        return self._bench(model, "-p", "0", "-n", str(steps), "-d", str(depth))

    def decode_batch(self, model: Path, batch: int, depth: int, steps: int) -> float:
        """`batch` sequences at once; each has its own prompt of `depth` tokens."""
        context = batch * (depth + steps) + 64
        options = {"-npp": depth, "-ntg": steps, "-npl": batch, "-c": context}
        found = self._json_lines("llama-batched-bench", model, "--output-format", "jsonl",
                                 *(str(word) for pair in options.items() for word in pair))  # fmt: skip
        return next(line["speed_tg"] for line in found if line.get("pl") == batch)

    def first_token(self, model: Path, prompt: int) -> float:
        """Seconds from the start of the process to the logits after a prompt."""
        command = self._command("llama-bench", model, "-p", str(prompt), "-n", "0", "-r", "1",
                                "--no-warmup", "-o", "jsonl")  # fmt: skip
        start = time.perf_counter()
        with subprocess.Popen(
            command, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as child:
            assert child.stdout is not None
            line = child.stdout.readline()
            seconds = time.perf_counter() - start
        if not line:
            raise RuntimeError(f"llama-bench gave no result for {model}")
        return seconds

    def _bench(self, model: Path, *options: str) -> float:
        lines = self._json_lines("llama-bench", model, "-r", "1", "-o", "jsonl", *options)
        return median(lines[-1]["samples_ts"])

    def _json_lines(self, program: str, model: Path, *options: str) -> list[dict]:
        done = subprocess.run(
            self._command(program, model, *options), env=self._env, capture_output=True, text=True
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"{program} gave no result for {model}: {last}")
        return lines

    def _command(self, program: str, model: Path, *options: str) -> list[str]:
        return [str(self._programs / program), "-m", str(model), "-t", str(self._threads), *options]


def find(given: Path | None, threads: int) -> Peer | None:
    """The peer in the folder given, or in the one that the environment names."""
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        return None
    for programs in (named, named / "build" / "bin", named / "bin"):
        if (programs / "llama-bench").is_file():
            return Peer(programs.resolve(), threads)
    raise SystemExit(f"{named} holds no llama-bench. {HOW}")


def setup(folder: Path) -> None:
    """Builds llama.cpp for this machine, with its tools, in `folder`."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    venv.create(folder / "venv", with_pip=True)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip"]
    source = f"{PACKAGE}=={VERSION}"
    subprocess.run([*pip, "download", "--no-deps", "--no-binary", ":all:", "-d", folder, source], check=True)  # fmt: skip
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    env = {**os.environ, "CMAKE_ARGS": " ".join(f"-D{k}={v}" for k, v in CMAKE.items())}
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    build = ["-C", f"build-dir={folder / 'build'}"]
    subprocess.run([*pip, "install", *build, unpacked], check=True, env=env)
    print(f"Now give --peer {folder}", file=sys.stderr)
