"""`python -m moonlet.cli.first_token PATH`: from nothing to the first token, as somebody waits for it."""

import subprocess
import sys
import time
from pathlib import Path

from moonlet.errors import EngineError

PROMPT_TOKENS = 8


def seconds_to_first_token(path: Path) -> float:
    """Seconds from the start of a new process until it has loaded `path` and chosen a token.

    Raises EngineError with the process's last words when it fails.
    """
    command = [sys.executable, "-m", "moonlet.cli.first_token", str(path)]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        seconds = time.perf_counter() - start
        _, errors = child.communicate()
    if child.returncode or not line:
        last = (errors.strip().splitlines() or ["it ended without a word"])[-1]
        raise EngineError(f"a new process could not load {path}: {last}")
    return seconds


def main(argv: list[str]) -> int:
    """Prints the id of the token; whoever started this reads the clock then."""
    import torch

    from moonlet.cli.bench import load_checkpoint
    from moonlet.model.speed import Prefill

    model = load_checkpoint(Path(argv[0]))
    prompt = Prefill(model, PROMPT_TOKENS)
    with torch.inference_mode():
        print(prompt.next_token(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
