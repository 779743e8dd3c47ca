"""Examples of any length -> tensors: grouped by length, padded on the right, loss on the answers only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from moonlet.chat.media import MediaItem
from moonlet.model import Media

IGNORED = -100  # the target of a position without loss, as in F.cross_entropy


class Example(Protocol):
    """A tokenised conversation: the loss is on everything after the first `prompt_length` ids."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def prompt_length(self) -> int: ...
    @property
    def media(self) -> Sequence[MediaItem]: ...


@dataclass(frozen=True)
class Batch:
    """input_ids [B, T]; targets [B, T], the next id or IGNORED; the images of all rows in order."""

    input_ids: Tensor
    targets: Tensor
    media: Media | None

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORED).sum())


def micro_batches(examples: Sequence[Example], max_tokens: int) -> list[Batch]:
    """All examples in batches of at most `max_tokens` padded ids (a longer example stands alone).

    Neighbours in length share a batch, so that little is padding.
    """
    batches: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda e: len(e.token_ids)):
        if batches[-1] and (len(batches[-1]) + 1) * len(example.token_ids) > max_tokens:
            batches.append([])
        batches[-1].append(example)
    return [collate(batch) for batch in batches if batch]


def collate(examples: Sequence[Example]) -> Batch:
    """One batch. Padding is id 0 with an ignored target: causal order hides it from the rest."""
    length = max(len(example.token_ids) for example in examples) - 1
    input_ids = torch.zeros(len(examples), length, dtype=torch.long)
    targets = torch.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.token_ids)
        input_ids[row, : len(ids) - 1] = ids[:-1]
        first = max(example.prompt_length - 1, 0)
        targets[row, first : len(ids) - 1] = ids[first + 1 :]
    items = [item for example in examples for item in example.media]
    if not items:
        return Batch(input_ids, targets, None)
    patches = torch.from_numpy(np.concatenate([item.patches for item in items]))
    return Batch(input_ids, targets, Media(patches, [item.grid for item in items]))
