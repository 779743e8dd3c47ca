"""moonlet with as much in its memory as a server ever has: run by planner_fits.py under a limit.

    python -m support.held FILE STREAMS CONTEXT      tells in a line of JSON what it took, if it lives

All streams are at once at the end of their context, with prompts that have nothing in common.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch

from moonlet.cli.bench import load_checkpoint
from moonlet.engine.engine import PAGE_SIZE, Engine
from moonlet.engine.stream import GenerateRequest

STEPS = 8


def main() -> None:
    file, streams, context = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    import_module("moonlet.server.app")  # a server holds that, too
    model = load_checkpoint(file)
    pages = streams * -(-context // PAGE_SIZE)
    engine = Engine(model, frozenset(), context, pages=pages)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(
        model.config.vocab_size, (streams, context - STEPS), generator=generator
    )
    started = [engine.submit(GenerateRequest(prompt, STEPS)) for prompt in prompts.tolist()]
    made = sum(len(list(stream)) for stream in started)
    engine.close()
    status = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in status if line.endswith("kB")}
    kept = {name: int(fields[name]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile")}
    print(json.dumps({"tokens": made, **kept}))


if __name__ == "__main__":
    main()
