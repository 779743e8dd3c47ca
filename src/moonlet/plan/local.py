"""How long a step takes in moonlet's own engine on this machine, from what `moonlet plan --measure` measured.

    step     = fixed + layers * growth(tokens) * hidden size + attention + whole(tokens) * products
    fixed    = seconds of a step, of each dense layer and of each MoE layer, however small
    products = weights of each matrix * matrix(tokens)          one token is bound by reading, many by computing
             + weights of the experts asked * matrix(tokens of each)

Attention of a decoded token reads what is cached: positions * latent size * attend(heads). Attention of a prompt
multiplies: pairs of positions * heads * numbers * score. Experts are chosen evenly (`Weights.distinct_experts`).
`growth` is what torch does token by token beside its products; `whole` is what the kernels lose between theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from moonlet.config import ModelConfig
from moonlet.config.sizes import model_sizes
from moonlet.config.tensors import Part
from moonlet.plan.calibration import Calibration, Costs, Curve, at
from moonlet.plan.weights import Weights

FLOATS = {"BFLOAT16": "BF16", "FLOAT16": "F16", "FLOAT32": "F32", "BF16": "BF16", "F16": "F16", "F32": "F32"}  # fmt: skip
SMALL_BYTES = 10**9  # a float model below this computes in float32, as the engine does
_LAYERED: tuple[Part, ...] = ("attention", "dense", "router", "shared_experts")


def decode_seconds(
    weights: Weights, calibration: Calibration, depth: float, batch: int = 1
) -> float:
    """One step of `batch` sequences, each with `depth` tokens behind it."""
    return sum(_step(weights, calibration, batch, 1, depth).values())


def prefill_seconds(
    weights: Weights, calibration: Calibration, tokens: int, depth: float = 0
) -> float:
    """A prompt of `tokens` after `depth` that are cached, up to the logits of its last token."""
    return sum(_step(weights, calibration, 1, tokens, depth).values())


@dataclass(frozen=True)
class Local:
    """The seconds that `Predictor` has for other machines: what takes them in moonlet on this one."""

    weights: Weights
    calibration: Calibration

    def step_parts(self, streams: float, context: float) -> dict[str, float]:
        return _step(self.weights, self.calibration, streams, 1, context)

    def prefill_parts(self, tokens: float) -> dict[str, float]:
        return _step(self.weights, self.calibration, 1, tokens, 0)


def is_packed(weights: Weights) -> bool:
    """Whether moonlet runs it on its kernels: something but router and norms is stored in less than floats."""
    kinds = {
        kind.upper()
        for part, by_type in weights.stored.items()
        if part not in ("router", "norm", "vision", "projector")
        for kind in by_type
    }
    return not kinds <= set(FLOATS)


def _step(
    weights: Weights, calibration: Calibration, batch: float, new: float, depth: float
) -> dict[str, float]:
    c = weights.config
    packed = is_packed(weights)
    costs = calibration.packed if packed else calibration.torch
    tokens = batch * new
    fixed = costs.step + weights.num_moe_layers * costs.moe_layer
    fixed += c.first_k_dense_replace * costs.dense_layer
    growth = c.num_hidden_layers * c.hidden_size * at(costs.growth, tokens)
    attention = _attention if packed or new == 1 else _attention_of_torch
    scores = c.num_hidden_layers * attention(c, costs, batch, new, depth)
    # Beyond the longest prompt that was measured a whole model loses what it lost there.
    whole = at(costs.whole, min(tokens, costs.whole[-1][0]))
    rest, experts = _products(weights, costs, tokens, batch)
    return {
        "layers": fixed + growth,
        "cache": scores,
        "rest": whole * rest,
        "experts in RAM": whole * experts,
    }


def _products(weights: Weights, costs: Costs, tokens: float, logits: float) -> tuple[float, float]:
    """Of all matrices in a step of so many tokens, the head's for `logits` of them; of routed experts."""
    c = weights.config
    types = _types(weights, is_packed(weights))
    parameters = {part: size.parameters for part, size in model_sizes(c).parts.items()}
    seconds = parameters["head"] * _per_weight(costs.matrix, types.get("head", {}), logits)
    for part in _LAYERED:
        seconds += parameters.get(part, 0) * _per_weight(costs.matrix, types.get(part, {}), tokens)
    if weights.num_moe_layers:
        asked = weights.distinct_experts(tokens)
        each = tokens * c.num_experts_per_tok / asked
        per_weight = _per_weight(costs.experts or costs.matrix, types.get("experts", {}), each)
        return seconds, parameters["experts"] * asked / c.n_routed_experts * per_weight
    return seconds, 0.0


def _attention(c: ModelConfig, costs: Costs, batch: float, new: float, depth: float) -> float:
    """Of one layer, in the absorbed form."""
    if new == 1:
        numbers = batch * (depth + 1) * c.latent_size
        return numbers * at(costs.attend, c.num_attention_heads)
    per_pair = c.num_attention_heads * (c.latent_size + c.kv_lora_rank)
    return _pairs(new, depth) * per_pair * costs.score


def _attention_of_torch(
    c: ModelConfig, costs: Costs, batch: float, new: float, depth: float
) -> float:
    """Of one layer, in the form that `moonlet.model.attention` takes: the one with fewer multiplications."""
    visible = new + depth
    expand = c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)
    widths = (c.qk_nope_head_dim + c.qk_rope_head_dim, c.v_head_dim)
    plain = visible * expand + new * visible * sum(widths)
    absorbed = new * expand + new * visible * (c.latent_size + c.kv_lora_rank)
    if absorbed < plain:
        return _attention(c, costs, batch, new, depth)
    # Keys and values are padded to the same width; those of earlier tokens are expanded anew.
    per_pair = c.num_attention_heads * 2 * max(widths)
    again = depth * c.num_attention_heads * expand
    return (_pairs(new, depth) * per_pair + again) * costs.score


def _pairs(new: float, depth: float) -> float:
    """Positions looked at, summed over the new tokens."""
    return new * depth + new * (new + 1) / 2


def _types(weights: Weights, packed: bool) -> dict[Part, dict[str, float]]:
    """By part, the types that it computes with and which share of its weights has each."""
    sizes, bits = model_sizes(weights.config), _bits()
    small = 4 * sizes.parameters(*sizes.parts) < SMALL_BYTES
    found: dict[Part, dict[str, float]] = {}
    for part, by_type in weights.stored.items():
        average = 8 * sum(by_type.values()) / max(sizes.parameters(part), 1)
        numbers: dict[str, float] = {}
        for stored, num_bytes in by_type.items():
            kind = FLOATS.get(stored.upper(), stored.upper())
            count = num_bytes / (bits.get(kind) or average or 1)
            if kind not in bits:  # known by its size alone
                kind = min(bits, key=lambda name: abs(bits[name] - average))
            if packed and part != "router" and kind in ("F32", "F16", "BF16", "FP8"):
                kind = "Q8_0"
            elif small and not packed:
                kind = "F32"
            numbers[kind] = numbers.get(kind, 0.0) + count
        total = sum(numbers.values()) or 1.0
        found[part] = {kind: count / total for kind, count in numbers.items()}
    return found


def _per_weight(curves: Mapping[str, Curve], types: Mapping[str, float], tokens: float) -> float:
    """Seconds per weight, averaged over the types of a part; one that was not measured is as the nearest by size."""
    return sum(
        share * at(curves[min(curves, key=lambda known: _distance(known, kind))], tokens)
        for kind, share in types.items()
    )


def _distance(known: str, kind: str) -> float:
    bits = _bits()
    return 0.0 if known == kind else 1e-3 + abs(bits.get(known, 1e3) - bits[kind])


@cache
def _bits() -> dict[str, float]:
    """By type, the bits that a weight takes, its share of the scales included."""
    from moonlet.quant.types import TYPES  # with numpy, which not every answer needs

    found = {kind.name: kind.bits_per_value for kind in TYPES.values()}
    return found | {"INT4": 4.5, "FP8": 8.0, "NVFP4": 4.5}
