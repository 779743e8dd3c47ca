"""What the golden files reveal about Kimi's vocabulary, which is not stored beside them.

The golden ids are cut into tokens of known bytes wherever that is the only way to cut them: ids
below 256 are single bytes, tokens do not cross the borders of pre-tokens, one text has one id. The
tokens found make a small vocabulary, with which most golden cases can be checked id by id.
"""

import functools
from collections.abc import Iterator
from typing import Any

import regex

from moonlet.chat.tokenizer import BYTE_TOKENS, KIMI_SPECIAL, PATTERN, Tokenizer
from tests.shared import golden

KIMI_BASE = 163_584
KIMI_VOCABULARY_SHA256 = "b6c497a7469b33ced9c38afb1ad6e47f03f5e5dc05f15930799210ec050c5103"
KIMI_SPECIAL_TEXT = {KIMI_BASE + offset: text for text, offset in KIMI_SPECIAL.items()}

_SPECIAL = regex.compile("|".join(regex.escape(text) for text in KIMI_SPECIAL))
_PIECES = regex.compile(PATTERN, regex.V1)


def tokenizer_cases() -> Iterator[tuple[str, list[int]]]:
    """Texts with the ids that they have as plain text."""
    for case in golden("tokenizer_kimi.json")["cases"]:
        plain = case["ids_no_special"]
        yield case["text"], case["ids"] if plain is None else plain


def prompt_cases() -> list[dict[str, Any]]:
    """Cases with a `prompt` and the `ids` of it, special tokens included."""
    cases = golden("chat_prompts.json")
    video = cases["video"]
    return [
        *cases["k25"],
        *cases["k2"],
        {"prompt": video["prompt_after"], "ids": video["ids_after"]},
    ]


def segments(prompt: str, ids: list[int]) -> Iterator[tuple[str, list[int]]]:
    """Plain texts between special tokens with their ids; asserts that the special ids agree."""
    texts, marks = _SPECIAL.split(prompt), _SPECIAL.findall(prompt)
    runs: list[list[int]] = [[]]
    for i in ids:
        if i >= KIMI_BASE:
            assert KIMI_SPECIAL_TEXT[i] == marks[len(runs) - 1]
            runs.append([])
        else:
            runs[-1].append(i)
    assert len(runs) == len(texts)
    return zip(texts, runs, strict=True)


def pieces(text: str) -> list[bytes]:
    """Pre-tokens by another regular expression engine than the tokenizer's."""
    return [match.group().encode() for match in _PIECES.finditer(text)]


class MiniKimi:
    """The part of Kimi's vocabulary that the golden files determine."""

    def __init__(self, cases: list[tuple[str, list[int]]]) -> None:
        self.id_of = {token: i for i, token in enumerate(BYTE_TOKENS)}
        self.bytes_of = {i: token for token, i in self.id_of.items()}
        while sum(self._learn(text, ids) for text, ids in cases):
            pass
        self._kimi_id = sorted(self.bytes_of)
        self.tokenizer = Tokenizer([self.bytes_of[i] for i in self._kimi_id])

    @classmethod
    @functools.cache
    def from_golden(cls) -> "MiniKimi":
        prompts = [s for case in prompt_cases() for s in segments(case["prompt"], case["ids"])]
        return cls([*tokenizer_cases(), *prompts])

    def check(self, text: str, ids: list[int]) -> bool:
        """Whether `text` encodes to `ids`. False is allowed only where ids can be cut out of the
        text but a pre-token of several tokens needs merges that the golden files do not show."""
        self._cuts(text, ids)
        at, known = 0, True
        for piece in pieces(text):
            whole = piece in self.id_of
            count = 1 if whole else len(piece)
            known &= whole or ids[at : at + count] == [self.id_of[bytes([b])] for b in piece]
            at += count
        equal = self.to_kimi(self.tokenizer.encode(text)) == ids
        assert equal or not known
        return equal

    def to_kimi(self, ids: list[int]) -> list[int]:
        """Kimi's ids for ids of the small vocabulary."""
        size = len(self._kimi_id)
        return [self._kimi_id[i] if i < size else i - size + KIMI_BASE for i in ids]

    def from_kimi(self, ids: list[int]) -> list[int]:
        """Ids of the small vocabulary for Kimi's; tokens that are not in it become their bytes."""
        back = {kimi: i for i, kimi in enumerate(self._kimi_id)}
        size = len(self._kimi_id)
        return [back[i] if i < KIMI_BASE else i - KIMI_BASE + size for i in ids]

    def _learn(self, text: str, ids: list[int]) -> bool:
        """Add the tokens of `ids` that only one cutting of `text` allows; whether any was new."""
        learned = False
        for i, candidates in zip(ids, self._cuts(text, ids), strict=True):
            if len(candidates) == 1 and i not in self.bytes_of:
                (token,) = candidates
                assert token not in self.id_of
                self.bytes_of[i], self.id_of[token] = token, i
                learned = True
        return learned

    def _cuts(self, text: str, ids: list[int]) -> list[set[bytes]]:
        """For each id the tokens that it can be; asserts that there is a way to cut the text."""
        data, ends = text.encode(), []
        for piece in pieces(text):
            ends.append((ends[-1] if ends else 0) + len(piece))
        end_of = [
            end for begin, end in zip([0, *ends], ends, strict=False) for _ in range(end - begin)
        ]
        starts = {0, *ends}

        def tokens_at(begin: int, i: int) -> list[bytes]:
            if i in self.bytes_of:
                token = self.bytes_of[i]
                options = [token] if data.startswith(token, begin) else []
            else:
                spans = range(begin + 2, end_of[begin] + 1)
                options = [data[begin:end] for end in spans if data[begin:end] not in self.id_of]
            piece = data[begin : end_of[begin]]
            if begin in starts and piece in self.id_of:  # a known pre-token is never cut
                options = [token for token in options if token == piece]
            return [token for token in options if begin + len(token) <= end_of[begin]]

        reached = [{0}]
        for i in ids:
            here = {b + len(t) for b in reached[-1] if b < len(data) for t in tokens_at(b, i)}
            reached.append(here)
        alive = reached[-1] & {len(data)}
        fits: list[set[bytes]] = []
        for i, begins in zip(reversed(ids), reversed(reached[:-1]), strict=True):
            edges = [
                (b, t)
                for b in begins
                if b < len(data)
                for t in tokens_at(b, i)
                if b + len(t) in alive
            ]
            fits.append({token for _, token in edges})
            alive = {b for b, _ in edges}
        assert alive == {0} or not ids, f"no way to cut {text!r} into {ids}"
        return fits[::-1]
