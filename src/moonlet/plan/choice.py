"""Which quantization an engine should run: the largest that fits, as larger ones lose less."""

from dataclasses import replace

from moonlet.plan.answer import Answer, Question, answer
from moonlet.plan.engines import Engine
from moonlet.plan.weights import Weights

CANDIDATES: dict[str, tuple[str, ...]] = {
    "moonlet": ("native", "q8_0", "q4_k_m", "q2_k_xl", "ud-tq1_0"),
    "llama.cpp": ("q8_0", "q4_k_m", "q2_k_xl", "ud-tq1_0"),
    "ktransformers": ("native",),
    "sglang": ("native", "nvfp4"),
    "vllm": ("native", "nvfp4"),
    "mlx": ("native", "6.5bpw", "4.5bpw", "3.5bpw", "2.5bpw"),
}

LOSSLESS = 0.9  # of the published bytes: fewer lose something


def candidates(question: Question, engine: Engine) -> list[str]:
    """Quantizations of `question`'s model for `engine`, the largest first."""
    names = CANDIDATES[engine.name]
    large = replace(question, quantization="native", weights=None).stored().total_bytes
    sized = (
        (replace(question, quantization=name, weights=None).stored().total_bytes, name)
        for name in names
    )
    return [name for size, name in sorted(sized, reverse=True) if name == "native" or size < large]


def best(question: Question, engine: Engine, native: Weights | None = None) -> Answer:
    """The answer with the largest quantization that fits, or the refusal of the smallest.

    native: the published weights as their files hold them, where somebody has looked.
    """
    found = None
    for name in candidates(question, engine):
        known = (
            native if name == "native" and native is not None and native.label == "native" else None
        )
        found = answer(replace(question, quantization=name, weights=known), engine)
        if found.fits:
            return found
    assert found is not None
    return found


def rank(plan: Answer) -> tuple[bool, bool, float]:
    """What to sort answers by: those that fit, of them those that lose nothing of what was published, the fastest first."""
    published = replace(plan.question, quantization="native", weights=None).stored().total_bytes
    loses = plan.weights.total_bytes < LOSSLESS * published
    return not plan.fits, loses, -plan.each_tok_s.value if plan.each_tok_s else 0.0
