"""nano in this process: steps a second, and what part of a step is not spent in kernels.

nano is so small that what stands around the kernels shows: scheduler, tables, tensors, sampler, handing out. In
8 bits a kernel is a call into moonlet's own, timed from Python, so that the call itself counts as kernel.
In float32 it is an operation of torch with all that it calls, as torch's profiler tells; the profiler's own time is
mostly in there, which makes the share look smaller by some per cent.
"""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from moonlet import nano
from moonlet.checkpoint.convert import Conversion, to_gguf
from moonlet.checkpoint.parts import Wish
from moonlet.engine.engine import Engine
from moonlet.engine.sampler import SamplingParams
from moonlet.engine.stream import Drawn, GenerateRequest, Item
from moonlet.model import Model, load_model, load_packed
from moonlet.model.packed import PackedDecoder, PackedLinear
from moonlet.quant.mixes import load_mix

STREAMS = (1, 16)
PROMPT, TOKENS = 64, 192
SKIPPED, PROFILED = 40, 10  # steps


def run() -> list[dict[str, Any]]:
    """A row for each form of nano and number of streams."""
    torch.set_num_threads(1)  # as `moonlet serve` does for so small a model
    with TemporaryDirectory(prefix="moonlet-steps-") as folder:
        eight_bit = Path(folder) / "nano.gguf"
        wish = Wish(load_mix("q8_0"))
        to_gguf(Conversion(nano.folder(), eight_bit, wish), 2, lambda done, total: None)
        forms: dict[str, tuple[Model, Callable[[Engine], Watch]]] = {
            "float32": (load_model(nano.folder(), torch.float32), TorchWatch),
            "Q8_0": (load_packed(eight_bit), KernelWatch),
        }
        return [
            {"form": name, "streams": streams} | measured(model, streams, watch)
            for name, (model, watch) in forms.items()
            for streams in STREAMS
        ]


def measured(model: Model, streams: int, watch: "Callable[[Engine], Watch]") -> dict[str, Any]:
    """Steps with nothing watching, then the kernels' part of some others."""
    engine = Engine(model, frozenset(), PROMPT + TOKENS)
    try:
        answers(engine, streams)  # warm
        steps, seconds = answers(engine, streams)
        watching = watch(engine)
        answers(engine, streams)
        outside = 1 - watching.share()
    finally:
        engine.close()
    return {
        "steps_per_s": steps / seconds,
        "tokens_per_s": streams * (TOKENS - 1) / seconds,
        "step_ms": 1e3 * seconds / steps,
        "outside": outside,
    }


def answers(engine: Engine, streams: int) -> tuple[int, float]:
    """(steps, seconds) from when all of `streams` have begun until they end."""
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    def sink() -> Callable[[Item], None]:
        seen = 0

        def take(item: Item) -> None:
            nonlocal seen
            seen += 1
            if seen == 1:
                begun.release()
            if not isinstance(item, Drawn):
                ended.release()

        return take

    for number in range(streams):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(256, (PROMPT,), generator=generator).tolist()
        engine.submit(GenerateRequest(ids, TOKENS, sampling=SamplingParams(1.0, 0.95, seed=number)), sink())  # fmt: skip
    for _ in range(streams):
        begun.acquire()
    before, start = engine.stats()["steps"], time.perf_counter()
    for _ in range(streams):
        ended.acquire()
    return int(engine.stats()["steps"] - before), time.perf_counter() - start


class Watch(Protocol):
    """Looks on while steps are computed."""

    def share(self) -> float:
        """Of the time of the steps that were watched, the kernels' part."""
        ...


class KernelWatch:
    """Times every call into moonlet's kernels, from the first decoding step that follows another to the last."""

    def __init__(self, engine: Engine) -> None:
        self._inside = self._before = self._begun = self._ended = 0.0
        for module in engine.model.modules():
            if isinstance(module, PackedDecoder):
                module.together = self._timed(module.together)  # pyright: ignore[reportAttributeAccessIssue]
                module.norm.forward = self._timed(module.norm.forward)
            elif isinstance(module, PackedLinear):
                module.matrix = self._timed(module.matrix)  # pyright: ignore[reportAttributeAccessIssue]
        decode, number = engine._batch.decode, itertools.count()

        def step(tasks: Any) -> Any:
            self._ended = time.perf_counter()  # of the step before this
            if next(number) == SKIPPED:
                self._inside, self._begun = 0.0, self._ended
            self._before = self._inside
            return decode(tasks)

        engine._batch.decode = step

    def _timed(self, call: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            self._inside += time.perf_counter() - start
            return result

        return timed

    def share(self) -> float:
        return self._before / (self._ended - self._begun)


class TorchWatch:
    """Profiles PROFILED steps, SKIPPED after the first."""

    def __init__(self, engine: Engine) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._begun = self._ended = 0.0
        decode, number = engine._batch.decode, itertools.count()

        def step(tasks: Any) -> Any:
            match next(number):
                case n if n == SKIPPED:
                    self._profile.start()
                    self._begun = time.perf_counter()
                case n if n == SKIPPED + PROFILED:
                    self._ended = time.perf_counter()
                    self._profile.stop()
            return decode(tasks)

        engine._batch.decode = step

    def share(self) -> float:
        events = self._profile.events() or []
        inside = sum(one.cpu_time_total for one in events if one.cpu_parent is None) / 1e6
        return inside / (self._ended - self._begun)
