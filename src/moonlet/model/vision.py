"""MoonViT (Kimi-VL, arXiv 2504.07491) and MoonViT-3D (Kimi-K2.5, arXiv 2602.02276), and the projector.

Images and video chunks of any size come packed one after another as 14x14 patches, without padding;
each item attends to itself only. A chunk of up to four frames is one item: attention runs over space
and time, then frames are averaged, so a chunk costs as many tokens as one image.

Shapes: P patches of all items, D vt_hidden_size, H heads; a grid is (frames, rows, columns) in patches.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.config import VisionConfig
from moonlet.errors import EngineError
from moonlet.model.rotary import grid_rotation, rotate

Grid = tuple[int, int, int]


class PositionTable(nn.Module):
    """Learned positions [rows, columns, D], resized to each image; fixed sin-cos positions in time."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        shape = (config.init_pos_emb_height, config.init_pos_emb_width, config.vt_hidden_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.max_frames = config.init_pos_emb_time or 1

    def forward(self, grids: Sequence[Grid]) -> Tensor:
        """[P, D] in the order of the patches."""
        spaces = {(h, w): self._space(h, w) for _, h, w in grids}
        items = []
        for frames, height, width in grids:
            space = spaces[height, width]
            if frames > 1:  # a single image carries no time at all
                space = (space + self._time(frames)[:, None]).flatten(0, 1)
            items.append(space)
        return torch.cat(items)

    def _space(self, height: int, width: int) -> Tensor:
        if (height, width) == self.weight.shape[:2]:
            return self.weight.flatten(0, 1)
        table = self.weight.float().permute(2, 0, 1)[None]
        resized = F.interpolate(table, (height, width), mode="bicubic", align_corners=False)
        return resized[0].permute(1, 2, 0).flatten(0, 1).to(self.weight.dtype)

    def _time(self, frames: int) -> Tensor:
        """[frames, D]: the sine of every frequency, then the cosine of every frequency."""
        half = self.weight.shape[-1] // 2
        frequencies = 1.0 / 10_000 ** (torch.arange(half, device=self.weight.device).float() / half)
        angles = torch.arange(frames, device=self.weight.device).float()[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.weight.dtype)


class PatchEmbed(nn.Module):
    """One linear map per patch (a convolution whose stride is its size), plus positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.vt_hidden_size, config.patch_size, stride=config.patch_size)
        self.pos_emb = PositionTable(config)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        flat = F.linear(patches.flatten(1), self.proj.weight.flatten(1), self.proj.bias)
        return flat + self.pos_emb(grids)


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc0 = nn.Linear(config.vt_hidden_size, config.vt_intermediate_size)
        self.fc1 = nn.Linear(config.vt_intermediate_size, config.vt_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(F.gelu(self.fc0(x), approximate="tanh"))


class VisionBlock(nn.Module):
    """Pre-norm transformer block with bidirectional attention inside each item."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.vt_hidden_size
        self.num_heads = config.vt_num_attention_heads
        self.norm0 = nn.LayerNorm(d, eps=1e-5)
        self.norm1 = nn.LayerNorm(d, eps=1e-5)
        self.wqkv = nn.Linear(d, 3 * d)
        self.wo = nn.Linear(d, d)
        self.mlp = VisionMLP(config)

    def forward(
        self, x_PD: Tensor, rotation: tuple[Tensor, Tensor], items: Sequence[Tensor]
    ) -> Tensor:
        """`rotation`: cos, sin [P, D/H/2]. `items`: rows [n, length] of the items of each length."""
        x_PD = x_PD + self._attention(self.norm0(x_PD), rotation, items)
        return x_PD + self.mlp(self.norm1(x_PD))

    def _attention(
        self, x_PD: Tensor, rotation: tuple[Tensor, Tensor], items: Sequence[Tensor]
    ) -> Tensor:
        cos, sin = (angle[:, None] for angle in rotation)
        q, k, v = self.wqkv(x_PD).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # (P, H, D/H)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = torch.zeros_like(q)
        for rows in items:  # items of equal length share one batched call
            q_i, k_i, v_i = (t[rows].transpose(1, 2) for t in (q, k, v))
            out[rows] = F.scaled_dot_product_attention(q_i, k_i, v_i).transpose(1, 2)
        return self.wo(out.flatten(1))


class VisionEncoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.vt_num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.vt_hidden_size, eps=1e-5)


class VisionTower(nn.Module):
    """Patches -> one vector per patch and merged cell, averaged over the frames of a chunk."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.encoder = VisionEncoder(config)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """patches [P, 3, patch, patch] -> [cells of all items, patches per cell, D]."""
        self._check(patches, grids)
        x_PD = self.patch_embed(patches, grids)
        rotation = _rotations(
            grids, x_PD.shape[-1] // self.config.vt_num_attention_heads, x_PD.device
        )
        items = _rows_by_length(grids, x_PD.device)
        for block in self.encoder.blocks:
            x_PD = block(x_PD, rotation, items)
        return self._merge(self.encoder.final_layernorm(x_PD), grids)

    def _merge(self, x_PD: Tensor, grids: Sequence[Grid]) -> Tensor:
        rows, columns = self.config.merge_kernel_size
        cells = []
        for item, (t, h, w) in zip(
            x_PD.split([t * h * w for t, h, w in grids]), grids, strict=True
        ):
            frame = item.view(t, h // rows, rows, w // columns, columns, -1).mean(0)
            cells.append(frame.transpose(1, 2).reshape(-1, rows * columns, x_PD.shape[-1]))
        return torch.cat(cells)

    def _check(self, patches: Tensor, grids: Sequence[Grid]) -> None:
        rows, columns = self.config.merge_kernel_size
        most = self.config.init_pos_emb_time or 1
        for t, h, w in grids:
            if not (1 <= t <= most and h > 0 and w > 0 and h % rows == 0 and w % columns == 0):
                raise EngineError(
                    f"a media item of {t} frames, {h} x {w} patches does not fit this model: at most "
                    f"{most} frames, sides that are multiples of {rows} and {columns} patches"
                )
        if patches.shape[0] != sum(t * h * w for t, h, w in grids):
            raise EngineError(f"{patches.shape[0]} patches do not fill the grids {list(grids)}")


def _rotations(grids: Sequence[Grid], head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    pairs = [grid_rotation(t, h, w, head_dim, device) for t, h, w in grids]
    return torch.cat([cos for cos, _ in pairs]), torch.cat([sin for _, sin in pairs])


def _rows_by_length(grids: Sequence[Grid], device: torch.device) -> list[Tensor]:
    """Row numbers of the items, those of equal length stacked: tensors [n, length]."""
    starts, start = defaultdict(list), 0
    for t, h, w in grids:
        starts[t * h * w].append(start)
        start += t * h * w
    return [
        torch.tensor(first, device=device)[:, None] + torch.arange(length, device=device)
        for length, first in starts.items()
    ]


class Projector(nn.Module):
    """Merged cells of patches -> the text network's width (`patchmerger`)."""

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(config.vt_hidden_size, eps=config.projector_ln_eps)
        self.proj = nn.Sequential(
            nn.Linear(config.merged_size, config.merged_size),
            nn.GELU(),
            nn.Linear(config.merged_size, hidden_size),
        )

    def forward(self, cells: Tensor) -> Tensor:
        """[cells, patches per cell, D] -> [cells, hidden_size]."""
        return self.proj(self.pre_norm(cells).flatten(1))
