"""The names that files give to tensors, and the canonical names of moonlet.

Six dialects are read: the published K2.5 repository; transformers >= 5.23 in memory and on disk; early
exports without the inner `model.`; Kimi-VL's projector; text-only models without any prefix. Two are
written: "kimi", what the model's own repository uses, and "transformers", what that library's
save_pretrained writes. The canonical names are listed by `moonlet.config.tensor_specs`.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, NamedTuple, cast

from moonlet.config import ModelConfig
from moonlet.errors import NotSupportedError

Naming = Literal["kimi", "transformers"]
Role = Literal["weight", "weight_packed", "weight_scale", "weight_shape", "weight_scale_inv"]


class Slot(NamedTuple):
    """Where a stored tensor belongs: a canonical tensor, or one block of it.

    `expert` is the index in a stack of experts. `block` names the rows: gate, up, down of an expert; q, k,
    v of the vision tower's fused projection. `role` tells the parts of a quantized matrix apart.
    """

    name: str
    expert: int | None = None
    block: str | None = None
    role: Role = "weight"


# Applied in this order; each turns one dialect's spelling into the canonical one.
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.(?=(?:language_model|vision_tower|mm_projector|multi_modal_projector)\.)", ""),
        (r"^(?=model\.|lm_head\.)", "language_model."),
        (r"^language_model\.(?=(?:layers|blocks|embed_tokens|norm)\.)", "language_model.model."),
        (r"^language_model\.model\.blocks\.", "language_model.model.layers."),
        (r"^vision_tower\.encoder\.patch_embed\.", "vision_tower.patch_embed."),
        (r"\.pos_emb\.position_embeddings$", ".pos_emb.weight"),
        (r"^vision_tower\.final_layernorm\.", "vision_tower.encoder.final_layernorm."),
        # transformers counts the norms and the MLP's layers from 1, the published names from 0.
        (r"^vision_tower\.layers\.([0-9]+)\.norm1\.", r"vision_tower.encoder.blocks.\1.norm0."),
        (r"^vision_tower\.layers\.([0-9]+)\.norm2\.", r"vision_tower.encoder.blocks.\1.norm1."),
        (
            r"^vision_tower\.layers\.([0-9]+)\.mlp\.fc1\.",
            r"vision_tower.encoder.blocks.\1.mlp.fc0.",
        ),
        (
            r"^vision_tower\.layers\.([0-9]+)\.mlp\.fc2\.",
            r"vision_tower.encoder.blocks.\1.mlp.fc1.",
        ),
        (r"^vision_tower\.layers\.([0-9]+)\.attn\.proj\.", r"vision_tower.encoder.blocks.\1.wo."),
        (r"^multi_modal_projector\.", "mm_projector."),
        (r"^mm_projector\.(?:linear_1|in_proj)\.", "mm_projector.proj.0."),
        (r"^mm_projector\.(?:linear_2|out_proj)\.", "mm_projector.proj.2."),
    )
]
_ROLE = re.compile(r"\.(weight_packed|weight_scale_inv|weight_scale|weight_shape)$")
# At most nine digits: a longer number is nobody's layer and might not even be convertible.
_EXPERT = re.compile(r"([0-9]{1,9})\.(gate|up|down)_proj\.weight")
_VISION_QKV = re.compile(r"vision_tower\.layers\.([0-9]+)\.attn\.([qkv])_proj\.(weight|bias)")
_LAYER = re.compile(r"language_model\.model\.layers\.([0-9]{1,9})\.")
_STACK = {"gate": "gate_up_proj", "up": "gate_up_proj", "down": "down_proj"}


def slot_of(file_name: str, config: ModelConfig) -> Slot | None:
    """Where the tensor that a file calls `file_name` belongs; None for what is left out on purpose.

    Left out are the rotary tables that old exports stored, and the layers for multi-token prediction
    that follow the last layer (DeepSeek-V3, GLM). A name of no dialect comes back as it is.
    """
    name, role = file_name, cast(Role, "weight")
    if match := _ROLE.search(name):
        role = cast(Role, match[1])
        name = name[: match.start()] + ".weight"
    # Hundreds of experts share what stands before `.mlp.experts.`, which is translated once.
    head, experts, tail = name.partition(".mlp.experts.")
    canonical = _canonical(head + experts)
    if _is_left_out(canonical + tail, config):
        return None
    if expert := _EXPERT.fullmatch(tail):
        return Slot(canonical + _STACK[expert[2]], int(expert[1]), expert[2], role)
    if qkv := _VISION_QKV.fullmatch(canonical):
        return Slot(f"vision_tower.encoder.blocks.{qkv[1]}.wqkv.{qkv[3]}", None, qkv[2], role)
    return Slot(canonical + tail, None, None, role)


def file_name(slot: Slot, config: ModelConfig, naming: Naming) -> str:
    """What a file in the scheme `naming` calls the tensor that belongs in `slot`.

    Raises NotSupportedError for Kimi-VL in transformers' scheme: that library has no such model.
    """
    name = slot.name
    if slot.expert is not None:
        stack = name.rpartition(".")[0]
        name = f"{stack}.{slot.expert}.{slot.block}_proj.weight"
    if slot.role != "weight":
        name = name.removesuffix(".weight") + "." + slot.role
    if config.vision is None:
        return name.removeprefix("language_model.")
    if config.model_type == "kimi_vl":
        if naming == "transformers":
            raise NotSupportedError("transformers has no kimi_vl; save it with the naming 'kimi'")
        return _replaced(name, _KIMI_VL)
    return _replaced(name, _TRANSFORMERS) if naming == "transformers" else name


_KIMI_VL = MappingProxyType(
    {
        "mm_projector.proj.0.": "multi_modal_projector.linear_1.",
        "mm_projector.proj.2.": "multi_modal_projector.linear_2.",
        "mm_projector.": "multi_modal_projector.",
    }
)
_TRANSFORMERS = MappingProxyType(
    {
        "language_model.model.layers.": "language_model.model.blocks.",
        "vision_tower.patch_embed.proj.": "vision_tower.encoder.patch_embed.proj.",
        "mm_projector.pre_norm.": "model.mm_projector.pre_norm.",
    }
)


def _replaced(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


@lru_cache(maxsize=4096)
def _canonical(name: str) -> str:
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def _is_left_out(name: str, config: ModelConfig) -> bool:
    if name.endswith(".rotary_emb.inv_freq"):
        return True
    layer = _LAYER.match(name)
    first = config.num_hidden_layers
    last = first + config.num_nextn_predict_layers - 1
    return layer is not None and first <= int(layer[1]) <= last
