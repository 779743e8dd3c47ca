"""A small vocabulary of Kimi's shape: the 256 bytes, a few merges, 256 special tokens."""

from pathlib import Path

import pytest

from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer, write_vocabulary

WORDS = """user assistant system tool functions think Hello the in er 000 你好 é"""


def merged_tokens(words: list[str]) -> list[bytes]:
    """Bytes and every prefix that BPE needs to arrive at `words`."""
    tokens = list(BYTE_TOKENS)
    for word in words:
        data = word.encode()
        for end in range(2, len(data) + 1):
            if data[:end] not in tokens:
                tokens.append(data[:end])
    return tokens


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "tiktoken.model"
    write_vocabulary(path, merged_tokens([*WORDS.split(), " the", " a", "\n\n", '": ']))
    return path


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer.from_folder(vocabulary.parent)
