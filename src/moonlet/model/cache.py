"""The latent cache: what multi-head latent attention keeps of the past.

Per token and layer one row of kv_lora_rank + qk_rope_head_dim numbers, the normed latent and the
rotated key that all heads share. Row i of a sequence holds position i, so a longer prompt beside a
shorter one needs no bookkeeping: positions beyond a sequence's own are never visible to it. Rows lie in
pages; who owns which page is decided elsewhere.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moonlet.config import ModelConfig
from moonlet.errors import EngineError


class LatentCache:
    """Pages of `page_size` positions each, for all layers: rows [layers, pages, page_size, latent_size].

    A batch without a table has one page for each sequence: `pages` is then the size of the batch and
    `page_size` the longest sequence. With a table [batch, pages of each] any sequence has any pages.
    `length` is the number of positions written without a table, over all sequences the largest.
    """

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_hidden_layers, pages, page_size, config.latent_size)
        self.rows = _zero_pages(shape, dtype).to(device)
        self.length = 0

    @property
    def page_size(self) -> int:
        return self.rows.shape[2]

    def extend(self, positions: Tensor, table: Tensor | None) -> int:
        """Makes room for `positions` [batch, new]; returns how many rows are now in use.

        Raises EngineError when the positions or the batch do not fit.
        """
        batch, pages = (self.rows.shape[1], 1) if table is None else table.shape
        end = int(positions.max()) + 1
        if end > pages * self.page_size:
            raise EngineError(
                f"position {end - 1} does not fit a cache of {pages * self.page_size} positions"
            )
        if positions.shape[0] != batch:
            raise EngineError(
                f"a batch of {positions.shape[0]} met a cache made for {batch} sequences"
            )
        if table is None:
            self.length = max(self.length, end)
        return end

    def update(
        self, layer_idx: int, positions: Tensor, latent: Tensor, end: int, table: Tensor | None
    ) -> Tensor:
        """Writes `latent` [batch, new, latent_size] at `positions`; returns rows 0..end of each sequence."""
        layer = self.rows[layer_idx]
        batch = torch.arange(positions.shape[0], device=positions.device)[:, None]
        if table is None:
            layer[batch, positions] = latent.to(layer.dtype)
            return layer[:, :end]
        pages = table[batch, positions // self.page_size]
        layer[pages, positions % self.page_size] = latent.to(layer.dtype)
        return layer[table[:, : -(-end // self.page_size)]].flatten(1, 2)[:, :end]


def _zero_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they are written to: room for a long answer costs nothing."""
    data = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(data).view(dtype).view(shape)


@dataclass(frozen=True)
class Paged:
    """The cache for the kernels: token n is row position[n] of sequence[n].

    pages uint16 [layers, P, page_size, latent_size], the bits of bfloat16; table int32 [sequences, pages of each].
    """

    pages: NDArray[np.uint16]
    table: NDArray[np.int32]
    sequence: NDArray[np.int32]
    position: NDArray[np.int32]


class Past:
    """What one forward pass sees of earlier tokens: the cache, and which keys each query may use.

    `mask` [B, 1, T, S] is None when plain causal order says it all.
    """

    def __init__(
        self,
        cache: LatentCache | None,
        positions_BT: Tensor,
        segments_BT: Tensor | None = None,
        table: Tensor | None = None,
    ) -> None:
        self.cache = cache
        self.positions = positions_BT
        self.segments = segments_BT
        self.table = table
        self._paged: Paged | None = None
        self.mask: Tensor | None = None
        new = positions_BT.shape[1]
        if cache is None:
            if segments_BT is not None:
                same = segments_BT[:, :, None] == segments_BT[:, None, :]
                self.mask = same.tril()[:, None]
            return
        self.end = cache.extend(positions_BT, table)
        from_start = self.end == new and bool((positions_BT[:, 0] == 0).all())
        one_for_all = new == 1 and bool((positions_BT == self.end - 1).all())
        if not from_start and not one_for_all:
            keys = torch.arange(self.end, device=positions_BT.device)
            self.mask = (keys <= positions_BT[:, :, None])[:, None]

    def paged(self, config: ModelConfig) -> Paged:
        """The rows of all layers, and where the new tokens go, as `moonlet.kernels` takes them.

        Rows are bfloat16; without a cache they last as long as this. Raises EngineError for a cache of
        another type.
        """
        if self._paged is None:
            batch, new = self.positions.shape
            cache = self.cache
            if cache is None:
                length = int(self.positions.max()) + 1
                cache = LatentCache(config, batch, length, torch.bfloat16)
            if cache.rows.dtype != torch.bfloat16:
                raise EngineError(f"the kernels' cache is bfloat16, this one is {cache.rows.dtype}")
            self._paged = Paged(
                cache.rows.view(torch.uint16).numpy(),
                np.arange(batch, dtype=np.int32)[:, None]  # a sequence is one long page
                if self.table is None
                else self.table.to(torch.int32).contiguous().numpy(),
                np.repeat(np.arange(batch, dtype=np.int32), new),
                self.positions.flatten().to(torch.int32).numpy(),
            )
        return self._paged

    def update(self, layer_idx: int, latent_BTL: Tensor) -> Tensor:
        """The latents that this layer's queries may look at, the new ones included: [B, S, L]."""
        if self.cache is None:
            return latent_BTL
        rows = self.cache.update(layer_idx, self.positions, latent_BTL, self.end, self.table)
        return rows.to(latent_BTL.dtype)
