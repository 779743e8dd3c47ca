"""The Kimi tokenizer: byte-level BPE on the tiktoken library, with special tokens kept apart.

A vocabulary is a file `tiktoken.model` (lines `BASE64(bytes) RANK`) followed by 256 special ids.
`encode` is for text and never yields a special id, whatever the text spells; whoever wants a
special token names it with `id_of`. That is the whole defence against prompt injection by markup.
"""

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tiktoken

from moonlet.errors import NotSupportedError, TokenizerError

NUM_SPECIAL = 256
MAX_FILE_BYTES = 64 * 2**20  # Kimi's vocabulary has 2.8 MB, its tokenizer_config.json some KB

# Han runs; words (an optional leading mark, cut where lower case turns to upper) with an English
# contraction; numbers by three digits; marks; blank runs. As in the tokenizer published with K2.
_WORD_START, _WORD_END = (
    rf"[{letters}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for letters in (r"\p{Lu}\p{Lt}", r"\p{Ll}")
)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_WORD_START}*{_WORD_END}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_WORD_START}+{_WORD_END}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Offsets from the first special id; every other one is `<|reserved_token_ID|>`.
KIMI_SPECIAL = {
    "[BOS]": 0,
    "[EOS]": 1,
    "<|im_end|>": 2,
    "<|im_user|>": 3,
    "<|im_assistant|>": 4,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "[EOT]": 9,
    "<|im_system|>": 10,
    "<|tool_calls_section_begin|>": 11,
    "<|tool_calls_section_end|>": 12,
    "<|tool_call_begin|>": 13,
    "<|tool_call_argument_begin|>": 14,
    "<|tool_call_end|>": 15,
    "<|im_middle|>": 17,
    "<|media_begin|>": 18,
    "<|media_content|>": 19,
    "<|media_end|>": 20,
    "<|media_pad|>": 21,
    "<think>": 22,
    "</think>": 23,
    "[UNK]": 254,
    "[PAD]": 255,
}

# The order in which Kimi's file (as GPT-2's before it) lists the single bytes: printable first.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_TOKENS = tuple(
    bytes([byte]) for byte in [*_PRINTABLE, *sorted(set(range(256)) - set(_PRINTABLE))]
)

# The original encodes at most this many characters at a time and breaks longer runs of blanks or
# of non-blanks, which bounds the regular expression's work; ids of extreme texts depend on it.
_MAX_CHUNK = 400_000
_MAX_RUN = 25_000
_RUN = re.compile(r"\s+|\S+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_END_TOKENS = ("[EOS]", "<|im_end|>", "[EOT]")


_MAX_SPECIAL = 1000  # characters; all together become one regular expression


class Tokenizer:
    """Text to ids and back. `special` maps the text of each of the 256 special tokens to its id."""

    def __init__(self, tokens: Sequence[bytes], special_tokens: Mapping[str, int] | None = None):
        """`tokens` in order of rank; `special_tokens` name some of the 256 ids that follow them.

        Raises TokenizerError when the tokens repeat, lack a byte, or special ids are out of place.
        """
        ranks = _ranks(tokens)
        self.special = _special(len(tokens), special_tokens)
        if longest := [text for text in self.special if len(text) > _MAX_SPECIAL]:
            raise TokenizerError(
                f"A special token has {len(longest[0])} characters, {_MAX_SPECIAL} are allowed."
            )
        self.vocab_size = len(tokens) + NUM_SPECIAL
        self.end_ids = frozenset(self.special[t] for t in _END_TOKENS if t in self.special)
        self.special_text = {index: text for text, index in self.special.items()}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._bytes = [*tokens, *(text.encode() for _, text in sorted(self.special_text.items()))]
        self._encoding = tiktoken.Encoding(
            "kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self.special
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a checkpoint folder: tiktoken.model and, if there, tokenizer_config.json.

        Raises TokenizerError for missing or damaged files, NotSupportedError for other kinds.
        """
        folder = Path(folder)
        if not (folder / "tiktoken.model").is_file():
            if (folder / "tokenizer.json").is_file():
                raise NotSupportedError(
                    f"{folder} has a tokenizer.json only; moonlet reads the tiktoken.model that "
                    "Kimi checkpoints ship, so copy that file from the original repository."
                )
            raise TokenizerError(f"{folder} has no tiktoken.model; is it a checkpoint folder?")
        return cls.from_file(folder / "tiktoken.model", _configured(folder))

    @classmethod
    def from_file(
        cls, path: str | Path, special_tokens: Mapping[str, int] | None = None
    ) -> "Tokenizer":
        """The tokenizer of one vocabulary file. Raises TokenizerError when it is damaged."""
        path = Path(path)
        try:
            return cls(_parse_vocabulary(_read(path)), special_tokens)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """Ids of plain text; never a special id. A lone surrogate counts as U+FFFD.

        Text that has more than `most` tokens is given up at some place behind that many.
        """
        ids: list[int] = []
        for piece in _pieces(_SURROGATE.sub("\ufffd", text)):
            if most is not None and len(ids) > most:
                break
            ids += self._encoding.encode_ordinary(piece)
        return ids

    def encode_with_special(self, text: str, most: int | None = None) -> list[int]:
        """Ids of a prompt that is written out: what spells a special token is that token. `most` as above."""
        ids: list[int] = []
        for piece in self._special_pattern.split(text):
            if most is not None and len(ids) > most:
                break
            ids += [self.special[piece]] if piece in self.special else self.encode(piece, most)
        return ids

    def id_of(self, text: str) -> int:
        """The id of a special token. Raises TokenizerError when the vocabulary has none such."""
        if text not in self.special:
            raise TokenizerError(
                f"The vocabulary has no special token {text!r}, which this needs; "
                "is the tokenizer_config.json the one of this checkpoint?"
            )
        return self.special[text]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, special tokens as their text. Raises TokenizerError on unknown ids."""
        return b"".join(self._token(i) for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def _token(self, index: int) -> bytes:
        if not 0 <= index < self.vocab_size:
            raise TokenizerError(
                f"Token id {index} is outside the vocabulary of {self.vocab_size}."
            )
        return self._bytes[index]


class TextStream:
    """Decodes tokens one by one, holding back bytes until they complete a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.decode_bytes([token_id]))

    @property
    def is_unfinished(self) -> bool:
        """Whether the tokens so far end inside a character."""
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        """What is left, an unfinished character as U+FFFD; the stream is then as new."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def write_vocabulary(path: str | Path, tokens: Sequence[bytes]) -> None:
    """Write `tokens`, in order of rank, as a `tiktoken.model`."""
    lines = (b"%s %d\n" % (base64.b64encode(t), rank) for rank, t in enumerate(tokens))
    Path(path).write_bytes(b"".join(lines))


def _pieces(text: str) -> Iterator[str]:
    """`text` cut where the original cuts it: usually nowhere."""
    for begin in range(0, len(text), _MAX_CHUNK):
        chunk = text[begin : begin + _MAX_CHUNK]
        start = 0
        for run in _RUN.finditer(chunk):
            for cut in range(run.start() + _MAX_RUN, run.end(), _MAX_RUN):
                yield chunk[start:cut]
                start = cut
        yield chunk[start:]


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise TokenizerError("is not a regular file.")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerError(f"has {size} bytes, more than the {MAX_FILE_BYTES} allowed.")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot be read ({error.strerror}).") from error


def _parse_vocabulary(data: bytes) -> list[bytes]:
    """Tokens in order of rank."""
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit() or len(fields[1]) > 9:
            raise TokenizerError(f"line {number} is not of the form 'BASE64 RANK'.")
        try:
            token = base64.b64decode(fields[0], validate=True)
        except binascii.Error as error:
            raise TokenizerError(f"line {number} is not valid base64.") from error
        rank = int(fields[1])
        if rank in by_rank:
            raise TokenizerError(f"line {number} repeats rank {rank}.")
        by_rank[rank] = token
    missing = next((rank for rank in range(len(by_rank)) if rank not in by_rank), None)
    if missing is not None:
        raise TokenizerError(f"rank {missing} is missing; ranks must run from 0 without gaps.")
    return [by_rank[rank] for rank in range(len(by_rank))]


def _ranks(tokens: Sequence[bytes]) -> dict[bytes, int]:
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        repeated = next(token for rank, token in enumerate(tokens) if ranks[token] != rank)
        raise TokenizerError(f"the token {repeated[:40]!r} occurs twice.")
    if b"" in ranks:
        raise TokenizerError("one of the tokens is empty.")
    absent = [token for token in BYTE_TOKENS if token not in ranks]
    if absent:
        raise TokenizerError(
            f"{len(absent)} of the 256 single bytes are missing (the first is "
            f"0x{absent[0].hex()}), so some texts could not be encoded."
        )
    return ranks


def _special(base: int, named: Mapping[str, int] | None) -> dict[str, int]:
    """All 256 special tokens, those without a name as `<|reserved_token_ID|>`."""
    if named is None:
        named = {text: base + offset for text, offset in KIMI_SPECIAL.items()}
    text_of = {index: text for text, index in named.items()}
    if len(text_of) != len(named):
        raise TokenizerError("two special tokens have the same id.")
    for index, text in text_of.items():
        if not base <= index < base + NUM_SPECIAL:
            raise TokenizerError(
                f"the special token {text[:40]!r} has id {index}, outside the {NUM_SPECIAL} ids "
                f"that follow the {base} tokens of the vocabulary."
            )
    every = range(base, base + NUM_SPECIAL)
    special = {text_of.get(i, f"<|reserved_token_{i}|>"): i for i in every}
    if len(special) != NUM_SPECIAL:
        raise TokenizerError("two special tokens have the same text.")
    return special


def _configured(folder: Path) -> dict[str, int] | None:
    """Special tokens that tokenizer_config.json names, or None when it names none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        config = json.loads(_read(path))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON.") from error
    added = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    if not isinstance(added, dict) or not added:
        return None
    named: dict[str, int] = {}
    for key, entry in added.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not (
            key.isascii() and key.isdigit() and len(key) <= 9 and isinstance(text, str) and text
        ):
            raise TokenizerError(
                f"{path}: the special token {key[:40]!r} is not an id with content."
            )
        if text in named:
            raise TokenizerError(f"{path}: the special token {text[:40]!r} is listed twice.")
        named[text] = int(key)
    return named
