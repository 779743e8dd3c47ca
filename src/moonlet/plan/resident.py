"""What moonlet's own engine keeps in memory of weights as they are stored.

| stored                                        | kept                                                   |
| --------------------------------------------- | ------------------------------------------------------ |
| floats alone, below 1 GB as float32           | float32, which a CPU computes fastest                  |
| floats alone, more than that                  | as stored                                              |
| floats beside quantized matrices              | Q8_0; router, norms and embedding as stored            |
| the vision tower beside them                  | float32                                                |
| IQ1, IQ2 and IQ3 types                        | indices of 16 levels, 4.375 bits: more than the file   |
| TQ1_0; MXFP4                                  | TQ2_0, 2.0625 bits; 4.5 bits                           |

Other types keep their size. A folder that was packed holds what is kept.
"""

from dataclasses import replace

from moonlet.config.sizes import model_sizes
from moonlet.config.tensors import Part
from moonlet.plan.local import FLOATS, SMALL_BYTES, is_packed
from moonlet.plan.weights import Weights
from moonlet.quant.types import TYPES

LEVELS16_BITS = 4.375
KEPT_BITS = {"TQ1_0": 2.0625, "MXFP4": 4.5} | {
    name: LEVELS16_BITS for name in TYPES if name.startswith(("IQ1", "IQ2", "IQ3"))
}
_AS_STORED: tuple[Part, ...] = ("router", "norm", "embedding")
_IN_FLOAT32: tuple[Part, ...] = ("vision", "projector")
_FLOAT_BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}
_Q8_0_BITS = 8.5


def resident(weights: Weights) -> Weights:
    """The same weights with the bytes that they take once they are loaded."""
    if weights.label == "packed":
        return weights
    packed = is_packed(weights)
    small = not packed and computes_in_float32(weights)
    stored = {
        part: {kind: size * _times(weights.label, part, kind, packed, small) for kind, size in kinds.items()}
        for part, kinds in weights.stored.items()
    }  # fmt: skip
    return replace(weights, stored=stored)


def computes_in_float32(weights: Weights) -> bool:
    """Whether a float model is small enough for it; its cache is then float32, too."""
    sizes = model_sizes(weights.config)
    return not is_packed(weights) and 4 * sizes.parameters(*sizes.parts) < SMALL_BYTES


def _times(label: str, part: Part, kind: str, packed: bool, small: bool) -> float:
    bits = _FLOAT_BITS.get(FLOATS.get(kind.upper(), ""))
    if bits is not None:
        if small or (packed and part in _IN_FLOAT32):
            return 32 / bits
        return 1.0 if not packed or part in _AS_STORED else _Q8_0_BITS / bits
    if kind.endswith(" bits"):  # of a file that is known by its size and name alone
        looked_up = any(mark in label.lower() for mark in ("iq1", "iq2", "iq3", "tq1"))
        return max(LEVELS16_BITS / float(kind.split()[0]), 1.0) if looked_up else 1.0
    return KEPT_BITS.get(kind, 0.0) / TYPES[kind].bits_per_value if kind in KEPT_BITS else 1.0
