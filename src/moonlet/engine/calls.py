"""Tool calls in Kimi's raw form, kept in shape token by token.

    [text] SECTION_BEGIN { CALL_BEGIN functions.NAME:IDX ARGUMENTS_BEGIN {...} CALL_END } SECTION_END END

The words in capitals are special tokens, so what the arguments spell cannot be taken for one. Of the header
only the model's choice of a tool is free: it is written in the tokens that the prompt's template writes it
in, with the index that follows the calls of the conversation.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moonlet.chat.parser import ARGUMENTS_BEGIN, CALL_BEGIN, CALL_END, SECTION_BEGIN, SECTION_END
from moonlet.chat.tokenizer import Tokenizer
from moonlet.engine.guide import Guide, only

State = Literal["text", "begin", "section", "header", "arguments", "between", "end"]


class CallTokens:
    """The ids that hold calls together. Raises TokenizerError when the vocabulary has none such."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: frozenset[int]) -> None:
        self.vocab_size = vocab_size
        self.encode = tokenizer.encode
        self.end_ids = end_ids
        self.section_begin = tokenizer.id_of(SECTION_BEGIN)
        self.section_end = tokenizer.id_of(SECTION_END)
        self.call_begin = tokenizer.id_of(CALL_BEGIN)
        self.call_end = tokenizer.id_of(CALL_END)
        self.arguments_begin = tokenizer.id_of(ARGUMENTS_BEGIN)


@dataclass(frozen=True)
class CallRules:
    """forced: the answer is nothing but calls; else the model may write text and decides about calls
    itself. parallel: more than one call. first_index: of the conversation's next call."""

    forced: bool
    parallel: bool
    first_index: int


class CallGuide:
    """Guides one answer. `tools`: name and guide of the arguments of each that may be called; these guides
    are complete at CALL_END, and the one of a tool is forked for every call of it.
    """

    def __init__(
        self, tokens: CallTokens, tools: Sequence[tuple[str, Guide]], rules: CallRules
    ) -> None:
        self._tokens = tokens
        self._tools = tools
        self._rules = rules
        self._state: State = "begin" if rules.forced else "text"
        self._index = rules.first_index
        self._names: list[tuple[list[int], Guide]] = []  # what the header can still become
        self._arguments: Guide | None = None

    def mask(self) -> NDArray[np.bool_] | None:
        if self._state == "text":
            return None
        if self._arguments is not None:
            return self._arguments.mask()
        return only(self._tokens.vocab_size, self._allowed())

    def _allowed(self) -> set[int]:
        ids = self._tokens
        match self._state:
            case "begin":
                return {ids.section_begin}
            case "section":
                return {ids.call_begin}
            case "header":
                return {rest[0] if rest else ids.arguments_begin for rest, _ in self._names}
            case "between":
                return {ids.section_end} | ({ids.call_begin} if self._rules.parallel else set())
        return set(ids.end_ids)

    def accept(self, token_id: int) -> None:
        ids = self._tokens
        if token_id == ids.call_begin:
            self._state = "header"
            self._names = [
                (ids.encode(f"functions.{name}:{self._index}"), guide)
                for name, guide in self._tools
            ]
        elif token_id == ids.arguments_begin and self._state == "header":
            self._state = "arguments"
            self._arguments = next(guide for rest, guide in self._names if not rest).fork()
        elif self._arguments is not None:
            self._arguments.accept(token_id)
            if token_id == ids.call_end:
                self._state, self._arguments = "between", None
                self._index += 1
        elif self._state == "header":
            self._names = [
                (rest[1:], guide) for rest, guide in self._names if rest[:1] == [token_id]
            ]
        elif token_id == ids.section_begin:
            self._state = "section"
        elif self._state == "between":
            self._state = "end"

    def fork(self) -> "CallGuide":
        other = copy.copy(self)
        other._arguments = None if self._arguments is None else self._arguments.fork()
        return other
