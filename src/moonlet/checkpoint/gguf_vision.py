"""The vision file beside a GGUF model (mmproj): where it lies, and its metadata both ways."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moonlet.checkpoint.gguf import Value
from moonlet.checkpoint.gguf_config import Metadata
from moonlet.checkpoint.untrusted import shown
from moonlet.config import ModelConfig, VisionConfig
from moonlet.errors import CheckpointError, ConfigError, NotSupportedError

PROJECTORS = {"kimi_k25": "kimik25", "kimi_vl": "kimivl"}
_K25_PATCHES = 16384  # of the largest image, in K2.5's preprocessor_config.json
_FRAME_PATCHES = 4096  # of a video frame, which GGUF does not keep
_KIMI_VL_TOKENS = 4096  # the same in Kimi-VL's; its GGUF files do not keep it
_LEAST_PATCHES = 8  # of the smallest image; llama.cpp enlarges what is below


def find_mmproj(path: Path) -> Path | None:
    """The file `mmproj*.gguf` in the folder of the model `path`, if there is one.

    Raises CheckpointError, with their names, when there are several.
    """
    found = sorted(other for other in path.parent.glob("mmproj*.gguf") if other.name != path.name)
    if len(found) > 1:
        names = ", ".join(other.name for other in found)
        raise CheckpointError(
            f"{path.parent} holds {len(found)} vision files ({names}); leave the one to use"
        )
    return found[0] if found else None


def vision_from_gguf(metadata: Mapping[str, Value]) -> VisionConfig:
    """The tower that a vision file describes.

    Raises ConfigError for missing and impossible values, NotSupportedError for other towers.
    """
    kind = metadata.get("clip.projector_type", metadata.get("clip.vision.projector_type"))
    if metadata.get("general.architecture") != "clip" or kind not in PROJECTORS.values():
        raise NotSupportedError(
            f"the vision file has the projector {shown(repr(kind))}, not one of Kimi "
            f"({', '.join(PROJECTORS.values())}); if it belongs to another model, take it away"
        )
    keys, table = Metadata(metadata, "clip.vision."), Metadata(metadata, "vision.")
    patch_size = keys.whole("patch_size")
    if patch_size < 1:
        raise ConfigError(f"clip.vision.patch_size is {patch_size}, not a number of pixels")
    side = keys.whole("image_size") // patch_size
    merge = keys.whole("projector.scale_factor", 2)
    return VisionConfig(
        vt_hidden_size=keys.whole("embedding_length"),
        vt_intermediate_size=keys.whole("feed_forward_length"),
        vt_num_attention_heads=keys.whole("attention.head_count"),
        vt_num_hidden_layers=keys.whole("block_count"),
        patch_size=patch_size,
        init_pos_emb_height=table.whole("pos_emb_height", side),
        init_pos_emb_width=table.whole("pos_emb_width", side),
        init_pos_emb_time=table.whole("pos_emb_time", 4) if kind == "kimik25" else None,
        merge_kernel_size=(merge, merge),
        projector_ln_eps=keys.number("attention.layer_norm_epsilon", 1e-5),
    )


def vision_to_gguf(
    config: ModelConfig, preprocessor: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All metadata of the vision file. `preprocessor` is the parsed preprocessor_config.json.

    Raises NotSupportedError for a tower that GGUF has no keys for.
    """
    vision = config.vision
    if vision is None or config.model_type not in PROJECTORS:
        raise NotSupportedError(f"{config.model_type} has no vision tower that GGUF can hold")
    height, width = vision.merge_kernel_size
    is_square = vision.init_pos_emb_height == vision.init_pos_emb_width
    if height != width or (config.model_type == "kimi_vl" and not is_square):
        raise NotSupportedError(
            "GGUF holds towers with square cells and, of Kimi-VL, square tables only"
        )
    media = (preprocessor or {}).get("media_proc_cfg") or preprocessor or {}
    pixels = vision.patch_size**2
    values: dict[str, Any] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": PROJECTORS[config.model_type],
        "clip.use_gelu": True,
        "clip.vision.image_size": vision.init_pos_emb_height * vision.patch_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.vt_hidden_size,
        "clip.vision.feed_forward_length": vision.vt_intermediate_size,
        "clip.vision.block_count": vision.vt_num_hidden_layers,
        "clip.vision.projection_dim": config.hidden_size,
        "clip.vision.attention.head_count": vision.vt_num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": vision.projector_ln_eps,
        "clip.vision.image_mean": np.array(media.get("image_mean", [0.5] * 3), np.float32),
        "clip.vision.image_std": np.array(media.get("image_std", [0.5] * 3), np.float32),
        "clip.vision.projector.scale_factor": height,
    }
    if vision.init_pos_emb_time is None:
        return values
    patches = media.get("in_patch_limit", _K25_PATCHES)
    return values | {
        "clip.vision.image_min_pixels": min(_LEAST_PATCHES, patches) * pixels,
        "clip.vision.image_max_pixels": patches * pixels,
        "vision.pos_emb_height": vision.init_pos_emb_height,
        "vision.pos_emb_width": vision.init_pos_emb_width,
        "vision.pos_emb_time": vision.init_pos_emb_time,
    }


def preprocessor_from_gguf(metadata: Mapping[str, Value], vision: VisionConfig) -> dict[str, Any]:
    """What a vision file knows of a preprocessor_config.json, in the published spelling."""
    keys = Metadata(metadata, "clip.vision.")
    values: dict[str, Any] = {"patch_size": vision.patch_size}
    for name in ("image_mean", "image_std"):
        found = keys.values.get(name)
        values[name] = (
            [float(str(v)) for v in found] if isinstance(found, np.ndarray) else [0.5] * 3
        )
    if vision.init_pos_emb_time is None:
        merge = list(vision.merge_kernel_size)
        return values | {"in_token_limit": _KIMI_VL_TOKENS, "merge_kernel_size": merge}
    pixels = keys.whole("image_max_pixels", _K25_PATCHES * vision.patch_size**2)
    patches = pixels // vision.patch_size**2
    values |= {"in_patch_limit": patches, "in_patch_limit_each_frame": min(patches, _FRAME_PATCHES)}
    values |= {"merge_kernel_size": vision.merge_kernel_size[0]}
    return {"media_proc_cfg": values | {"temporal_merge_kernel_size": vision.init_pos_emb_time}}
