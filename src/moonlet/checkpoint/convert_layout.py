"""The two places where files cut or order a tensor's rows differently from the canonical layout.

Experts: canonical is one stack [experts, rows, columns] with gate rows above up rows; published files hold
a matrix per expert and projection. Vision attention: canonical (and published) is one fused `wqkv`,
whose q and k rows keep the two numbers of a rotary pair next to each other; transformers stores q, k and
v apart, with the first numbers of all pairs of a head before the second ones.
"""

from collections.abc import Iterator, Mapping

import torch

from moonlet.checkpoint.names import Slot, slot_of
from moonlet.config import ModelConfig, TensorSpec, tensor_specs
from moonlet.errors import CheckpointError


def blocks_of(spec: TensorSpec) -> dict[str, slice]:
    """The named row blocks of a tensor (of each expert in a stack); empty when files never cut it."""
    if spec.part == "experts":
        rows = spec.shape[1]
        if spec.name.endswith("gate_up_proj"):
            return {"gate": slice(0, rows // 2), "up": slice(rows // 2, rows)}
        return {"down": slice(0, rows)}
    if spec.part == "vision" and ".wqkv." in spec.name:
        rows = spec.shape[0] // 3
        return {name: slice(i * rows, (i + 1) * rows) for i, name in enumerate("qkv")}
    return {}


def rows_from_transformers(block: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a vision q or k projection [heads * D, ...] from halves to neighbouring pairs."""
    return block.view(heads, 2, -1, *block.shape[1:]).transpose(1, 2).reshape(block.shape)


def rows_to_transformers(block: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `rows_from_transformers`."""
    return block.reshape(heads, -1, 2, *block.shape[1:]).transpose(1, 2).reshape(block.shape)


def from_state_dict(
    state: Mapping[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """Canonical tensors from a state_dict of transformers (kimi_k25, deepseek_v3, deepseek_v2).

    Tensors that need no change are shared, not copied. Raises CheckpointError with every name that is
    missing or unknown.
    """
    found: dict[Slot, torch.Tensor] = {}
    for name, tensor in state.items():
        slot = slot_of(name, config)
        if slot is not None:
            found[slot] = tensor
    out: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    for spec in tensor_specs(config):
        whole, cut = Slot(spec.name), [Slot(spec.name, None, block) for block in blocks_of(spec)]
        if whole in found:
            out[spec.name] = found.pop(whole)
        elif cut and all(slot in found for slot in cut):
            blocks = {slot.block: found.pop(slot) for slot in cut}
            out[spec.name] = torch.cat(list(_canonical_rows(blocks, config)))
        else:
            missing.append(spec.name)
    if missing or found:
        unknown = [slot.name for slot in found]
        raise CheckpointError(f"the state dict lacks {missing} and has the unknown {unknown}")
    return out


def to_state_dict(
    tensors: Mapping[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """The state_dict that transformers keeps in memory for the canonical `tensors`."""
    out: dict[str, torch.Tensor] = {}
    for spec in tensor_specs(config):
        tensor = tensors[spec.name]
        if ".wqkv." not in spec.name:
            out[_in_memory_name(spec.name, config)] = tensor
            continue
        assert config.vision is not None
        prefix, _, suffix = _in_memory_name(spec.name, config).partition("wqkv.")
        for block, rows in blocks_of(spec).items():
            part = tensor[rows]
            if block != "v":
                part = rows_to_transformers(part, config.vision.vt_num_attention_heads)
            out[f"{prefix}attn.{block}_proj.{suffix}"] = part
    return out


def _canonical_rows(
    blocks: Mapping[str | None, torch.Tensor], config: ModelConfig
) -> Iterator[torch.Tensor]:
    for name, block in blocks.items():
        if name in ("q", "k"):
            assert config.vision is not None
            block = rows_from_transformers(block, config.vision.vt_num_attention_heads)
        yield block


_IN_MEMORY = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("mm_projector.proj.0.", "model.mm_projector.in_proj."),
    ("mm_projector.proj.2.", "model.mm_projector.out_proj."),
    ("mm_projector.", "model.mm_projector."),
    ("vision_tower.encoder.blocks.", "model.vision_tower.layers."),
    ("vision_tower.encoder.", "model.vision_tower."),
    ("vision_tower.patch_embed.pos_emb.weight", "model.vision_tower.patch_embed.pos_emb.position_embeddings"),
    ("vision_tower.", "model.vision_tower."),
)  # fmt: skip
# norm1 first: what norm0 becomes must not be renamed again. The same for fc1.
_IN_MEMORY_BLOCK = ((".norm1.", ".norm2."), (".norm0.", ".norm1."), (".mlp.fc1.", ".mlp.fc2."),
                    (".mlp.fc0.", ".mlp.fc1."), (".wo.", ".attn.proj."))  # fmt: skip


def _in_memory_name(name: str, config: ModelConfig) -> str:
    if config.vision is None:
        return name.removeprefix("language_model.")
    if name.startswith("vision_tower.encoder.blocks."):
        for old, new in _IN_MEMORY_BLOCK:
            name = name.replace(old, new)
    for old, new in _IN_MEMORY:
        if name.startswith(old):
            return new + name[len(old) :]
    return name
