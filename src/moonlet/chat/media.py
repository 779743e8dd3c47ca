"""Images and frames to the patches that the vision tower reads.

The rule is that of the published processors (K2.5 and Kimi-VL): shrink to a budget of patches,
resize bicubically, pad with black to whole 2 x 2 blocks of patches, normalise, cut.

    image [h, w, 3] uint8 -> resized, padded [H, W, 3] -> cut [H/14 * W/14, 3, 14, 14] -> patches, float32

Normalising comes last and only when the patches are asked for: until then they are bytes, a quarter of the
size, and there may be gigabytes of them in a queue.
"""

import functools
import hashlib
import json
import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from moonlet.errors import ConfigError, MediaError, NotSupportedError

PATCH = 14
MERGE = 2  # patches on a side that become one token
BLOCK = PATCH * MERGE

_MAX_PATCH_LIMIT = 2**18  # far above any published one; keeps a hostile file from taking the memory
_MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True)
class MediaItem:
    """What the vision tower reads in one go: an image, or a chunk of up to four video frames.

    values: [t * h * w, 3, 14, 14], frames one after another, rows first; float32, or uint8 with a `table` that
    says what each byte stands for. grid: t frames of h x w patches. table: float32 [256, 3], a column per
    channel.
    """

    values: np.ndarray
    grid: tuple[int, int, int]
    kind: Literal["image", "video"] = "image"
    table: np.ndarray | None = None

    @property
    def patches(self) -> np.ndarray:
        """The values as float32, newly computed where they are bytes: ask once."""
        if self.table is None:
            return self.values
        patches = np.empty(self.values.shape, np.float32)
        for channel in range(3):
            patches[:, channel] = self.table[self.values[:, channel], channel]
        return patches

    @functools.cached_property
    def digest(self) -> bytes:
        """sha256 over kind, grid and values: equal only for what the model cannot tell apart."""
        digest = hashlib.sha256(f"{self.kind} {self.grid} {self.values.dtype}".encode())
        for array in (self.values, self.table):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.digest()

    @property
    def num_tokens(self) -> int:
        """Positions in the prompt: 2 x 2 patches make one, frames of a chunk are averaged."""
        _, h, w = self.grid
        return _num_tokens(h, w)


@dataclass(frozen=True)
class MediaLimits:
    """The part of preprocessor_config.json that changes the result. Defaults are those of K2.5."""

    image_patches: int = 16384
    frame_patches: int = 4096
    side_patches: int = 512
    shrinks_long_sides: bool = True  # Kimi-VL refuses them instead
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    sample_fps: float = 2.0
    chunk_frames: int = 4
    max_frames: int | None = None
    # Not from the file: what all media of a conversation may take together, K2.5's context.
    max_tokens: int = 262_144

    @classmethod
    def from_folder(cls, folder: str | Path) -> "MediaLimits | None":
        """Limits of a checkpoint folder; None when it has no preprocessor_config.json.

        Raises ConfigError for a damaged file, NotSupportedError for values that moonlet lacks.
        """
        path = Path(folder) / "preprocessor_config.json"
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                raw = json.loads(file.read(_MAX_CONFIG_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not readable JSON.") from error
        return cls.from_hf(raw, str(path))

    @classmethod
    def from_hf(cls, raw: Any, source: str = "preprocessor_config.json") -> "MediaLimits":
        """Limits from the published keys, of K2.5 (`media_proc_cfg`) or of Kimi-VL."""
        if isinstance(raw, dict) and isinstance(raw.get("media_proc_cfg"), dict):
            return _k25_limits(_Keys(raw["media_proc_cfg"], source))
        if isinstance(raw, dict) and "in_token_limit" in raw:
            return _kimi_vl_limits(_Keys(raw, source))
        raise NotSupportedError(
            f"{source} is neither of Kimi-K2.5 (media_proc_cfg) nor of Kimi-VL (in_token_limit)."
        )


class Film(Protocol):
    """A video as its processing sees it; `frames` decodes those of the given ascending numbers."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def fps(self) -> float: ...
    # Closing it ends whatever decodes for it.
    def frames(self, chosen: Iterable[int]) -> Generator[Image.Image, None, None]: ...


# An image, or the chunks of a video with their timestamps.
Opened = MediaItem | list[tuple[str, MediaItem]]


def items_of(opened: Opened) -> list[MediaItem]:
    """The items without their timestamps."""
    return [opened] if isinstance(opened, MediaItem) else [item for _, item in opened]


def image_item(image: Image.Image, limits: MediaLimits) -> MediaItem:
    """One image as patches. Raises MediaError when Kimi-VL would refuse its shape."""
    pixels, h, w = _cut(image, limits.image_patches, limits)
    return MediaItem(pixels, (1, h, w), "image", _table(limits.mean, limits.std))


def image_tokens(width: int, height: int, limits: MediaLimits) -> int:
    """`num_tokens` of an image of this size, without decoding it; turning it changes nothing."""
    return _num_tokens(*_grid(width, height, limits.image_patches, limits))


def video_items(video: Film, limits: MediaLimits) -> list[tuple[str, MediaItem]]:
    """Chunks of a video, each with the timestamp (HH:MM:SS.mmm) of its first frame."""
    chosen = sampled_frames(video.count, video.fps, limits)
    table, items = _table(limits.mean, limits.std), []
    with closing(video.frames(chosen)) as frames:
        for begin in range(0, len(chosen), limits.chunk_frames):
            chunk = chosen[begin : begin + limits.chunk_frames]
            cut = [_cut(next(frames), limits.frame_patches, limits) for _ in chunk]
            _, h, w = cut[0]
            pixels = np.concatenate([pixels for pixels, _, _ in cut])
            item = MediaItem(pixels, (len(chunk), h, w), "video", table)
            items.append((timestamp(chunk[0], video.fps), item))
    return items


def video_tokens(video: Film, limits: MediaLimits) -> int:
    """The sum of `num_tokens` over the chunks of a video, without decoding it."""
    frames = len(sampled_frames(video.count, video.fps, limits))
    grid = _grid(video.width, video.height, limits.frame_patches, limits)
    return math.ceil(frames / limits.chunk_frames) * _num_tokens(*grid)


def sampled_frames(count: int, fps: float, limits: MediaLimits) -> list[int]:
    """Which of `count` frames at `fps` are shown to the model: evenly spread, ends included."""
    wanted = max(round(count * min(limits.sample_fps, fps) / fps), 1)
    wanted = min(wanted, count, limits.max_frames or count)
    return [int(index) for index in np.linspace(0, count - 1, wanted).round()]


def timestamp(index: int, fps: float) -> str:
    """Time of frame `index`, milliseconds truncated."""
    milliseconds = int(index / fps * 1000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}.{milliseconds:03d}"


def resized(width: int, height: int, patch_limit: int, limits: MediaLimits) -> tuple[int, int]:
    """Width and height in pixels after shrinking to `patch_limit` patches; never enlarges."""
    scale = min(1.0, math.sqrt(patch_limit / (max(1, width // PATCH) * max(1, height // PATCH))))
    side = limits.side_patches * PATCH
    if limits.shrinks_long_sides:
        scale = min(scale, side / width, side / height)
    new_width, new_height = max(1, int(width * scale)), max(1, int(height * scale))
    if limits.shrinks_long_sides:
        return min(new_width, side), min(new_height, side)
    if max(_padded(new_width), _padded(new_height)) >= side:
        raise MediaError(
            f"An image of {width} x {height} pixels is too long for this model, whose sides end "
            f"below {side} pixels; crop it."
        )
    return new_width, new_height


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _grid(width: int, height: int, patch_limit: int, limits: MediaLimits) -> tuple[int, int]:
    """Rows and columns of patches of a frame of this size."""
    width, height = resized(width, height, patch_limit, limits)
    return _padded(height) // PATCH, _padded(width) // PATCH


def _num_tokens(h: int, w: int) -> int:
    return (h // MERGE) * (w // MERGE)


def _cut(image: Image.Image, patch_limit: int, limits: MediaLimits) -> tuple[np.ndarray, int, int]:
    """Patches [h * w, 3, 14, 14] of one frame as bytes, and h and w."""
    width, height = resized(image.width, image.height, patch_limit, limits)
    pixels = image.convert("RGB")
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
    # Padded before normalising, so the border is black (-1), not grey (0).
    padded = np.zeros((_padded(height), _padded(width), 3), dtype=np.uint8)
    padded[:height, :width] = np.asarray(pixels)
    h, w = padded.shape[0] // PATCH, padded.shape[1] // PATCH
    patches = padded.reshape(h, PATCH, w, PATCH, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(patches).reshape(h * w, 3, PATCH, PATCH), h, w


@functools.cache
def _table(mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """The normalised value of every byte [256, 3], in double precision first: exact to the last bit."""
    return ((np.arange(256)[:, None] / 255 - mean) / std).astype(np.float32)


class _Keys:
    """Reads checked values of one file; `source` names it in errors."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self._raw, self._source = raw, source

    def must_be(self, key: str, *allowed: Any) -> None:
        if key in self._raw and self._raw[key] not in allowed:
            raise NotSupportedError(
                f"{self._source}: {key} is {str(self._raw[key])[:40]}, "
                f"moonlet supports only {allowed[0]}."
            )

    def whole(self, key: str, low: int, high: int, default: int) -> int:
        value = self._raw.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._refuse(key, value, f"a whole number from {low} to {high}")
        return value

    def optional_whole(self, key: str, low: int, high: int) -> int | None:
        return None if self._raw.get(key) is None else self.whole(key, low, high, low)

    def number(self, key: str, low: float, high: float, default: float) -> float:
        value = self._raw.get(key, default)
        if not _is_number(value) or not low <= value <= high:
            self._refuse(key, value, f"a number from {low} to {high}")
        return float(value)

    def channels(
        self, key: str, low: float, default: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        value = self._raw.get(key, default)
        if not isinstance(value, list | tuple) or len(value) != 3:
            self._refuse(key, value, "three numbers")
        if not all(_is_number(v) and low <= v <= 100 for v in value):
            self._refuse(key, value, f"three numbers from {low} to 100")
        return float(value[0]), float(value[1]), float(value[2])

    def _refuse(self, key: str, value: Any, wanted: str) -> None:
        raise ConfigError(f"{self._source}: {key} must be {wanted}, not {str(value)[:40]}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _k25_limits(keys: _Keys) -> MediaLimits:
    keys.must_be("patch_size", PATCH)
    keys.must_be("merge_kernel_size", MERGE, [MERGE, MERGE])
    keys.must_be("fixed_output_tokens", None)
    keys.must_be("in_patch_limit_video", None)
    keys.must_be("timestamp_mode", "hh:mm:ss.fff")
    plain = MediaLimits()
    return MediaLimits(
        image_patches=keys.whole("in_patch_limit", 4, _MAX_PATCH_LIMIT, plain.image_patches),
        frame_patches=keys.whole(
            "in_patch_limit_each_frame", 4, _MAX_PATCH_LIMIT, plain.frame_patches
        ),
        side_patches=keys.whole("patch_limit_on_one_side", 2, 4096, plain.side_patches),
        mean=keys.channels("image_mean", -100, plain.mean),
        std=keys.channels("image_std", 1e-3, plain.std),
        sample_fps=keys.number("sample_fps", 0.01, 1000, plain.sample_fps),
        chunk_frames=keys.whole("temporal_merge_kernel_size", 1, 64, plain.chunk_frames),
        max_frames=keys.optional_whole("max_num_frames_each_video", 1, 10**6),
    )


def _kimi_vl_limits(keys: _Keys) -> MediaLimits:
    keys.must_be("patch_size", PATCH)
    keys.must_be("merge_kernel_size", [MERGE, MERGE], MERGE)
    keys.must_be("pad_input", True)
    return MediaLimits(
        image_patches=keys.whole("in_token_limit", 4, _MAX_PATCH_LIMIT, 4096),
        shrinks_long_sides=False,
        # The class's defaults, the means of CLIP's training images.
        mean=keys.channels("image_mean", -100, (0.48145466, 0.4578275, 0.40821073)),
        std=keys.channels("image_std", 1e-3, (0.26862954, 0.26130258, 0.27577711)),
    )
