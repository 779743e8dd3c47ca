"""Rotary positions: YaRN for the text network, two axes for images. Both rotate adjacent pairs.

Angles are computed in float32 whatever the model's type, since at position 200,000 anything less
would not tell neighbours apart.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from moonlet.config import RopeConfig

VISION_THETA = 10_000.0  # fixed in the published MoonViT code, not in any config.json


@lru_cache(maxsize=32)
def rope_frequencies(rope: RopeConfig, dim: int, device: torch.device) -> Tensor:
    """Radians per position of each of the dim/2 pairs: [dim // 2], float32.

    YaRN (arXiv 2309.00071, section 3.2): pairs that turn more than `beta_fast` times within the
    original context keep their frequency, those that turn less than `beta_slow` times are slowed by
    `factor`, and between the two a linear ramp blends both.
    """
    with torch.inference_mode(False):  # the cached tensor must also serve training
        periods = rope.theta ** (torch.arange(0, dim, 2, device=device).float() / dim)
        if rope.type == "default":
            return 1.0 / periods
        low = max(math.floor(_pair_turning(rope, dim, rope.beta_fast)), 0)
        high = min(math.ceil(_pair_turning(rope, dim, rope.beta_slow)), dim - 1)
        width = high - low or 0.001  # equal ends: a step
        ramp = ((torch.arange(dim // 2, device=device).float() - low) / width).clamp(0, 1)
        keep = 1 - ramp
        return 1.0 / (rope.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _pair_turning(rope: RopeConfig, dim: int, turns: float) -> float:
    """Index of the pair that makes `turns` full turns within the original context."""
    context = rope.original_max_position_embeddings
    return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def text_rotation(positions: Tensor, rope: RopeConfig, dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin for `positions` [...]: two tensors [..., dim // 2], float32."""
    angles = positions[..., None].float() * rope_frequencies(rope, dim, positions.device)
    return angles.cos() * rope.amplitude, angles.sin() * rope.amplitude


def grid_rotation(
    frames: int, height: int, width: int, dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin for the patches of one item in row order: two tensors [frames*height*width, dim // 2].

    Pair 2j turns with the column, pair 2j + 1 with the row; frames of a chunk share their angles.
    """
    half = dim // 2
    frequencies = 1.0 / (VISION_THETA ** (torch.arange(0, half, 2, device=device).float() / half))
    columns = torch.arange(width, device=device).float()[None, :, None] * frequencies
    rows = torch.arange(height, device=device).float()[:, None, None] * frequencies
    pairs = torch.stack(torch.broadcast_tensors(columns, rows), dim=-1)  # (height, width, dim/4, 2)
    angles = pairs.reshape(height * width, half).repeat(frames, 1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each adjacent pair (x[2i], x[2i+1]) of the last dimension by its angle.

    cos, sin: broadcastable to x with half its last dimension. The result has x's type.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)
