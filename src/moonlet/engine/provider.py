"""The provider in this process: messages -> prompt -> engine -> parser -> events."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from moonlet.chat.messages import TextPart
from moonlet.chat.parser import CALL_BEGIN, SECTION_BEGIN, OutputParser
from moonlet.chat.plain import PlainParser
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    ModelCard,
    Sampling,
    TextRequest,
    TokenLogprob,
)
from moonlet.chat.repair import next_call_index
from moonlet.chat.template import Prompt, Template
from moonlet.chat.tokenizer import Tokenizer
from moonlet.engine.engine import Engine
from moonlet.engine.grammar import GrammarCompiler
from moonlet.engine.guide import AfterThinking, Guide
from moonlet.engine.sampler import Drawn, SamplingParams
from moonlet.engine.stream import Finished, GenerateRequest, Item, Stream
from moonlet.errors import EngineError, MediaError, MoonletError, PromptError

DEFAULT_MAX_TOKENS = 32_768  # what the Kimi API answers with when a request names no limit
RENDERS_AT_ONCE = 2  # a picture at the limit takes some 600 MB while it is decoded

# What differs from earlier prompts, by the part of the prompt where the cached pages end.
_BREAKS = {
    "tools": "tools_changed",
    "system": "system_changed",
    "user": "history_changed",
    "assistant": "reasoning_dropped",  # the template drops that of finished turns
    "tool": "history_changed",
}


@dataclass(frozen=True)
class SamplingDefaults:
    """How to sample when a request does not say: by mode, as the K2.5 model card advises."""

    thinking: SamplingParams = SamplingParams(1.0, 0.95)  # noqa: RUF009  frozen
    instant: SamplingParams = SamplingParams(0.6, 0.95)  # noqa: RUF009  frozen

    def resolve(self, asked: Sampling, thinking: bool) -> SamplingParams:
        default = self.thinking if thinking else self.instant
        return replace(
            default,
            **{
                name: value
                for name in ("temperature", "top_p", "top_k", "min_p")
                if (value := getattr(asked, name)) is not None
            },
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            repetition_penalty=asked.repetition_penalty,
            logit_bias=asked.logit_bias,
            seed=asked.seed,
        )


class LocalProvider:
    """Answers with a model of this process."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: Template,
        card: ModelCard,
        defaults: SamplingDefaults,
    ) -> None:
        self.card = card
        self._engine = engine
        self._tokenizer = tokenizer
        self._template = template
        self._defaults = defaults
        vision = engine.model.config.vision
        self._max_frames = 0 if vision is None else vision.init_pos_emb_time or 1
        self._rendering = asyncio.Semaphore(RENDERS_AT_ONCE)

    @cached_property
    def _grammar(self) -> GrammarCompiler:
        """Made when the first request needs it: it looks at every token of the vocabulary."""
        vocab_size = self._engine.model.config.vocab_size
        return GrammarCompiler(self._tokenizer, vocab_size, frozenset(self._engine.end_ids))

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Events of all choices. Raises PromptError and MediaError before the first event."""
        prompt = await self._prompt(request)
        guide = await asyncio.to_thread(self._guide, request)
        starts = self._template.starts_in_reasoning(request.thinking, request.messages)
        generation = GenerateRequest(
            prompt.token_ids,
            self._limit(len(prompt.token_ids), request.max_tokens),
            prompt.media,
            self._defaults.resolve(request.sampling, request.thinking),
            logprobs=request.logprobs,
            deadline_s=request.deadline_s,
        )
        answers = [
            _Answer(
                OutputParser(
                    self._tokenizer,
                    starts,
                    request.stop,
                    request.tools or [],
                    first_index=next_call_index(request.messages),
                    stop_after_first_call=not request.parallel_tool_calls,
                    choice=choice,
                ),
                replace(generation, choice=choice, guide=guide and guide.fork()),
                prompt.marks,
            )
            for choice in range(request.n)
        ]
        async with contextlib.aclosing(self._run(answers)) as events:
            async for event in events:
                yield event

    async def complete(self, request: TextRequest) -> AsyncGenerator[Event, None]:
        """TextDelta* Finish of each choice. Raises PromptError before the first event."""
        prompt = request.prompt
        ids = self._tokenizer.encode_with_special(prompt) if isinstance(prompt, str) else prompt
        self._check_ids(ids, "prompt")
        if not ids:
            raise PromptError("the prompt is empty", "prompt")
        generation = GenerateRequest(
            ids,
            self._limit(len(ids), request.max_tokens),
            sampling=self._defaults.resolve(request.sampling, False),
            logprobs=request.logprobs,
            deadline_s=request.deadline_s,
        )
        answers = [
            _Answer(
                PlainParser(self._tokenizer, request.stop, choice=choice),
                replace(generation, choice=choice),
            )
            for choice in range(request.n)
        ]
        async with contextlib.aclosing(self._run(answers)) as events:
            async for event in events:
                yield event

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt. Raises as `stream` does."""
        return len((await self._prompt(request)).token_ids)

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def detokenize(self, token_ids: list[int]) -> str:
        self._check_ids(token_ids, "tokens")
        return self._tokenizer.decode(token_ids)

    def _check_ids(self, token_ids: list[int], param: str) -> None:
        size = self._tokenizer.vocab_size
        if wrong := [token for token in token_ids if not 0 <= token < size]:
            raise PromptError(f"there is no token {wrong[0]}, only 0 to {size - 1}", param)

    def stats(self) -> dict[str, float]:
        return self._engine.stats()

    def close(self) -> None:
        self._engine.close()

    async def _prompt(self, request: ChatRequest) -> Prompt:
        """Raises PromptError, and MediaError for media that the model cannot see."""
        has_media = any(
            not isinstance(part, TextPart) for message in request.messages for part in message.parts
        )
        stop = threading.Event()
        render = partial(
            self._template.render,
            request.messages,
            request.tools,
            request.thinking,
            request.preserve_thinking,
            stop=stop,
        )
        # Opening media takes time and memory: not for everybody at once, and not for who has left.
        try:
            async with self._rendering if has_media else contextlib.nullcontext():
                prompt = await asyncio.to_thread(render)
        finally:
            stop.set()
        if any(item.grid[0] > self._max_frames for item in prompt.media):
            kind = "video" if self._max_frames else "images"
            raise MediaError(f"this model does not read {kind}", "messages")
        return prompt

    def _guide(self, request: ChatRequest) -> Guide | None:
        """What bounds the answer, from its first token on."""
        inner: Guide | None = None
        first = next_call_index(request.messages)
        tools = request.tools or []
        if request.must_call:
            inner = self._grammar.calls(
                tools, request.only_tool, request.parallel_tool_calls, first
            )
        elif request.schema is not None:
            inner = self._grammar.schema(request.schema)
        elif any((tool.get("function") or {}).get("strict") for tool in tools):
            inner = self._grammar.strict_calls(tools, first, request.parallel_tool_calls)
        if inner is None and request.thinking_budget is None:
            return None
        starts = self._template.starts_in_reasoning(request.thinking, request.messages)
        end = self._tokenizer.special.get("</think>")
        if end is None:
            return inner
        opens_itself = request.thinking and self._template.reasons and not starts
        calls = {self._tokenizer.special.get(mark) for mark in (SECTION_BEGIN, CALL_BEGIN)}
        return AfterThinking(
            end,
            request.thinking_budget,
            inner,
            starts,
            vocab_size=self._engine.model.config.vocab_size,
            not_in_thought=[*self._engine.end_ids, *(mark for mark in calls if mark is not None)],
            think_begin_id=self._tokenizer.special.get("<think>") if opens_itself else None,
        )

    def _limit(self, used: int, asked: int | None) -> int:
        """How many tokens may be made. Raises PromptError when prompt and answer do not fit."""
        window = self._engine.max_seq_len
        if used >= window:
            raise PromptError(
                f"the prompt has {used} tokens, but this model's context is {window}", "messages"
            )
        wanted = asked or min(DEFAULT_MAX_TOKENS, window - used)
        if used + wanted > window:
            raise PromptError(
                f"the prompt has {used} tokens and this model's context is {window}, so at most "
                f"{window - used} new tokens fit, not {wanted}",
                "max_tokens",
            )
        return wanted

    async def _run(self, answers: Sequence["_Answer"]) -> AsyncGenerator[Event, None]:
        """The events of all answers as they come."""
        loop, items = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Item]]()

        def sink(choice: int, item: Item) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(items.put_nowait, (choice, item))

        streams: list[Stream] = []
        try:
            for choice, answer in enumerate(answers):
                first = streams[0] if streams else None
                streams.append(self._engine.submit(answer.generation, partial(sink, choice), first))
            left = len(answers)
            while left:
                choice, item = await items.get()
                if isinstance(item, MoonletError):
                    raise item
                answer = answers[choice]
                for event in (
                    answer.finish(item) if isinstance(item, Finished) else self._push(answer, item)
                ):
                    yield event
                left -= isinstance(item, Finished)
                if answer.parser.stopped:
                    streams[choice].cancel()
        finally:
            for stream in streams:
                stream.cancel()

    def _push(self, answer: "_Answer", drawn: Drawn) -> list[Event]:
        told = None
        if drawn.logprob is not None:
            top = tuple((self._bytes_of(token), value) for token, value in drawn.top)
            told = TokenLogprob(self._bytes_of(drawn.token), drawn.logprob, top)
        return answer.parser.push(drawn.token, told)

    def _bytes_of(self, token: int) -> bytes:
        """Of a token; the model may have more than the tokenizer."""
        known = token < self._tokenizer.vocab_size
        return self._tokenizer.decode_bytes([token]) if known else b""


@dataclass
class _Answer:
    """One choice on its way. marks: where the parts of the prompt begin."""

    parser: OutputParser | PlainParser
    generation: GenerateRequest
    marks: tuple[tuple[int, str], ...] = ()

    def finish(self, finished: Finished) -> list[Event]:
        if finished.reason == "cancelled" and not self.parser.stopped:
            raise EngineError("the engine was closed before the answer was finished")
        return self.parser.finish(
            "length" if finished.reason == "length" else "stop",
            len(self.generation.token_ids),
            finished.cached_tokens,
            finished.disk_tokens,
            self._cache_break(finished),
        )

    def _cache_break(self, finished: Finished) -> str | None:
        """Why the cache held no more of the prompt, where it is not simply new."""
        if finished.evicted:
            return "evicted"
        if not finished.diverged:
            return None
        parts = [kind for at, kind in self.marks if at <= finished.cached_tokens]
        return _BREAKS.get(parts[-1]) if parts else None
