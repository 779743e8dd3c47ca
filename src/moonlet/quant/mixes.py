"""Mixes: which tensor is stored in which type. A mix is an ordered table, and the first match wins.

The named mixes are the files tables/*.toml beside this file; anybody can write another like them:

    [types]
    "*.mlp.experts.down_proj" = "Q5_K"     a pattern over canonical tensor names (moonlet.config.tensors),
    "*.mlp.experts.*" = "Q4_K"             with the wildcards * ? [abc]
    "*" = "Q8_0"                           the last line says what all others are

Types are the GGUF types that moonlet writes, and INT4. `file_type`, optional, is the number that GGUF files
of this mix carry for people to read (llama.cpp's ftype). Three things no table changes:

- vectors (norms and biases), the router and position tables stay F32: they are small, and everything
  depends on them
- a matrix whose rows do not fill blocks of 256 takes a type of 32 that loses no more (`FALLBACKS`)
- a matrix whose rows do not fill blocks of 32 takes F16
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from moonlet.config.toml import read_toml
from moonlet.errors import ConfigError
from moonlet.quant.codec import ENCODERS
from moonlet.quant.types import TYPES

WRITTEN = (*ENCODERS, "INT4")
ALWAYS_F32 = ("*.mlp.gate.weight", "*.pos_emb.weight")
FALLBACKS = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
}
_TABLES = Path(__file__).parent / "tables"
_GUESSED = 1024  # llama.cpp's number for "no mix of mine"

NAMES = tuple(sorted(path.stem for path in _TABLES.glob("*.toml")))


@dataclass(frozen=True)
class Mix:
    """`rules` are (pattern, type), first match wins, the last pattern is "*"; `file_type` as in GGUF."""

    name: str
    rules: tuple[tuple[str, str], ...]
    file_type: int = _GUESSED

    def type_for(self, name: str, rows: int, cols: int) -> str:
        """The type, a name in TYPES or "INT4", of the canonical tensor `name` stored as [rows, cols].

        Rows of all leading dimensions count together, so that a vector is one row.
        `cols` is the length of the rows as they are stored, which for a half of `kv_b_proj` may differ
        from the tensor's own.
        """
        if rows == 1 or any(fnmatchcase(name, pattern) for pattern in ALWAYS_F32):
            return "F32"
        wanted = next(kind for pattern, kind in self.rules if fnmatchcase(name, pattern))
        if wanted == "INT4" or cols % TYPES[wanted].values == 0:
            return wanted
        smaller = FALLBACKS.get(wanted, "F16")
        return smaller if cols % TYPES[smaller].values == 0 else "F16"


def load_mix(source: str | Path) -> Mix:
    """The named mix, or the one in a TOML file.

    Raises ConfigError when there is no such mix, or the file is not such a table.
    """
    if isinstance(source, str) and source.lower() in NAMES:
        return _read(_TABLES / f"{source.lower()}.toml")
    if Path(source).suffix != ".toml":
        raise ConfigError(
            f"{str(source)!r} is not a mix: name one of {', '.join(NAMES)}, or a .toml file with a table"
        )
    return _read(Path(source))


def _read(path: Path) -> Mix:
    table = read_toml(path, "the table of a mix")
    unknown = table.keys() - {"types", "file_type"}
    if unknown:
        raise ConfigError(
            f"{path} has the key {min(unknown)!r}; a mix has only types and file_type"
        )
    file_type = table.get("file_type", _GUESSED)
    if type(file_type) is not int or not 0 <= file_type < 1 << 32:
        raise ConfigError(
            f"{path} has file_type {file_type!r}, which must be a whole number from 0"
        )
    return Mix(path.stem, _rules(path, table.get("types")), file_type)


def _rules(path: Path, types: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(types, dict) or not types or list(types)[-1] != "*":
        raise ConfigError(
            f'{path} needs a table [types] whose last line is "*", the type of all other tensors'
        )
    for pattern, kind in types.items():
        if kind not in WRITTEN:
            raise ConfigError(
                f"{path} gives {pattern!r} the type {kind!r}; moonlet writes {', '.join(WRITTEN)}"
            )
    return tuple(types.items())
