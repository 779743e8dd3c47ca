"""Answers that satisfy a JSON schema whatever the weights, and calls that satisfy their tool's.

TODO comparison
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
from moonlet.engine.guide import Guide, only
from moonlet.engine.schema import prepare
from moonlet.errors import EngineError, PromptError

_MAX_CACHED = 128
_LIMITS = LLParserLimits(verbose_errors=False)
_COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
# Models put a blank behind commas and colons of arguments, or none; more would be a way to never end.
_SPACED = _COMPACT | {"item_separator": ", ?", "key_separator": ": ?"}


class GrammarCompiler:
    """Guides for answers in the tokens of `tokenizer`; `end_ids` end an answer. For any thread.

    Compiled schemas are kept, the latest _MAX_CACHED of them. Building one of these takes some ... ms for
    Kimi's vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._library = LLTokenizer(TokenizerWrapper(_Words(tokenizer)))
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def schema(self, schema: dict[str, Any], param: str = "response_format") -> Guide:
        """The answer is JSON in one line without blanks that satisfies `schema`, and then ends.

        Raises PromptError, naming `param`, for a schema that cannot be held.
        """
        return self._json(schema, _COMPACT, self._end_ids, param)

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
        if only_tool is not None:
            tools = [tool for tool in tools if tool["function"]["name"] == only_tool]
        if not tools:
            raise PromptError(
                f"tool_choice forces a call of {only_tool or 'a tool'!r:.80}, but none such is declared.",
                "tool_choice",
            )
        return self._calls(tools, CallRules(True, parallel, first_index))

    def strict_calls(
        self, tools: Sequence[dict[str, Any]], first_index: int = 0, parallel: bool = True
    ) -> Guide:
        """Free text; calls, if the model begins any, are of declared tools and satisfy their schemas."""
        return self._calls(tools, CallRules(False, parallel, first_index))

    def _calls(self, tools: Sequence[dict[str, Any]], rules: CallRules) -> Guide:
        tokens = CallTokens(self._tokenizer, self._vocab_size, self._end_ids)
        close = frozenset([tokens.call_end])
        prepared = []
        for i, tool in enumerate(tools):
            function = tool["function"]
            schema = function.get("parameters") or {}
            if function.get("strict") is False:
                schema = {}
            where = f"tools[{i}].function.parameters"
            guide = self._json({"type": "object"} | schema, _SPACED, close, where)
            prepared.append((function["name"], guide))
        return CallGuide(tokens, prepared, rules)

    def _json(
        self, schema: dict[str, Any], style: dict[str, Any], close: frozenset[int], param: str
    ) -> "JsonGuide":
        matcher = self._compiled(prepare(schema, param), style, param)
        return JsonGuide(matcher.deep_copy(), self._vocab_size, self._end_ids, close)

    def _compiled(self, schema: str, style: dict[str, Any], param: str) -> LLMatcher:
        """A matcher that has not moved yet, from the cache if possible."""
        key = json.dumps(style) + schema
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=style)
        matcher = LLMatcher(self._library, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0][:300]
            raise PromptError(f"{param}: the schema cannot be held: {reason}", param)
        with self._lock:
            self._cache[key] = matcher
            if len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return matcher


class JsonGuide:
    """Guides one JSON text. `end_ids` are never part of it; one of `close` follows it."""

    def __init__(
        self, matcher: LLMatcher, vocab_size: int, end_ids: frozenset[int], close: frozenset[int]
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end_ids = list(end_ids)
        self._close = close
        self._closed = False

    def mask(self) -> NDArray[np.bool_]:
        if self._closed:
            return only(self._vocab_size, self._close)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise EngineError(
                f"the grammar of this answer cannot go on: {self._matcher.get_error().splitlines()[0]:.300}"
            )
        mask = np.zeros(self._vocab_size, np.bool_)
        count = min(8 * len(bits), self._vocab_size)
        mask[:count] = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
        mask[self._end_ids] = False
        mask[list(self._close)] = self._matcher.is_accepting()
        return mask

    def accept(self, token_id: int) -> None:
        if token_id in self._close:
            self._closed = True
        elif not self._matcher.consume_token(token_id):
            raise EngineError(f"token {token_id} does not fit the grammar of this answer")

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
