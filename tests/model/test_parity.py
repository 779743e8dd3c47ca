"""Ours against transformers at random weights in float32: logits, cache, media, gradients.

The bar is a relative error of 1e-5; what is seen is about 5e-7.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.checkpoint import from_state_dict
from moonlet.errors import EngineError
from moonlet.model import LatentCache, Media, Model
from tests.model.peer import TINY, VARIANTS, reference, relative_error

BAR = 1e-5
PAD = TINY.media_placeholder_token_id


class Pair:
    """The same weights in both implementations."""

    def __init__(self, name: str) -> None:
        self.config = VARIANTS[name]
        self.theirs: Any = reference(self.config)
        self.ours = Model(self.config).eval()
        self.ours.load_state_dict(from_state_dict(self.theirs.state_dict(), self.config))


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.fixture(scope="module")
def kimi() -> Pair:
    return Pair("kimi_k25")


def random_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 250, shape, generator=torch.Generator().manual_seed(seed))


def random_patches(grids: list[tuple[int, int, int]]) -> Tensor:
    total = sum(t * h * w for t, h, w in grids)
    return torch.randn(total, 3, 14, 14, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def test_text(pair: Pair) -> None:
    ids = random_ids(3, 70)
    assert relative_error(pair.ours(ids), pair.theirs(input_ids=ids).logits) < BAR


@torch.inference_mode()
def test_more_than_4096_positions_at_once_in_pieces_and_by_token(pair: Pair) -> None:
    ids = random_ids(1, 4180)
    expected = pair.theirs(input_ids=ids).logits
    assert relative_error(pair.ours(ids), expected) < BAR
    cache = LatentCache(pair.config, 1, 4180)
    borders = [0, 1500, 1501, 1504, 4090, *range(4091, 4111), 4170, *range(4171, 4181)]
    pieces = [pair.ours(ids[:, start:end], cache=cache) for start, end in pairwise(borders)]
    assert relative_error(torch.cat(pieces, 1), expected) < BAR


@pytest.mark.parametrize("absorbed", [False, True])
@torch.inference_mode()
def test_both_forms_of_attention_token_by_token(pair: Pair, absorbed: bool) -> None:
    ids = random_ids(2, 40)
    expected = pair.theirs(input_ids=ids).logits
    cache = LatentCache(pair.config, 2, 40)
    borders = [0, 9, 12, *range(13, 41)]
    pieces = [
        pair.ours(ids[:, start:end], cache=cache, absorbed=absorbed)
        for start, end in pairwise(borders)
    ]
    assert relative_error(torch.cat(pieces, 1), expected) < BAR
    assert relative_error(pair.ours(ids, absorbed=absorbed), expected) < BAR


@torch.inference_mode()
def test_a_batch_of_different_lengths(pair: Pair) -> None:
    lengths = [17, 5, 30]
    ids = random_ids(3, 30)
    mask = torch.tensor([[1] * n + [0] * (30 - n) for n in lengths])
    expected = pair.theirs(input_ids=ids, attention_mask=mask).logits
    cache = LatentCache(pair.config, 3, 40)
    ours = pair.ours(ids, cache=cache)
    for row, n in enumerate(lengths):
        assert relative_error(ours[row, :n], expected[row, :n]) < BAR
    # Each sequence goes on from its own end; the padding of the shorter ones must stay unseen.
    following = random_ids(3, 4, seed=3)
    positions = torch.tensor(lengths)[:, None]
    for step in range(4):
        logits = pair.ours(following[:, step : step + 1], positions=positions + step, cache=cache)
        for row, n in enumerate(lengths):
            whole = torch.cat((ids[row, :n], following[row, : step + 1]))[None]
            alone = pair.theirs(input_ids=whole).logits[0, -1]
            assert relative_error(logits[row, 0], alone) < BAR


@torch.inference_mode()
def test_packed_documents_equal_the_documents_alone(pair: Pair) -> None:
    lengths = [5, 11, 1, 20]
    ids = random_ids(1, sum(lengths))
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = pair.ours(ids, positions=positions, segments=segments)
    alone = [pair.theirs(input_ids=part).logits for part in ids.split(lengths, dim=1)]
    assert relative_error(packed, torch.cat(alone, 1)) < BAR


def with_media(counts: list[int]) -> Tensor:
    """A prompt with runs of placeholders of those lengths between random text."""
    parts = [random_ids(4)]
    for index, count in enumerate(counts):
        parts += [torch.full((count,), PAD), random_ids(3 + index, seed=index)]
    return torch.cat(parts)[None]


@pytest.mark.parametrize(
    "grids",
    [[(1, 6, 4)], [(1, 8, 8)], [(1, 2, 2)], [(1, 6, 4), (1, 10, 14)], [(1, 4, 4), (1, 2, 6), (1, 4, 4)]],
    ids=["one image", "of the table's size", "smallest", "two sizes", "three images"],
)  # fmt: skip
@torch.inference_mode()
def test_images(kimi: Pair, grids: list[tuple[int, int, int]]) -> None:
    ids, patches = with_media([h * w // 4 for _, h, w in grids]), random_patches(grids)
    theirs = kimi.theirs(
        input_ids=ids, pixel_values=patches, image_grid_thw=torch.tensor(grids)
    ).logits
    assert relative_error(kimi.ours(ids, media=Media(patches, grids)), theirs) < BAR


def in_pieces(model: Model, ids: Tensor, media: Media, borders: list[int]) -> Tensor:
    """Logits of a prompt with media through the cache; no border may cut an item."""
    cache = LatentCache(model.config, 1, ids.shape[1])
    grids, patches = list(media.grids), media.patches
    pieces = []
    for start, end in pairwise([0, *borders, ids.shape[1]]):
        piece, inside = ids[:, start:end], []
        waiting = int((piece == PAD).sum())
        while waiting > 0:
            inside.append(grids.pop(0))
            waiting -= inside[-1][1] * inside[-1][2] // 4
        count = sum(t * h * w for t, h, w in inside)
        part = Media(patches[:count], inside) if inside else None
        patches = patches[count:]
        pieces.append(model(piece, media=part, cache=cache))
    return torch.cat(pieces, 1)


@torch.inference_mode()
def test_images_in_pieces_and_token_by_token(kimi: Pair) -> None:
    grids = [(1, 6, 4), (1, 10, 14)]
    ids, patches = with_media([6, 35]), random_patches(grids)
    theirs = kimi.theirs(
        input_ids=ids, pixel_values=patches, image_grid_thw=torch.tensor(grids)
    ).logits
    # The prompt is 4 of text, 6 of an image, 3 of text, 35 of an image, 4 of text.
    for borders in ([10], [2, 10, 13], [4, 10, 11, 12, 13, *range(48, 52)]):
        ours = in_pieces(kimi.ours, ids, Media(patches, grids), borders)
        assert relative_error(ours, theirs) < BAR


@torch.inference_mode()
def test_video_of_several_chunks(kimi: Pair) -> None:
    """The library's own wrapper fails on chunks (its split sizes count frames), its tower does not."""
    grids = [(4, 6, 4), (4, 6, 4), (3, 6, 4)]
    patches, ids = random_patches(grids), with_media([6, 6, 6])
    model = kimi.theirs.model
    features = [
        model.mm_projector(
            model.vision_tower(chunk, grid_thw=torch.tensor([grid])).pooler_output
        ).squeeze(1)
        for chunk, grid in zip(patches.split([96, 96, 72]), grids, strict=True)
    ]
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == PAD] = torch.cat(features)
    theirs = kimi.theirs(inputs_embeds=embeds).logits
    media = Media(patches, grids)
    assert relative_error(kimi.ours(ids, media=media), theirs) < BAR
    by_token = in_pieces(kimi.ours, ids, media, [10, 11, 12, 13, 19, 23, *range(29, 34)])
    assert relative_error(by_token, theirs) < BAR
    backwards = kimi.ours(ids, media=Media(patches.flip(0), grids))
    assert relative_error(backwards[:, -1], theirs[:, -1]) > BAR


@torch.inference_mode()
def test_kimi_vl_is_the_network_without_time() -> None:
    """transformers has no kimi_vl; for single images it is this network without a query latent."""
    pair = Pair("kimi_k25 without q_lora")
    assert pair.config.vision is not None
    vision = replace(pair.config.vision, init_pos_emb_time=None)
    ours = Model(replace(pair.config, model_type="kimi_vl", vision=vision)).eval()
    ours.load_state_dict(pair.ours.state_dict())
    grids = [(1, 6, 4), (1, 4, 8)]
    ids, patches = with_media([6, 8]), random_patches(grids)
    theirs = pair.theirs(
        input_ids=ids, pixel_values=patches, image_grid_thw=torch.tensor(grids)
    ).logits
    assert relative_error(ours(ids, media=Media(patches, grids)), theirs) < BAR
    with pytest.raises(EngineError, match="at most 1 frames"):
        ours(with_media([6]), media=Media(random_patches([(2, 6, 4)]), [(2, 6, 4)]))


@torch.inference_mode()
def test_images_and_chunks_in_one_batch_equal_each_alone(kimi: Pair) -> None:
    grids = [(1, 6, 4), (2, 4, 4), (1, 2, 2), (4, 6, 4)]
    patches = random_patches(grids)
    tower = kimi.ours.vision_tower
    assert tower is not None
    sizes = [t * h * w for t, h, w in grids]
    alone = [tower(part, [grid]) for part, grid in zip(patches.split(sizes), grids, strict=True)]
    assert relative_error(tower(patches, grids), torch.cat(alone)) < BAR


def test_gradients_of_one_training_step(pair: Pair) -> None:
    ids = random_ids(2, 33)
    targets = ids[:, 1:].flatten()
    ours = pair.ours.train().requires_grad_(True)
    pair.theirs.zero_grad()
    loss = torch.nn.functional.cross_entropy
    loss(ours(ids[:, :-1]).flatten(0, 1), targets).backward()
    loss(pair.theirs(input_ids=ids[:, :-1]).logits.flatten(0, 1), targets).backward()
    expected = gradients_by_canonical_name(pair)
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            assert name.startswith(("vision_tower", "mm_projector")), name
            continue
        assert relative_error(parameter.grad, expected[name]) < BAR, name
        compared += 1
    assert compared >= 30
    ours.eval().requires_grad_(False)


def test_gradients_reach_the_tower(kimi: Pair) -> None:
    grids = [(1, 6, 4), (1, 4, 8)]
    ids, patches = with_media([6, 8]), random_patches(grids)
    ours = kimi.ours.train().requires_grad_(True)
    kimi.theirs.zero_grad()
    ours.zero_grad()
    ours(ids, media=Media(patches, grids))[0, -1].log_softmax(-1)[7].backward()
    theirs = kimi.theirs(input_ids=ids, pixel_values=patches, image_grid_thw=torch.tensor(grids))
    theirs.logits[0, -1].log_softmax(-1)[7].backward()
    expected = gradients_by_canonical_name(kimi)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith(("vision_tower", "mm_projector")):
            assert relative_error(parameter.grad, expected[name]) < BAR, name
    ours.eval().requires_grad_(False)


def gradients_by_canonical_name(pair: Pair) -> dict[str, Tensor]:
    """Gradients of the reference, renamed and rearranged as its weights are."""
    state = {name: torch.zeros_like(tensor) for name, tensor in pair.theirs.state_dict().items()}
    state |= {n: p.grad for n, p in pair.theirs.named_parameters() if p.grad is not None}
    return from_state_dict(state, pair.config)
