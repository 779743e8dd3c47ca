"""Answers that satisfy a JSON schema, and calls whose arguments do, whatever the weights.

The grammar engine is llguidance, not xgrammar; both held a vocabulary of 163,840 tokens, on one core of an
EPYC that had other work as well:

    llguidance 1.9.1                                xgrammar 0.2.8
    needs nothing, 8 MB                             torch, transformers, triton, apache-tvm-ffi, 4 MB
    imported in 0.05 s                              3.8 s
    a schema compiled in 0.1 to 3 ms                85 ms to 28 s (a string of 3 to 500 characters)
    a mask in 0.03 ms, 99 % below 6 ms              0.1 ms, 99 % below 15 ms
    limits on states, steps and grammar size        none
    MIT                                             Apache 2.0

Its limits end every hostile schema that was tried but one, a large `multipleOf`; see schema.py.
"""

import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from moonlet.chat.tokenizer import Tokenizer
from moonlet.engine.calls import CallGuide, CallRules, CallTokens
from moonlet.engine.digits import Place
from moonlet.engine.guide import Guide, only
from moonlet.engine.schema import MAX_BYTES, prepare
from moonlet.errors import EngineError, PromptError

_MAX_CACHED = 64  # a hostile one holds 30 MB, an ordinary one is compiled again in a millisecond
_MAX_TOOLS_BYTES = 2 * MAX_BYTES  # of all tools of one request: a few seconds of compiling
# Steps of the defaults times ten: 3,000 optional properties are a row of 12,000 items. A character of a string
# with a maxLength takes nine states of some 300 bytes, which are kept as long as the schema is.
# Less fuel than by default, or a pattern such as ((x{500}){500}){500} holds the engine up for seconds.
_LIMITS = LLParserLimits(
    max_items_in_row=50_000,
    step_max_items=500_000,
    max_lexer_states=500_000,
    initial_lexer_fuel=300_000,
    step_lexer_fuel=50_000,
    verbose_errors=False,
)
# One line, no blanks. Without \u escapes, since the library takes {"\u0061": ...} for another key than "a".
_COMPACT: Any = {
    "whitespace_flexible": False,
    "coerce_one_of": True,
    "json_allowed_escapes": 'nrbtf\\"',
}
# Models put a blank behind commas and colons of arguments, or none; more would be a way to never end.
_SPACED = _COMPACT | {"item_separator": ", ?", "key_separator": ": ?"}


class GrammarCompiler:
    """Guides for answers in the tokens of `tokenizer`; `end_ids` end an answer. For any thread.

    Making one takes most of a second and 100 MB for Kimi's vocabulary. Compiled schemas are kept, the latest
    _MAX_CACHED of them.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        words = _Words(tokenizer)
        self._library = LLTokenizer(TokenizerWrapper(words))
        self._pieces = words.tokens
        self._digits = np.zeros(vocab_size, np.bool_)  # the tokens that begin with one
        self._digits[: len(words.tokens)] = [piece[:1].isdigit() for piece in words.tokens]
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def schema(self, schema: dict[str, Any], param: str = "response_format") -> Guide:
        """The answer is JSON in one line without blanks that satisfies `schema`, and then ends. Numbers end
        with the token that brings them to MAX_DIGITS where the schema lets them.

        Properties come in the order of the schema; `oneOf` is held as `anyOf`. Raises PromptError, naming
        `param`, for a schema that cannot be held.
        """
        return self._guide(prepare(schema, param), _COMPACT, self._end_ids, param)

    def calls(
        self,
        tools: Sequence[dict[str, Any]],
        only_tool: str | None = None,
        parallel: bool = True,
        first_index: int = 0,
    ) -> Guide:
        """The answer is one or more calls, of `only_tool` alone if given; not `parallel`: just one.

        first_index: of the conversation's next call. Raises PromptError as `schema` does, and when there is
        no such tool.
        """
        chosen = [
            (index, tool)
            for index, tool in enumerate(tools)
            if only_tool in (None, tool["function"]["name"])
        ]
        if not chosen:
            raise PromptError(
                f"tool_choice forces a call of {only_tool or 'a tool'!r:.80}, but none such is declared.",
                "tool_choice",
            )
        return self._calls(chosen, CallRules(True, parallel, first_index))

    def strict_calls(
        self, tools: Sequence[dict[str, Any]], first_index: int = 0, parallel: bool = True
    ) -> Guide:
        """Free text; calls, if the model begins any, are of declared tools and satisfy their schemas."""
        return self._calls(list(enumerate(tools)), CallRules(False, parallel, first_index))

    def _calls(self, tools: Sequence[tuple[int, dict[str, Any]]], rules: CallRules) -> Guide:
        """`tools` with their places in the request."""
        tokens = CallTokens(self._tokenizer, self._vocab_size, self._end_ids)
        close = frozenset([tokens.call_end])
        left, schemas = _MAX_TOOLS_BYTES, []
        for i, tool in tools:
            function = tool["function"]
            free = function.get("strict") is False
            schema = {} if free else function.get("parameters") or {}
            where = f"tools[{i}].function.parameters"
            schemas.append((function["name"], prepare(schema | {"type": "object"}, where), where))
            left -= len(schemas[-1][1])
            if left < 0:  # before any is compiled, which takes longer
                raise PromptError(
                    f"the schemas of tools have more than {_MAX_TOOLS_BYTES} bytes together; declare fewer "
                    "tools, or set strict to false where their arguments need not be held to a schema",
                    "tools",
                )
        guides = [
            (name, self._guide(schema, _SPACED, close, where)) for name, schema, where in schemas
        ]
        return CallGuide(tokens, guides, rules)

    def _guide(self, schema: str, style: Any, close: frozenset[int], param: str) -> "JsonGuide":
        matcher = self._compiled(schema, style, param)
        return JsonGuide(
            matcher.deep_copy(), self._pieces, self._digits, self._end_ids, close, param
        )

    def _compiled(self, schema: str, style: Any, param: str) -> LLMatcher:
        """A matcher that has not moved yet, from the cache if possible."""
        key = json.dumps(style) + schema
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=style)
        except ValueError as error:  # values nested too deep for its JSON reader
            raise PromptError(f"{param}: the schema cannot be read: {error}", param) from error
        matcher = LLMatcher(self._library, grammar, log_level=0, limits=_LIMITS)
        # The lexer is built by the first mask, for seconds if it is hostile: not in the engine's thread.
        matcher.compute_bitmask()
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            raise PromptError(f"{param}: the schema cannot be held: {reason:.300}", param)
        with self._lock:
            self._cache[key] = matcher
            if len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return matcher


class JsonGuide:
    """Guides one JSON text. `end_ids` are never part of it; one of `close` follows it. param: where in the
    request its schema stands. pieces: the bytes of all tokens; digits: [vocab_size], which begin with one."""

    def __init__(
        self,
        matcher: LLMatcher,
        pieces: Sequence[bytes],
        digits: NDArray[np.bool_],
        end_ids: frozenset[int],
        close: frozenset[int],
        param: str,
    ) -> None:
        self._matcher = matcher
        self._pieces, self._digits = pieces, digits
        self._vocab_size = len(digits)
        self._place = Place()
        self._end_ids = list(end_ids)
        self._close = close
        self._param = param
        self._closed = False

    def mask(self) -> NDArray[np.bool_]:
        if self._closed:
            return only(self._vocab_size, self._close)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.zeros(self._vocab_size, np.bool_)
        count = min(8 * len(bits), self._vocab_size)
        mask[:count] = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
        mask[self._end_ids] = False
        mask[list(self._close)] = self._matcher.is_accepting()
        if self._place.is_full and (shorter := mask & ~self._digits).any():
            return shorter
        return mask

    def accept(self, token_id: int) -> None:
        if token_id in self._close:
            self._closed = True
        elif not self._matcher.consume_token(token_id):
            if "satisfy the grammar" not in self._matcher.get_error():  # it cannot follow any token
                self._check()
            raise EngineError(f"token {token_id} does not fit the grammar of this answer")
        else:
            self._place = self._place.after(self._pieces[token_id])

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0]
            raise PromptError(
                f"{self._param}: the schema is too complex to follow, and the answer cannot go on: "
                f"{reason:.300}",
                self._param,
            )

    def fork(self) -> "JsonGuide":
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other


class _Words:
    """A tokenizer as the library wants to see it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special.values())
        self.eos_token_id = min(tokenizer.end_ids)
        self.bos_token_id = None
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())
