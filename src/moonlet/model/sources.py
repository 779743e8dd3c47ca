"""Where packed leaves get their weights: rows of a checkpoint, packed here, or the panels of a packed file."""

from typing import Literal, Protocol

import numpy as np
import torch

from moonlet import kernels
from moonlet.checkpoint import Checkpoint, GgufCheckpoint, StoredMatrix
from moonlet.checkpoint.packed import PackedCheckpoint
from moonlet.config import ModelConfig, tensor_specs

FLOATS = ("F32", "F16", "BF16")
FloatForm = Literal["Q8_0", "stored"]
AnyCheckpoint = Checkpoint | GgufCheckpoint | PackedCheckpoint


class PanelSource(Protocol):
    """Packed weights by canonical name; an expert stack by the part of its two names that is the same."""

    def matrix(self, name: str) -> kernels.Matrix: ...

    def heads(self, name: str) -> tuple[kernels.Matrix, kernels.Matrix]:
        """kv_b_proj as H matrices [C, N] for the query and H matrices [O, C] for the output."""
        ...

    def experts(self, name: str) -> kernels.Experts: ...


def panel_source(checkpoint: AnyCheckpoint, floats: FloatForm) -> PanelSource:
    if isinstance(checkpoint, PackedCheckpoint):
        return PanelFile(checkpoint)
    return RowPacker(checkpoint, floats)


class PanelFile:
    """Panels as they lie in the memory map: nothing is read before it is used."""

    def __init__(self, checkpoint: PackedCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.shapes = {spec.name: spec.shape for spec in tensor_specs(checkpoint.config)}

    def matrix(self, name: str) -> kernels.Matrix:
        rows, cols = self.shapes[name]
        return self._matrix(name, rows, cols, 1)

    def heads(self, name: str) -> tuple[kernels.Matrix, kernels.Matrix]:
        c = self.checkpoint.config
        heads, rank = c.num_attention_heads, c.kv_lora_rank
        return (
            self._matrix(name + ".k", rank, c.qk_nope_head_dim, heads),
            self._matrix(name + ".v", c.v_head_dim, rank, heads),
        )

    def experts(self, name: str) -> kernels.Experts:
        c, panels = self.checkpoint.config, self.checkpoint.packed(name)
        gate, up, down = panels.types
        width = c.moe_intermediate_size
        return kernels.Experts(
            c.n_routed_experts, c.hidden_size, width, gate, up, down, panels.data
        )

    def _matrix(self, name: str, rows: int, cols: int, count: int) -> kernels.Matrix:
        panels = self.checkpoint.packed(name)
        return kernels.Matrix(panels.types[0], rows, cols, count, panels.data)


class RowPacker:
    """Rows as any checkpoint stores them -> panels in memory of our own.

    Every matrix keeps its type. Floats become Q8_0 unless they shall stay; of experts they always do.
    """

    def __init__(self, checkpoint: Checkpoint | GgufCheckpoint, floats: FloatForm) -> None:
        self.checkpoint = checkpoint
        self.config: ModelConfig = checkpoint.config
        self.floats = floats

    def matrix(self, name: str) -> kernels.Matrix:
        return self._stack([self.checkpoint.matrix(name)])

    def heads(self, name: str) -> tuple[kernels.Matrix, kernels.Matrix]:
        heads = range(self.config.num_attention_heads)
        try:
            keys = [self.checkpoint.matrix(name, head, "k") for head in heads]
            values = [self.checkpoint.matrix(name, head, "v") for head in heads]
        except KeyError:  # stored whole
            whole = self.checkpoint.tensor(name, torch.float32).unflatten(0, (len(heads), -1))
            sizes = (self.config.qk_nope_head_dim, self.config.v_head_dim)
            k_HNC, v_HOC = whole.split(sizes, dim=1)
            keys, values = [_stored(k.mT) for k in k_HNC], [_stored(v) for v in v_HOC]
        return self._stack(keys), self._stack(values)

    def experts(self, name: str) -> kernels.Experts:
        stacks = {"gate": ("gate_up_proj", "gate"), "up": ("gate_up_proj", "up"), "down": ("down_proj", None)}  # fmt: skip

        def part(which: str, expert: int) -> StoredMatrix:
            stack, block = stacks[which]
            return self.checkpoint.matrix(f"{name}.{stack}", expert, block)

        c = self.config
        gate, up, down = (_quantized_as(part(which, 0).type) for which in stacks)
        width = c.moe_intermediate_size
        packed = kernels.Experts(c.n_routed_experts, c.hidden_size, width, gate, up, down)
        for expert in range(c.n_routed_experts):
            for which in stacks:
                stored = part(which, expert)
                packed.pack(expert, which, stored.type, stored.data, stored.scale)
        return packed

    def _stack(self, parts: list[StoredMatrix]) -> kernels.Matrix:
        first = parts[0]
        kept = first.type in FLOATS and self.floats == "stored"
        kind = first.type if kept else _quantized_as(first.type)
        packed = kernels.Matrix(kind, first.rows, first.cols, len(parts))
        for index, part in enumerate(parts):
            packed.pack(part.type, part.data, part.scale, index)
        return packed


def as_stored(stored: StoredMatrix) -> kernels.Matrix:
    """Packed without a change of type."""
    packed = kernels.Matrix(kernels.panel_type(stored.type), stored.rows, stored.cols)
    packed.pack(stored.type, stored.data, stored.scale)
    return packed


def _quantized_as(stored: str) -> str:
    return "Q8_0" if stored in FLOATS else kernels.panel_type(stored)


def _stored(values: torch.Tensor) -> StoredMatrix:
    rows, cols = values.shape
    return StoredMatrix("F32", rows, cols, values.contiguous().numpy().view(np.uint8))
