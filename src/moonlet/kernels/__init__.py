"""The few hot operations, in C++ for the CPU: what they compute stands in `reference.py`, how in csrc.

The extension is part of every installation: an ImportError here means a build that went wrong, and
hiding it behind a slow answer would only move the surprise. `_kernels.pyi` documents each operation.

MOONLET_ISA forces one of `supported_isas()`; a set that this CPU cannot run is an error at the first call.
MOONLET_THREADS sets the number of threads, which is otherwise that of the cores.
"""

from moonlet.kernels._kernels import (
    Attention,
    Dense,
    Experts,
    Ffn,
    Layers,
    Matrix,
    Moe,
    append_latent,
    code_row_bytes,
    ffn,
    isa,
    latent_attention,
    num_threads,
    panel_type,
    reach,
    rms_norm,
    rotate,
    route,
    set_num_threads,
)
from moonlet.kernels._kernels import supported_isas as _supported_isas

__all__ = [
    "Attention",
    "Dense",
    "Experts",
    "Ffn",
    "Layers",
    "Matrix",
    "Moe",
    "append_latent",
    "code_row_bytes",
    "ffn",
    "isa",
    "latent_attention",
    "num_threads",
    "panel_type",
    "reach",
    "rms_norm",
    "rotate",
    "route",
    "set_num_threads",
    "supported_isas",
]


def supported_isas() -> tuple[str, ...]:
    """Instruction sets that this CPU can run, narrowest first; the first is always "baseline".

    The others: "avx2" (with FMA and F16C), "avx512_vnni" (F, BW, DQ, VL, VNNI), "avx512_bf16" (BF16
    too), "neon_dotprod".
    """
    return tuple(_supported_isas())
