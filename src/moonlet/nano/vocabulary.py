"""The tokenizer of nano, learnt from its own training conversations: byte-level BPE in Kimi's file format.

Same pattern, same order of the single bytes and same special tokens as Kimi's vocabulary, only
shorter. Digits never merge, so a number is always a sequence of its digits.
"""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import regex

from moonlet.chat.tokenizer import BYTE_TOKENS, KIMI_SPECIAL, PATTERN, write_vocabulary

BASE_TOKENS = 768
# Kimi's tokenizer_config.json marks these as not special, so that decoded text keeps them.
_KEPT_IN_TEXT = ("<think>", "</think>", "<|tool_call")


def learn_tokens(texts: Iterable[str], size: int = BASE_TOKENS) -> list[bytes]:
    """Up to `size` tokens in order of rank: the 256 bytes, then the commonest pairs again and again.

    Ties are broken by the bytes of the pair, so the result depends on the texts alone.
    """
    pieces = regex.compile(PATTERN, regex.V1)
    counts = Counter(piece for text in texts for piece in pieces.findall(text))
    words = [
        ([bytes([byte]) for byte in piece.encode()], count)
        for piece, count in sorted(counts.items())
        if not piece[0].isdigit()
    ]
    tokens = list(BYTE_TOKENS)
    while len(tokens) < size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        tokens.append(best[0] + best[1])
        for word, _ in words:
            _merge(word, best)
    return tokens


def _merge(word: list[bytes], pair: tuple[bytes, bytes]) -> None:
    i = 0
    while i < len(word) - 1:
        if (word[i], word[i + 1]) == pair:
            word[i : i + 2] = [word[i] + word[i + 1]]
        i += 1


def save_tokenizer(folder: Path, tokens: list[bytes]) -> None:
    """Write `tiktoken.model` and `tokenizer_config.json` as a Kimi repository has them."""
    write_vocabulary(folder / "tiktoken.model", tokens)
    added = {
        str(len(tokens) + offset): {"content": text, "special": not text.startswith(_KEPT_IN_TEXT)}
        for text, offset in KIMI_SPECIAL.items()
    }
    config = {
        "added_tokens_decoder": added,
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "TikTokenTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
