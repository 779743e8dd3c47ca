"""The vocabulary inside a GGUF file: Kimi's tokens and special tokens, both ways, as plain data.

A file spells every token with one character per byte, as GPT-2's did: printable bytes as themselves, the
others from U+0100 on. It also lists merges, the pairs by which a token is put together; Kimi's own file has
ranks only, from which they follow: a token of rank r is what byte-pair encoding that knows the tokens below r
leaves in two pieces.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moonlet.chat.tokenizer import BYTE_TOKENS, NUM_SPECIAL
from moonlet.checkpoint.gguf import Value
from moonlet.checkpoint.untrusted import shown
from moonlet.errors import NotSupportedError, TokenizerError

MODEL, PRE_TOKENIZER = "gpt2", "kimi-k2"
NORMAL, CONTROL = 1, 3

# The order of BYTE_TOKENS is that of this spelling: 188 printable bytes, then the others.
_PRINTABLE = 188
_CHARACTER_OF = {
    token[0]: token.decode("latin-1") if index < _PRINTABLE else chr(256 + index - _PRINTABLE)
    for index, token in enumerate(BYTE_TOKENS)
}
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


def vocabulary_from_gguf(metadata: Mapping[str, Value]) -> tuple[list[bytes], dict[str, int]]:
    """The tokens in order of rank and the special tokens' ids by text: what `chat.Tokenizer` takes.

    Raises NotSupportedError for other kinds of vocabularies, TokenizerError for damaged ones.
    """
    kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    texts = metadata.get("tokenizer.ggml.tokens")
    if kind != (MODEL, PRE_TOKENIZER) or not isinstance(texts, list):
        raise NotSupportedError(
            f"the file has a vocabulary of the kind {shown(repr(kind[0]))} and {shown(repr(kind[1]))}; "
            f"moonlet reads Kimi's, '{MODEL}' and '{PRE_TOKENIZER}'"
        )
    base = len(texts) - NUM_SPECIAL
    types = metadata.get("tokenizer.ggml.token_type", np.array([NORMAL] * base + [CONTROL] * 256))
    if not isinstance(types, np.ndarray) or types.shape != (len(texts),):
        raise TokenizerError(
            f"tokenizer.ggml.token_type does not have the {len(texts)} tokens' types"
        )
    if base < 1 or (types[:base] != NORMAL).any() or (types[base:] == NORMAL).any():
        raise NotSupportedError(
            f"of the {len(texts)} tokens others than the last {NUM_SPECIAL} are special, which is not "
            "how Kimi's vocabulary is made"
        )
    return [_bytes(text) for text in texts[:base]], {
        text: base + index for index, text in enumerate(texts[base:])
    }


def vocabulary_to_gguf(tokens: Sequence[bytes], special: Mapping[str, int]) -> dict[str, Any]:
    """The metadata for `tokens`, in order of rank, and the special tokens behind them.

    `special` names all ids from `len(tokens)` on, as `Tokenizer.special` does; all become control tokens,
    as in every public file. Raises TokenizerError when one is missing.
    """
    texts = {index: text for text, index in special.items()}
    ids = range(len(tokens), len(tokens) + len(special))
    if texts.keys() != set(ids):
        raise TokenizerError(
            f"the special tokens do not have the ids {ids.start} to {ids.stop - 1}"
        )
    return {
        "tokenizer.ggml.model": MODEL,
        "tokenizer.ggml.pre": PRE_TOKENIZER,
        "tokenizer.ggml.tokens": [*map(_text, tokens), *(texts[index] for index in ids)],
        "tokenizer.ggml.token_type": np.array(
            [NORMAL] * len(tokens) + [CONTROL] * len(special), np.int32
        ),
        "tokenizer.ggml.merges": merges_of(tokens),
        "tokenizer.ggml.add_bos_token": False,
    }


def merges_of(tokens: Sequence[bytes]) -> list[str]:
    """The merges `LEFT RIGHT` of all tokens but the single bytes, in order of rank.

    A token that no merge of two tokens below it makes has none.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges: list[str] = []
    for rank, token in enumerate(tokens):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            lowest = min(pairs)
            if lowest >= rank:
                break
            at = pairs.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append(f"{_text(parts[0])} {_text(parts[1])}")
    return merges


def _text(token: bytes) -> str:
    return "".join([_CHARACTER_OF[byte] for byte in token])


def _bytes(text: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in text])
    except KeyError as error:
        raise TokenizerError(
            f"the token {shown(text)} has a character that stands for no byte"
        ) from error
