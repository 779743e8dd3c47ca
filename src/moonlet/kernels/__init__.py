"""The few hot operations. So far only the question which instruction set they may use here.

The extension is part of every installation: an ImportError here means a build that went wrong, and
hiding it behind a slow answer would only move the surprise.
"""

from moonlet.kernels import _kernels

__all__ = ["isa", "supported_isas"]


def supported_isas() -> tuple[str, ...]:
    """Instruction sets that this CPU can run, narrowest first; the first is always "baseline".

    The others: "avx2" (with FMA and F16C), "avx512_vnni" (F, BW, DQ, VL, VNNI),
    "avx512_bf16" (that and BF16), "neon_dotprod".
    """
    return tuple(_kernels.supported_isas())


def isa() -> str:
    """The widest instruction set that this CPU can run."""
    return supported_isas()[-1]
