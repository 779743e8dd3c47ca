"""What a request asks of its answer -> the guide that holds it to that: a schema, calls, a thinking budget."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from moonlet.chat.parser import CALL_BEGIN, SECTION_BEGIN
from moonlet.chat.provider import ChatRequest
from moonlet.chat.repair import next_call_index
from moonlet.chat.template import Template
from moonlet.chat.tokenizer import Tokenizer
from moonlet.engine.grammar import GrammarCompiler
from moonlet.engine.guide import AfterThinking, Guide

COMPILES_AT_ONCE = max(1, (os.cpu_count() or 1) // 4)  # the engine needs the other cores


class Guides:
    """Makes the guides of one model, whose answers end with one of `end_ids`.

    Compiling a schema may take seconds, and who asked for it may have left: it has threads of its own, so that
    many of them cannot take those that every request needs.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: Template, vocab_size: int, end_ids: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._threads = ThreadPoolExecutor(COMPILES_AT_ONCE, "moonlet-grammar")

    def close(self) -> None:
        """Schemas that wait are given up; one that is being compiled is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def guide(self, request: ChatRequest) -> Guide | None:
        """What bounds the answer, from its first token on. Raises PromptError for a schema."""
        strict = any((tool.get("function") or {}).get("strict") for tool in request.tools or [])
        inner: Guide | None = None
        if request.must_call or request.schema is not None or strict:
            loop = asyncio.get_running_loop()
            inner = await loop.run_in_executor(self._threads, self._inner, request)
        if inner is None and request.thinking_budget is None:
            return None
        return self._after_thinking(request, inner)

    @cached_property
    def _grammar(self) -> GrammarCompiler:
        """Made when the first request needs it: it looks at every token of the vocabulary."""
        return GrammarCompiler(self._tokenizer, self._vocab_size, self._end_ids)

    def _inner(self, request: ChatRequest) -> Guide:
        """What bounds the visible answer. Raises PromptError."""
        tools, first = request.tools or [], next_call_index(request.messages)
        if request.must_call:
            return self._grammar.calls(tools, request.only_tool, request.parallel_tool_calls, first)
        if request.schema is not None:
            return self._grammar.schema(request.schema)
        return self._grammar.strict_calls(tools, first, request.parallel_tool_calls)

    def _after_thinking(self, request: ChatRequest, inner: Guide | None) -> Guide | None:
        special = self._tokenizer.special
        end = special.get("</think>")
        if end is None:
            return inner
        starts = self._template.starts_in_reasoning(request.thinking, request.messages)
        opens_itself = request.thinking and self._template.reasons and not starts
        calls = {special.get(mark) for mark in (SECTION_BEGIN, CALL_BEGIN)}
        return AfterThinking(
            end,
            request.thinking_budget,
            inner,
            starts,
            vocab_size=self._vocab_size,
            not_in_thought=[*self._end_ids, *(mark for mark in calls if mark is not None)],
            think_begin_id=special.get("<think>") if opens_itself else None,
        )
