"""The block types of GGUF that moonlet knows: name, number in the file, values and bytes per block.

A row of a matrix is a whole number of blocks, one after the other, and rows follow each other without
gaps. Names, numbers and sizes are facts of ggml's file format; "INT4" is not among them, because it keeps
its scales in a second tensor (`moonlet.quant.int4`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """One block type. `id` is its number in GGUF's tensor table; a block holds `values` in `bytes`."""

    name: str
    id: int
    values: int
    bytes: int

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` values; ValueError unless they fill whole blocks."""
        if cols < 0 or cols % self.values:
            raise ValueError(
                f"a row of {cols} values does not fill {self.name} blocks of {self.values}: "
                f"take a type whose blocks divide the row"
            )
        return cols // self.values * self.bytes

    @property
    def bits_per_value(self) -> float:
        """Bits that a value takes, its share of the scales included."""
        return 8 * self.bytes / self.values


TYPES: dict[str, BlockType] = {
    kind.name: kind
    for kind in (
        BlockType("F32", 0, 1, 4),
        BlockType("F16", 1, 1, 2),
        BlockType("BF16", 30, 1, 2),
        BlockType("Q4_0", 2, 32, 18),
        BlockType("Q4_1", 3, 32, 20),
        BlockType("Q5_0", 6, 32, 22),
        BlockType("Q5_1", 7, 32, 24),
        BlockType("Q8_0", 8, 32, 34),
        BlockType("Q2_K", 10, 256, 84),
        BlockType("Q3_K", 11, 256, 110),
        BlockType("Q4_K", 12, 256, 144),
        BlockType("Q5_K", 13, 256, 176),
        BlockType("Q6_K", 14, 256, 210),
        BlockType("IQ2_XXS", 16, 256, 66),
        BlockType("IQ2_XS", 17, 256, 74),
        BlockType("IQ2_S", 22, 256, 82),
        BlockType("IQ3_XXS", 18, 256, 98),
        BlockType("IQ3_S", 21, 256, 110),
        BlockType("IQ1_S", 19, 256, 50),
        BlockType("IQ1_M", 29, 256, 56),
        BlockType("IQ4_NL", 20, 32, 18),
        BlockType("IQ4_XS", 23, 256, 136),
        BlockType("TQ1_0", 34, 256, 54),
        BlockType("TQ2_0", 35, 256, 66),
        BlockType("MXFP4", 39, 32, 17),
    )
}

_BY_ID = {kind.id: kind for kind in TYPES.values()}


def type_of(name: str) -> BlockType:
    """The block type called `name`; ValueError that lists the names if there is none."""
    if name not in TYPES:
        raise ValueError(f"{name!r} is not a block type, which are: {', '.join(TYPES)}")
    return TYPES[name]


def type_of_id(number: int) -> BlockType:
    """The block type with this number in GGUF's tensor table; ValueError if moonlet does not know it."""
    if number not in _BY_ID:
        raise ValueError(
            f"tensor type {number} is not one that moonlet reads, which are: "
            + ", ".join(f"{kind.id} ({kind.name})" for kind in TYPES.values())
        )
    return _BY_ID[number]
