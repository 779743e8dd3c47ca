"""The trained vocabulary is a valid file of Kimi's format, and digits stay apart."""

from pathlib import Path

import pytest

from moonlet.chat.tokenizer import BYTE_TOKENS, KIMI_SPECIAL, Tokenizer
from moonlet.nano.vocabulary import learn_tokens, save_tokenizer

TEXTS = ["quanto é 347 + 285?", "What is 347 + 285?", "What is what?", "carry 1, carry 1"] * 3


def test_learns_the_commonest_pairs_first_and_the_same_every_time() -> None:
    tokens = learn_tokens(TEXTS, 270)
    assert len(tokens) == 270
    assert tuple(tokens[:256]) == BYTE_TOKENS
    assert tokens == learn_tokens(list(reversed(TEXTS)), 270)
    assert tokens[256] == b"at"  # twelve times, nothing more often


def test_stops_when_nothing_is_left_to_merge() -> None:
    assert learn_tokens(["ab"], 600)[256:] == [b"ab"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    save_tokenizer(tmp_path, learn_tokens(TEXTS, 280))
    return Tokenizer.from_folder(tmp_path)


def test_numbers_are_their_digits(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("347")) == 3
    assert len(tokenizer.encode("What")) == 1


@pytest.mark.parametrize("text", ["", "347+285\n7+5=12: 2, carry 1", "Olá, não sei 😀", "\x00\xff"])
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_follow_as_in_kimi(tokenizer: Tokenizer) -> None:
    base = tokenizer.vocab_size - 256
    assert base > 256
    for text, offset in KIMI_SPECIAL.items():
        assert tokenizer.id_of(text) == base + offset
