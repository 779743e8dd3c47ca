"""`/v1/completions`: plain text continued, without a template. `completions_in.py` reads the request.

Choice number i of the answer is choice i % n of prompt i // n. All prompts are worked on at the same
time, and a stream tells them as they come. A prompt that spells a special token has it, as with vLLM: whoever
uses this route has written out the template, and whoever puts other people's text into a prompt should not.
"""

import asyncio
import codecs
import math
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from moonlet.chat.provider import (
    Completion,
    Event,
    Finish,
    TextDelta,
    TextProvider,
    TokenLogprob,
    Usage,
    total_usage,
)
from moonlet.server.answer import Answer
from moonlet.server.completions_in import CompletionRequest, parse_completion
from moonlet.server.completions_schema import COMPLETION_ANSWER, COMPLETION_REQUEST
from moonlet.server.encode import LEAST_LOGPROB, sse, usage_object
from moonlet.server.errors import ApiError
from moonlet.server.openapi import operation
from moonlet.server.state import State, asked_by


def add_completions(app: FastAPI, state: State) -> None:
    @app.post(
        "/v1/completions",
        **operation("Continue a text", COMPLETION_ANSWER, COMPLETION_REQUEST, streams=True),
    )
    async def completions(request: Request) -> Response:
        def parse(body: dict[str, Any]) -> CompletionRequest:
            return parse_completion(body, state.provider_for(body).card, state.profile)

        asked = await state.read(request, parse)
        texts = [replace(text, asked_by=asked_by(request)) for text in asked.texts]
        encoder = CompletionEncoder(
            asked.model,
            asked.n,
            asked.include_usage,
            asked.texts[0].logprobs is not None,
            state.profile.extras,
        )
        events = continued(state.text_named(asked.model), replace(asked, texts=texts))
        return Answer(state, events, encoder, stream=asked.stream)


async def continued(
    provider: TextProvider, asked: CompletionRequest
) -> AsyncGenerator[Event, None]:
    """The events of all prompts, as they come, with the choices numbered through."""
    streams = [provider.complete(text) for text in asked.texts]
    waiting = {asyncio.ensure_future(anext(s, None)): i for i, s in enumerate(streams)}
    try:
        while waiting:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for step in [step for step in waiting if step.done()]:
                event = step.result()
                prompt = waiting.pop(step)
                if event is not None:
                    waiting[asyncio.ensure_future(anext(streams[prompt], None))] = prompt
                    yield replace(event, choice=event.choice + prompt * asked.n)
    finally:
        for step in waiting:
            step.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


@dataclass
class CompletionEncoder:
    """One answer: every object that it writes has the same `id`, `created` and `model`."""

    model: str
    n: int = 1
    include_usage: bool = False
    logprobs: bool = False
    extras: bool = True
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _usages: dict[int, Usage] = field(default_factory=dict)
    _tokens: dict[int, "_Tokens"] = field(default_factory=dict)

    def plain(self, answers: list[Completion]) -> dict[str, Any]:
        for index, answer in enumerate(answers):
            self._usages[index] = answer.usage
        choices = [
            self._choice(index, answer.text, answer.logprobs, answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        return {**self._object(choices), "usage": self._usage()}

    def start(self, prompt_tokens: int = 0) -> bytes:
        return b""

    def event(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                return self._chunk(self._choice(event.choice, event.text, event.logprobs))
            case Finish():
                self._usages[event.choice] = event.usage
                return self._chunk(self._choice(event.choice, "", (), event.reason))
        return b""

    def end(self) -> bytes:
        done = b"data: [DONE]\n\n"
        return (
            sse({**self._object([]), "usage": self._usage()}) + done if self.include_usage else done
        )

    def error(self, error: ApiError, body: dict[str, Any]) -> bytes:
        return sse(body)

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[TokenLogprob] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:
        told = self._tokens.setdefault(index, _Tokens()).told(tokens) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        chunk = self._object([choice])
        return sse({**chunk, "usage": None} if self.include_usage else chunk)

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created}
        return {**head, "model": self.model, "choices": choices}

    def _usage(self) -> dict[str, Any]:
        """The answers to one prompt share it; different prompts add up."""
        usages = [self._usages[index] for index in sorted(self._usages)]
        prompts = [total_usage(usages[at : at + self.n]) for at in range(0, len(usages), self.n)]
        total = Usage(
            sum(usage.prompt_tokens for usage in prompts),
            sum(usage.completion_tokens for usage in prompts),
            sum(usage.reasoning_tokens for usage in prompts),
            sum(usage.cached_tokens for usage in prompts),
            cost=total_usage(prompts).cost,
        )
        return usage_object(total, self.extras)


class _Tokens:
    """The tokens of one choice in OpenAI's old shape: four lists side by side."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # characters of the choice's text before the next token

    def told(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        tokens, offsets = list(tokens), []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.token))
        return {
            "tokens": [_shown(token.token) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {_shown(other): _finite(logprob) for other, logprob in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _shown(token: bytes) -> str:
    """A token as text; a part of a character by its bytes, or several would look the same."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, LEAST_LOGPROB) if math.isfinite(logprob) else LEAST_LOGPROB
