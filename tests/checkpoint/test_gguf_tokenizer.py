"""Vocabularies in GGUF files: spelling, merges, special tokens, what is refused, templates."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import regex

from moonlet import nano
from moonlet.chat.tokenizer import BYTE_TOKENS, PATTERN, Tokenizer
from moonlet.checkpoint import GgufCheckpoint
from moonlet.checkpoint.gguf import GgufFile
from moonlet.checkpoint.gguf_tokenizer import merges_of, vocabulary_from_gguf, vocabulary_to_gguf
from moonlet.checkpoint.gguf_write import GgufWriter, gguf_metadata
from moonlet.config import preset
from moonlet.errors import NotSupportedError, TokenizerError
from tests.checkpoint.tiny import random_tensors
from tests.checkpoint.tiny_gguf import slots_of, write_slots

TEXTS = [
    "Hello, world! How are you?  12345 + 67 = ?", "camelCase HTTPServer", "你好 мир naïve\n\n  x\t y",
    "it's I'LL", "tail  spaces   ", '{"a": [1, 2.5]}', "functions.get_weather:0", "\0\x7f\xad\xa0é",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(nano.folder())


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.decode_bytes([index]) for index in range(min(tokenizer.special.values()))]


def test_nano_survives_a_file(tmp_path: Path, tokenizer: Tokenizer, tokens: list[bytes]) -> None:
    config = preset("nano")
    metadata = gguf_metadata(config, "nano", 0, (tokens, tokenizer.special), "{{ messages }}é")
    path = tmp_path / "m.gguf"
    write_slots(path, metadata, slots_of(config, is_vision=False), random_tensors(config), config)
    checkpoint = GgufCheckpoint(path)
    assert checkpoint.chat_template == "{{ messages }}é"
    assert checkpoint.config.model_type == "kimi_k2"
    assert checkpoint.config.eos_token_ids == config.eos_token_ids
    ours = Tokenizer(*checkpoint.vocabulary())
    assert ours.special == tokenizer.special
    for text in TEXTS:
        assert ours.encode(text) == tokenizer.encode(text)
        assert ours.decode(ours.encode(text)) == text


def test_the_spelling_is_that_of_the_gguf_package(
    tokens: list[bytes], tokenizer: Tokenizer
) -> None:
    metadata = vocabulary_to_gguf(tokens, tokenizer.special)
    texts = metadata["tokenizer.ggml.tokens"]
    spelled = gguf.vocab.bytes_to_unicode()
    for token, text in zip(tokens, texts, strict=False):
        assert len(text) == len(token)
        assert text == "".join(spelled[byte] for byte in token)
    # The rule in words: printable Latin-1 stands for itself, the rest counts on from U+0100.
    of_byte = {
        token[0]: text for token, text in zip(tokens, texts, strict=False) if len(token) == 1
    }
    assert [of_byte[byte] for byte in b"!A~ \n\0"] == ["!", "A", "~", "Ġ", "Ċ", "Ā"]
    assert [of_byte[byte] for byte in (0x7F, 0xA0, 0xAD, 0xFF)] == ["ġ", "ł", "Ń", "ÿ"]
    assert metadata["tokenizer.ggml.token_type"].tolist() == [1] * 768 + [3] * 256


def test_merges_alone_give_the_same_ids(tokens: list[bytes], tokenizer: Tokenizer) -> None:
    """Encodes as a program does that knows the merges and not the ranks."""
    texts = vocabulary_to_gguf(tokens, tokenizer.special)["tokenizer.ggml.tokens"]
    character = {token: text for token, text in zip(tokens, texts, strict=False) if len(token) == 1}
    merges = [tuple(merge.split(" ")) for merge in merges_of(tokens)]
    assert len(merges) == len(tokens) - 256
    order = {merge: index for index, merge in enumerate(merges)}
    ids = {text: index for index, text in enumerate(texts)}
    for text in TEXTS:
        found = []
        for piece in regex.findall(PATTERN, text, regex.V1):
            parts = [character[bytes([byte])] for byte in piece.encode()]
            while any(pair in order for pair in pairwise(parts)):
                at = min(
                    range(len(parts) - 1), key=lambda i: order.get((parts[i], parts[i + 1]), 10**6)
                )
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found += [ids[part] for part in parts]
        assert found == tokenizer.encode(text)


def test_a_token_that_no_pair_makes_has_no_merge() -> None:
    tokens = [*BYTE_TOKENS, b"ab", b"xyz", b"abc"]
    assert merges_of(tokens) == ["a b", "ab c"]


GOOD: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "kimi-k2",
    "tokenizer.ggml.tokens": ["a", "Ġ", *(f"<{index}>" for index in range(256))],
    "tokenizer.ggml.token_type": np.array([1, 1] + [3] * 256, np.int32),
}


def test_plain_data_come_back() -> None:
    tokens, special = vocabulary_from_gguf(GOOD)
    assert tokens == [b"a", b" "]
    assert special == {f"<{index}>": 2 + index for index in range(256)}
    untyped = {key: value for key, value in GOOD.items() if key != "tokenizer.ggml.token_type"}
    assert vocabulary_from_gguf(untyped) == (tokens, special)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": "llama"}, NotSupportedError, "'llama'"),
        ({"pre": "deepseek-v3"}, NotSupportedError, "'deepseek-v3'"),
        ({"tokens": 5}, NotSupportedError, "vocabulary of the kind"),
        ({"tokens": ["a"]}, TokenizerError, "types"),
        ({"tokens": ["a"], "token_type": np.array([1])}, NotSupportedError, "others than the last"),
        ({"token_type": np.array([1, 3] + [3] * 256)}, NotSupportedError, "others than the last"),
        ({"token_type": np.array([1, 1] + [1] * 256)}, NotSupportedError, "others than the last"),
        ({"token_type": np.array([1, 1])}, TokenizerError, "258 tokens' types"),
        ({"token_type": "x"}, TokenizerError, "258 tokens' types"),
        ({"tokens": ["a", "愛", *[""] * 256]}, TokenizerError, "stands for no byte"),
    ],
)
def test_other_vocabularies(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    metadata = GOOD | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(kind, match=message):
        vocabulary_from_gguf(metadata)


def test_special_tokens_must_be_complete(tokens: list[bytes], tokenizer: Tokenizer) -> None:
    special = dict(tokenizer.special)
    del special["<think>"]
    with pytest.raises(TokenizerError, match="768 to 1022"):
        vocabulary_to_gguf(tokens, special)


def test_a_file_without_a_vocabulary_says_so(tmp_path: Path) -> None:
    with GgufWriter(tmp_path / "m.gguf", gguf_metadata(preset("nano"), "nano", 0), []):
        pass
    metadata = GgufFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == "none"
    with pytest.raises(NotSupportedError, match="'none'"):
        vocabulary_from_gguf(metadata)
