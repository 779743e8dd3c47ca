"""Which quantization an engine should run: the largest that fits into memory, as larger ones lose less."""

from collections.abc import Iterable
from dataclasses import replace
from math import inf

from moonlet.config import ModelConfig
from moonlet.config.sizes import model_sizes
from moonlet.plan.answer import Answer, Question, answer
from moonlet.plan.engines import Engine
from moonlet.plan.weights import Weights

CANDIDATES: dict[str, tuple[str, ...]] = {
    "moonlet": ("native", "q8_0", "q4_k_m", "q2_k_xl", "ud-tq1_0"),
    "llama.cpp": ("q8_0", "q4_k_m", "native-int4", "q2_k_xl", "ud-tq1_0"),
    "ktransformers": ("native",),
    "sglang": ("native", "fp8", "nvfp4"),
    "vllm": ("native", "fp8", "nvfp4"),
    "mlx": ("native", "6.5bpw", "4.5bpw", "3.5bpw", "2.5bpw"),
}

LOSSLESS = 0.9  # of the published bytes: fewer lose something,
LEAST_BITS = 7.9  # unless weights keep so many: what 8 lose is below what benchmarks tell apart (quality.toml)
_EXACT = ("native", "native-int4")  # the second for INT4 experts, whose codes Q4_0 keeps


def candidates(question: Question, engine: Engine) -> list[str]:
    """Quantizations of `question`'s model for `engine`, the largest first; none above one that loses nothing."""
    sizes = {
        name: replace(question, quantization=name, weights=None).stored().total_bytes
        for name in CANDIDATES[engine.name]
        if engine.runs(name) and (name != "native-int4" or _has_int4(question.config))
    }
    exact = next((name for name in _EXACT if name in sizes), None)
    most = sizes[exact] if exact else inf
    ordered = sorted(sizes, key=lambda name: sizes[name], reverse=True)
    return [name for name in ordered if name == exact or sizes[name] < most]


def _has_int4(config: ModelConfig) -> bool:
    return config.quantization is not None and config.quantization.method == "int4"


def best(question: Question, engine: Engine, native: Weights | None = None) -> Answer:
    """The answer with the largest quantization that fits into memory; if none does, with the largest whose
    experts fit when some stay on the disk, or the refusal of the smallest.

    native: the published weights as their files hold them, where somebody has looked.
    """
    known = native if native is not None and native.label == "native" else None
    found = [
        replace(question, quantization=name, weights=known if name == "native" else None)
        for name in candidates(question, engine)
    ]
    return chosen(found, engine) or answer(found[-1], engine)


def chosen(questions: Iterable[Question], engine: Engine) -> Answer | None:
    """The first that fits without reading from the disk at every token, else the first that fits."""
    slow = None
    for question in questions:
        found = answer(question, engine)
        if found.fits and not found.reads_disk:
            return found
        slow = slow or (found if found.fits else None)
    return slow


def rank(plan: Answer, starts: bool = True) -> tuple[bool, bool, bool, float]:
    """What to sort answers by: those that fit, of them those that lose nothing that can be told of what was published, of
    them those that a command is known for (`starts`), the fastest first.
    """
    published = replace(plan.question, quantization="native", weights=None).stored().total_bytes
    sizes = model_sizes(plan.question.config)
    enough = min(LOSSLESS * published, LEAST_BITS / 8 * sizes.parameters(*sizes.parts))
    loses = plan.weights.total_bytes < enough
    speed = plan.each_tok_s.value if plan.each_tok_s else 0.0
    return not plan.fits, loses, not starts, -speed
