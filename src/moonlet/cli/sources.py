"""Where `moonlet chat` gets its answers: a provider in this process, or an endpoint at a URL.

Both turn a conversation in OpenAI's shape into a plain iterator of events, because a terminal has
nothing else to do while it waits. Closing the iterator stops the generation.
"""

import asyncio
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any, Protocol

from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import (
    ChatRequest,
    Event,
    Finish,
    Provider,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from moonlet.cli.console import UsageError
from moonlet.errors import EngineError

KEY_VARIABLE = "MOONLET_API_KEY"
TIMEOUT_S = 600  # between two pieces of an answer, as in the official clients


class Source(Protocol):
    """Something to talk to."""

    name: str

    def answer(
        self, messages: list[dict[str, Any]], thinking: bool
    ) -> Generator[Event, None, None]: ...

    def close(self) -> None: ...


class LocalSource:
    """A provider, driven step by step in an event loop of its own."""

    def __init__(self, provider: Provider) -> None:
        self.name = provider.card.id
        self._provider = provider
        self._runner = asyncio.Runner()

    def answer(
        self, messages: list[dict[str, Any]], thinking: bool
    ) -> Generator[Event, None, None]:
        thinking = thinking and self._provider.card.supports_reasoning
        request = ChatRequest(parse_messages(messages), thinking=thinking)
        events = self._provider.stream(request)

        async def step() -> Event | None:
            return await anext(events, None)

        try:
            # The runner turns Ctrl-C into a cancellation of the step, which ends the generation.
            while (event := self._runner.run(step())) is not None:
                yield event
        finally:
            self._runner.run(_close(events))

    def close(self) -> None:
        self._runner.close()


async def _close(events: AsyncGenerator[Event, None]) -> None:
    await events.aclose()


class RemoteSource:
    """An OpenAI-compatible endpoint, over the standard library: no client has to be installed.

    url: the base that `/chat/completions` is added to. The key, if the endpoint wants one, comes from
    MOONLET_API_KEY. Raises UsageError for a URL that is none, EngineError when nobody answers there.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        self._base = url.rstrip("/")
        self.name = model or self._first_model()

    def _first_model(self) -> str:
        with self._open("/models") as response:
            listed = _parsed(response.read(), self._base)
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise EngineError(f"{self._base} lists no model; name one with --model") from None

    def answer(
        self, messages: list[dict[str, Any]], thinking: bool
    ) -> Generator[Event, None, None]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if not thinking:  # both dialects; with thinking on nothing is said, since servers differ
            body |= {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": False}}
        with self._open("/chat/completions", body) as response:
            yield from _events(_chunks(response, self._base))

    def close(self) -> None:
        """Nothing is held between two answers."""

    def _open(self, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self._base + path, data, headers)
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                reason = _reason(error.read(64 * 1024)) or error.reason
            raise EngineError(f"{self._base} answered {error.code}: {reason}") from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise EngineError(
                f"cannot reach {self._base}: {reason}; is a server running there?"
            ) from error
        except (ValueError, http.client.HTTPException) as error:
            raise UsageError(f"cannot use the URL {self._base}: {error}") from error


def _chunks(response: http.client.HTTPResponse, base: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to [DONE]."""
    try:
        for line in response:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield _parsed(data, base)
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(f"the connection to {base} broke: {error}") from error
    raise EngineError(f"{base} ended the answer without [DONE]; it is not complete")


def _events(chunks: Iterator[dict[str, Any]]) -> Iterator[Event]:
    reason: Any = None
    usage: dict[str, Any] = {}
    for chunk in chunks:
        if "error" in chunk:
            raise EngineError(f"the answer broke off: {_reason(json.dumps(chunk).encode())}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
                yield ReasoningDelta(str(reasoning))
            if text := delta.get("content"):
                yield TextDelta(str(text))
            reason = choice.get("finish_reason") or reason
    counts = (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
    yield Finish(reason or "stop", Usage(*counts, reasoning_tokens=0))


def _parsed(data: bytes, base: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EngineError(f"{base} does not speak the OpenAI API: it sent {data[:80]!r}")
    return value


def _reason(body: bytes) -> str | None:
    """The message inside an error answer, if it has the usual shape."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
