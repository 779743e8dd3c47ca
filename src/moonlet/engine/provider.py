"""The provider in this process: messages -> prompt -> engine -> parser -> events."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from moonlet.chat.messages import TextPart
from moonlet.chat.parser import THINK_END, OutputParser
from moonlet.chat.plain import PlainParser
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    ModelCard,
    Sampling,
    Started,
    TextRequest,
    TokenLogprob,
    Usage,
)
from moonlet.chat.repair import next_call_index
from moonlet.chat.template import MAX_PROMPT_TOKENS, Prompt, Template, check_length
from moonlet.chat.tokenizer import Tokenizer
from moonlet.engine.engine import Engine
from moonlet.engine.guides import Guides
from moonlet.engine.sampler import Drawn, SamplingParams
from moonlet.engine.stream import Finished, GenerateRequest, Item, Stream
from moonlet.errors import EngineError, MediaError, MoonletError, PromptError

DEFAULT_MAX_TOKENS = 32_768  # what the Kimi API answers with when a request names no limit
RENDERS_AT_ONCE = 2  # a picture at the limit takes some 600 MB while it is decoded
MEDIA_WAITING = (
    8  # prompts with pictures that are not computed yet; one may hold hundreds of MB of them
)

# What differs from earlier prompts, by the part of the prompt with the first token that does.
_BREAKS = {
    "tools": "tools_changed",
    "system": "system_changed",
    "user": "history_changed",
    "assistant": "history_changed",
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
        self._with_media = asyncio.Semaphore(MEDIA_WAITING)
        vocab_size = engine.model.config.vocab_size
        self._guides = Guides(tokenizer, template, vocab_size, frozenset(engine.end_ids))

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Events of all choices. Raises PromptError and MediaError before the first event."""
        async with contextlib.AsyncExitStack() as media:
            if _has_media(request):
                await media.enter_async_context(self._with_media)
            answers = await self._answers(request)
            async with contextlib.aclosing(self._run(answers)) as events:
                async for event in events:
                    if not isinstance(event, Started):
                        await media.aclose()
                    yield event

    async def _answers(self, request: ChatRequest) -> list["_Answer"]:
        """What is asked of the engine for each choice. Raises PromptError and MediaError."""
        sampling = self._sampling(request.sampling, request.thinking)
        prompt = await self._prompt(request)
        limit = self._limit(len(prompt.token_ids), request.max_tokens)
        guide = await self._guides.guide(request)
        starts = self._template.starts_in_reasoning(request.thinking, request.messages)
        generation = GenerateRequest(
            prompt.token_ids,
            limit,
            prompt.media,
            sampling,
            logprobs=request.logprobs,
            deadline_s=request.deadline_s,
        )
        return [
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
                self._tokenizer.special.get(THINK_END),
            )
            for choice in range(request.n)
        ]

    async def complete(self, request: TextRequest) -> AsyncGenerator[Event, None]:
        """TextDelta* Finish of each choice. Raises PromptError before the first event.

        What spells a special token in a prompt is one here, as in every server that continues plain text:
        such a prompt is a template's output, written by somebody who means it.
        """
        ids = request.prompt
        if isinstance(ids, str):
            work = partial(self._tokenizer.encode_with_special, ids, MAX_PROMPT_TOKENS)
            ids = await asyncio.to_thread(work)
        check_length(ids, "prompt")
        self._check_ids(ids, "prompt")
        if not ids:
            raise PromptError("the prompt is empty", "prompt")
        generation = GenerateRequest(
            ids,
            self._limit(len(ids), request.max_tokens, "prompt"),
            sampling=self._sampling(request.sampling, thinking=False),
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
        return len(await self.prompt_ids(request))

    async def prompt_ids(self, request: ChatRequest) -> list[int]:
        """The prompt, each picture as so many pads as it takes up. Raises as `stream` does."""
        return (await self._prompt(request)).token_ids

    def tokenize(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, MAX_PROMPT_TOKENS)
        check_length(ids, "prompt")
        return ids

    def detokenize(self, token_ids: list[int]) -> str:
        self._check_ids(token_ids, "tokens")
        return self._tokenizer.decode(token_ids)

    def _sampling(self, asked: Sampling, thinking: bool) -> SamplingParams:
        """Raises PromptError for a bias on a token that the model has not."""
        size = self._engine.model.config.vocab_size
        if wrong := [token for token, _ in asked.logit_bias if token >= size]:
            raise PromptError(
                f"logit_bias names token {wrong[0]}, but this model has tokens 0 to {size - 1}",
                "logit_bias",
            )
        return self._defaults.resolve(asked, thinking)

    def _check_ids(self, token_ids: list[int], param: str) -> None:
        size = self._tokenizer.vocab_size
        if wrong := [token for token in token_ids if not 0 <= token < size]:
            raise PromptError(f"there is no token {wrong[0]}, only 0 to {size - 1}", param)

    def stats(self) -> dict[str, float]:
        return self._engine.stats()

    def close(self) -> None:
        self._guides.close()
        self._engine.close()

    async def _prompt(self, request: ChatRequest) -> Prompt:
        """Raises PromptError, and MediaError for media that the model cannot see."""
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
            async with self._rendering if _has_media(request) else contextlib.nullcontext():
                prompt = await asyncio.to_thread(render)
        finally:
            stop.set()
        if any(item.grid[0] > self._max_frames for item in prompt.media):
            kind = "video" if self._max_frames else "images"
            raise MediaError(f"this model does not read {kind}", "messages")
        return prompt

    def _limit(self, used: int, asked: int | None, param: str = "messages") -> int:
        """How many tokens may be made. Raises PromptError when prompt and answer do not fit."""
        window = self._engine.max_seq_len
        if used >= window:
            raise PromptError(
                f"the prompt has {used} tokens, but this model's context is {window}", param
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
            yield Started(len(answers[0].generation.token_ids))
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


def _has_media(request: ChatRequest) -> bool:
    return any(
        not isinstance(part, TextPart) for message in request.messages for part in message.parts
    )


@dataclass
class _Answer:
    """One choice on its way. marks: where the parts of the prompt begin. think_end: the token, if there is one."""

    parser: OutputParser | PlainParser
    generation: GenerateRequest
    marks: tuple[tuple[int, str], ...] = ()
    think_end: int | None = None

    def finish(self, finished: Finished) -> list[Event]:
        if finished.reason == "cancelled" and not self.parser.stopped:
            raise EngineError("the engine was closed before the answer was finished")
        prompt = Usage(
            len(self.generation.token_ids),
            completion_tokens=0,
            reasoning_tokens=0,
            cached_tokens=finished.cached_tokens,
            cached_disk_tokens=finished.disk_tokens,
            cache_break=self._cache_break(finished),
        )
        return self.parser.finish("length" if finished.reason == "length" else "stop", prompt)

    def _cache_break(self, finished: Finished) -> str | None:
        """Why the cache held no more of the prompt, where it is not simply new."""
        if finished.evicted:
            return "evicted"
        at = finished.differs_at
        if at is None:
            return None
        before = [kind for begin, kind in self.marks if begin <= at]
        after = [kind for begin, kind in self.marks if begin > at]
        # Without a part before it, or with none behind it, it is another conversation or a new question.
        if not before or (before[-1] in ("user", "tool") and (not before[1:] or len(after) < 2)):
            return None
        if before[-1] == "assistant" and self.generation.token_ids[at] == self.think_end:
            return "reasoning_dropped"  # the template drops that of finished turns
        return _BREAKS.get(before[-1])
