"""One call of the network for many answers, or for a piece of one prompt, over the shared pages."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from moonlet.chat.media import MediaItem
from moonlet.engine.scheduler import Task
from moonlet.model import LatentCache, Media, Model

Logits = NDArray[np.float32]  # [vocab_size]


class Batch:
    """Runs `model` over `cache`, whose pages belong to the tasks."""

    def __init__(self, model: Model, cache: LatentCache) -> None:
        self.model, self.cache = model, cache

    def decode(self, tasks: Sequence[Task]) -> Sequence[Logits]:
        """The logits after the last token of each task, whose latents are computed by this."""
        ids = torch.tensor([[task.tokens[-1]] for task in tasks])
        positions = torch.tensor([[len(task.tokens) - 1] for task in tasks])
        return self._logits(self._hidden(tasks, ids, positions)[:, -1])

    def verify(self, task: Task, draft: Sequence[int]) -> Sequence[Logits]:
        """The logits after its last token and after each of `draft`, which would follow it."""
        ids = torch.tensor([[task.tokens[-1], *draft]])
        positions = torch.arange(len(task.tokens) - 1, len(task.tokens) + len(draft))[None]
        return self._logits(self._hidden([task], ids, positions)[0])

    def prefill(
        self, task: Task, begin: int, end: int, media: Sequence[MediaItem]
    ) -> Logits | None:
        """Computes tokens begin..end, in which `media` lie; the logits after the last token of all, or None."""
        ids = torch.tensor([task.tokens[begin:end]])
        hidden = self._hidden([task], ids, torch.arange(begin, end)[None], _pack(media))
        return self._logits(hidden[:, -1])[0] if end == len(task.tokens) else None

    def _hidden(
        self,
        tasks: Sequence[Task],
        ids: torch.Tensor,
        positions: torch.Tensor,
        media: Media | None = None,
    ) -> torch.Tensor:
        pages = [task.pages for task in tasks]
        table = np.zeros((len(tasks), max(map(len, pages))), np.int64)
        for row, own in zip(table, pages, strict=True):
            row[: len(own)] = own
        return self.model.hidden(
            ids,
            positions=positions,
            media=media,
            cache=self.cache,
            pages=torch.from_numpy(table),
        )

    def _logits(self, hidden: torch.Tensor) -> Sequence[Logits]:
        """Of `hidden` [N, D]."""
        return list(self.model.logits(hidden).float().cpu().numpy())


def _pack(items: Sequence[MediaItem]) -> Media | None:
    if not items:
        return None
    patches = torch.cat([torch.from_numpy(item.patches) for item in items])
    return Media(patches, [item.grid for item in items])
