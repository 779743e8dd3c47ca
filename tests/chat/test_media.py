"""Patches against the golden cases, chunks of videos, and limits from hostile files."""

import hashlib
import json
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moonlet.chat.media import (
    MediaItem,
    MediaLimits,
    image_item,
    image_tokens,
    resized,
    sampled_frames,
    timestamp,
    video_items,
    video_tokens,
)
from moonlet.errors import ConfigError, MediaError, NotSupportedError
from tests.shared import golden, needs_shared

K25 = MediaLimits()
K25_FILE = {
    "media_proc_cfg": {
        "in_patch_limit": 16384,
        "in_patch_limit_each_frame": 4096,
        "in_patch_limit_video": None,
        "patch_limit_on_one_side": 512,
        "fixed_output_tokens": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "patch_size": 14,
        "merge_kernel_size": 2,
        "temporal_merge_kernel_size": 4,
        "sample_fps": 2.0,
        "max_num_frames_each_video": None,
        "timestamp_mode": "hh:mm:ss.fff",
    }
}
KIMI_VL_FILE = {
    "in_token_limit": 4096,
    "patch_size": 14,
    "merge_kernel_size": [2, 2],
    "pad_input": True,
}


@needs_shared
def test_golden_sizes() -> None:
    cases = golden("image_preprocess.json")["resize_cases"]
    assert len(cases) == 17
    for case in cases:
        for name, limit in (("image_limit_16384", 16384), ("video_frame_limit_4096", 4096)):
            wanted = case[name]
            size = resized(case["width"], case["height"], limit, K25)
            assert size == (wanted["new_w"], wanted["new_h"])
            limits = MediaLimits(image_patches=limit)
            assert image_tokens(case["width"], case["height"], limits) == wanted["tokens"]
            assert image_tokens(case["height"], case["width"], limits) == wanted["tokens"]
            if case["width"] * case["height"] > 4_000_000:
                continue  # the grid follows from the size; skipping saves memory
            image = Image.new("RGB", (case["width"], case["height"]))
            item = image_item(image, limits)
            assert item.grid == (1, wanted["grid_h"], wanted["grid_w"])
            assert item.num_tokens == wanted["tokens"]
            assert item.patches.shape == (wanted["grid_h"] * wanted["grid_w"], 3, 14, 14)


@needs_shared
def test_golden_pixels() -> None:
    case = golden("image_preprocess.json")["pixel_case"]
    y, x = np.mgrid[: case["height"], : case["width"]]
    pixels = np.stack([7 * x + 3 * y, 5 * x + 11 * y, x * y], axis=-1) % 256
    item = image_item(Image.fromarray(pixels.astype(np.uint8)), K25)
    assert item.patches.dtype == np.float32
    assert list(item.grid[1:]) == case["grid_hw"]
    assert item.patches[0, 0, 0].tolist() == case["patch0_channel0_row0"]
    digest = hashlib.sha256(item.patches.astype("<f4").tobytes()).hexdigest()
    assert digest == case["sha256_f32_le"]


def test_patches_lie_in_reading_order() -> None:
    pixels = np.zeros((28, 56, 3), dtype=np.uint8)
    for row in range(2):
        for column in range(4):
            block = pixels[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            block[:] = (row * 4 + column, 0, 255)
    patches = image_item(Image.fromarray(pixels), K25).patches
    assert np.round((patches[:, 0, 3, 5] + 1) * 127.5).tolist() == list(range(8))
    assert (patches[:, 1] == -1).all()
    assert (patches[:, 2] == 1).all()


def test_channels_are_normalised_one_by_one() -> None:
    limits = MediaLimits(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    patches = image_item(Image.new("RGB", (28, 28), (255, 255, 0)), limits).patches
    assert [patches[0, c, 0, 0] for c in range(3)] == [1.0, 1.0, -4.0]


# Video


def frames(count: int, size: tuple[int, int] = (30, 30)) -> list[Image.Image]:
    return [Image.new("RGB", size, (index, 0, 0)) for index in range(count)]


@dataclass
class Film:
    """A video in memory that remembers what was decoded."""

    pictures: list[Image.Image]
    fps: float
    decoded: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.pictures[0].width

    @property
    def height(self) -> int:
        return self.pictures[0].height

    @property
    def count(self) -> int:
        return len(self.pictures)

    def frames(self, chosen: Iterable[int]) -> Generator[Image.Image, None, None]:
        for index in chosen:
            self.decoded.append(index)
            yield self.pictures[index]


def test_chunks_of_a_video() -> None:
    film = Film(frames(90), 30.0)
    items = video_items(film, K25)
    assert film.decoded == [0, 18, 36, 53, 71, 89]
    assert sampled_frames(90, 30.0, K25) == [0, 18, 36, 53, 71, 89]
    assert [(stamp, item.grid) for stamp, item in items] == [
        ("00:00:00.000", (4, 4, 4)),
        ("00:00:02.366", (2, 4, 4)),
    ]
    first = items[0][1]
    assert first.num_tokens == 4
    assert first.patches.shape == (64, 3, 14, 14)
    assert np.round((first.patches[::16, 0, 0, 0] + 1) * 127.5).tolist() == [0, 18, 36, 53]


@pytest.mark.parametrize(
    ("count", "fps", "chosen"),
    [
        (1, 30.0, [0]),
        (4, 1.0, [0, 1, 2, 3]),
        (5, 2.0, [0, 1, 2, 3, 4]),
        (3, 1000.0, [0]),
        (20, 10.0, [0, 6, 13, 19]),
    ],
)
def test_sampling(count: int, fps: float, chosen: list[int]) -> None:
    assert sampled_frames(count, fps, K25) == chosen


def test_sampling_is_limited() -> None:
    assert sampled_frames(100, 2.0, MediaLimits(max_frames=3)) == [0, 50, 99]


def test_timestamps_are_truncated() -> None:
    assert timestamp(0, 30) == "00:00:00.000"
    assert timestamp(2, 3) == "00:00:00.666"
    assert timestamp(3723 * 4 + 1, 4) == "01:02:03.250"


def test_frames_have_their_own_limit() -> None:
    film = Film(frames(1, (1792, 1792)), 1.0)
    ((_, item),) = video_items(film, K25)
    assert video_tokens(film, K25) == item.num_tokens
    assert item.grid == (1, 64, 64)


def test_tokens_are_known_before_decoding() -> None:
    for count in (1, 4, 5, 23):
        film = Film(frames(count, (60, 30)), 2.0)
        tokens = video_tokens(film, K25)
        assert not film.decoded
        assert tokens == sum(item.num_tokens for _, item in video_items(film, K25))


# Limits


def test_published_limits() -> None:
    assert MediaLimits.from_hf(K25_FILE) == K25
    kimi_vl = MediaLimits.from_hf(KIMI_VL_FILE)
    assert (kimi_vl.image_patches, kimi_vl.shrinks_long_sides) == (4096, False)
    assert kimi_vl.mean[0] == 0.48145466


def test_kimi_vl_shrinks_by_area_only_and_refuses_long_sides() -> None:
    limits = MediaLimits.from_hf(KIMI_VL_FILE)
    assert resized(896, 896, limits.image_patches, limits) == (896, 896)
    assert resized(1792, 896, limits.image_patches, limits) == (1267, 633)
    assert resized(5, 900, limits.image_patches, limits) == (5, 900)
    assert resized(30, 7140, limits.image_patches, limits) == (30, 7140)
    with pytest.raises(MediaError, match="too long"):
        resized(30, 7141, limits.image_patches, limits)


@pytest.mark.parametrize(
    "change",
    [
        {"in_patch_limit": 10**12},
        {"in_patch_limit": 0},
        {"in_patch_limit": "16384"},
        {"in_patch_limit": True},
        {"in_patch_limit_each_frame": -1},
        {"patch_limit_on_one_side": 10**9},
        {"temporal_merge_kernel_size": 0},
        {"max_num_frames_each_video": 0},
        {"sample_fps": 0},
        {"sample_fps": float("nan")},
        {"image_mean": [0.5]},
        {"image_mean": "0.5"},
        {"image_mean": [0.5, 0.5, float("nan")]},
        {"image_std": [0.5, 0.5, 0]},
        {"image_std": [0.5, None, 0.5]},
    ],
)
def test_hostile_limits(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        MediaLimits.from_hf({"media_proc_cfg": K25_FILE["media_proc_cfg"] | change})


@pytest.mark.parametrize(
    "raw",
    [
        {"media_proc_cfg": {"patch_size": 16}},
        {"media_proc_cfg": {"merge_kernel_size": [4, 4]}},
        {"media_proc_cfg": {"fixed_output_tokens": 5}},
        {"media_proc_cfg": {"in_patch_limit_video": 9}},
        {"media_proc_cfg": {"timestamp_mode": "s"}},
        KIMI_VL_FILE | {"pad_input": False},
        {"image_processor_type": "CLIPImageProcessor"},
        {"media_proc_cfg": 3},
        [],
        None,
    ],
)
def test_unsupported_processors(raw: Any) -> None:
    with pytest.raises(NotSupportedError):
        MediaLimits.from_hf(raw)


def test_from_folder(tmp_path: Path) -> None:
    assert MediaLimits.from_folder(tmp_path) is None
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(K25_FILE))
    assert MediaLimits.from_folder(tmp_path) == K25
    for bad in ("{", "[" * 100_000, '"' + "x" * 2**21 + '"'):
        path.write_text(bad)
        with pytest.raises(ConfigError, match="not readable JSON"):
            MediaLimits.from_folder(tmp_path)


# What a prefix cache compares


def test_equal_pictures_have_equal_digests() -> None:
    image = Image.effect_noise((60, 40), 50)
    first, second = image_item(image, K25), image_item(image.copy(), K25)
    assert first.digest == second.digest
    assert len(first.digest) == 32
    assert first.digest is first.digest  # computed once


def test_whatever_differs_changes_the_digest() -> None:
    values = np.zeros((16, 3, 14, 14), np.uint8)
    other = values.copy()
    other[15, 2, 13, 13] = 1
    table = np.zeros((256, 3), np.float32)
    items = [
        MediaItem(values, (1, 4, 4)),
        MediaItem(other, (1, 4, 4)),
        MediaItem(values, (1, 2, 8)),
        MediaItem(values, (1, 4, 4), "video"),
        MediaItem(values, (1, 4, 4), "image", table),
        MediaItem(values, (1, 4, 4), "image", table + 1),
        MediaItem(values.astype(np.float32), (1, 4, 4)),
    ]
    assert len({item.digest for item in items}) == len(items)


def test_a_chunk_of_one_frame_is_no_image() -> None:
    ((_, chunk),) = video_items(Film(frames(1), 1.0), K25)
    image = image_item(frames(1)[0], K25)
    assert chunk.grid == image.grid
    assert (chunk.patches == image.patches).all()
    assert chunk.digest != image.digest


def test_pixels_wait_as_bytes() -> None:
    item = image_item(Image.effect_noise((60, 40), 50), K25)
    assert item.values.dtype == np.uint8
    assert item.patches.dtype == np.float32
    assert item.patches.flags.c_contiguous
    plain = MediaItem(item.patches, item.grid)
    assert plain.patches is plain.values
