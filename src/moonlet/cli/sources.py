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
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

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
MAX_BYTES = 16 * 2**20  # of a list of models, and of one event in a stream

T = TypeVar("T")


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
    MOONLET_API_KEY. Raises UsageError for a URL or key that is none, EngineError when nobody answers
    there or what comes is not the API: the endpoint is trusted with the conversation, no further.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        self._base = url.rstrip("/")
        self.name = model or self._first_model()

    def _first_model(self) -> str:
        with self._open("/models") as response, _told_if_it_breaks(self._base):
            data = response.read(MAX_BYTES + 1)
        listed = _parsed(_bounded(data, self._base), self._base)
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
            yield from _events(_data_lines(response, self._base), self._base)

    def close(self) -> None:
        """Nothing is held between two answers."""

    def _open(self, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self._base + path, data)
            request.add_header("Content-Type", "application/json")
            if key := _key():  # it must not follow a redirect to another host
                request.add_unredirected_header("Authorization", f"Bearer {key}")
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            reason = None
            with error, suppress(OSError, http.client.HTTPException, EngineError):
                reason = _reason(_parsed(error.read(64 * 1024), self._base))
            raise EngineError(
                f"{self._base} answered {error.code}: {reason or error.reason}"
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise EngineError(
                f"cannot reach {self._base}: {reason}; is a server running there?"
            ) from error
        except (ValueError, http.client.InvalidURL) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"cannot use the URL {self._base}: {error}") from error
        except http.client.HTTPException as error:
            raise EngineError(f"{self._base} does not speak HTTP: it sent {error!r:.80}") from error


def _key() -> str:
    """The API key, which no message ever repeats; empty without one. Raises UsageError."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{KEY_VARIABLE} holds a character that cannot be sent; copy the key anew")
    return key


@contextmanager
def _told_if_it_breaks(base: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(f"the connection to {base} broke: {error}") from error


def _bounded(data: bytes, base: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise EngineError(f"{base} sent more than {MAX_BYTES} bytes at once")
    return data


def _data_lines(response: http.client.HTTPResponse, base: str) -> Iterator[bytes]:
    """What the server-sent events of a stream hold, up to [DONE]."""
    with _told_if_it_breaks(base):
        while line := _bounded(response.readline(MAX_BYTES + 1), base):
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield data
    raise EngineError(f"{base} ended the answer without [DONE]; it is not complete")


def _events(lines: Iterator[bytes], base: str) -> Iterator[Event]:
    reason: Any = None
    usage = Usage(0, 0, 0)
    for line in lines:
        chunk = _parsed(line, base)
        if chunk.get("error") is not None:
            why = _reason(chunk)
            raise EngineError(f"the answer broke off{f': {why}' if why else ' without a reason'}")
        try:
            deltas, its_reason, its_usage = _read_chunk(chunk)
        except TypeError:
            raise _foreign(line, base) from None
        yield from deltas
        reason, usage = its_reason or reason, its_usage or usage
    yield Finish(reason or "stop", usage)


def _read_chunk(chunk: dict[str, Any]) -> tuple[list[Event], str, Usage | None]:
    """Deltas, reason to finish and usage, the latter two if it has them. Raises TypeError."""
    deltas: list[Event] = []
    reason = ""
    for choice in _member(chunk, "choices", list, []):
        delta = _member(choice, "delta", dict, {})
        thought = _member(delta, "reasoning_content", str, "")
        if thought := thought or _member(delta, "reasoning", str, ""):
            deltas.append(ReasoningDelta(thought))
        if text := _member(delta, "content", str, ""):
            deltas.append(TextDelta(text))
        reason = _member(choice, "finish_reason", str, "") or reason
    usage = _member(chunk, "usage", dict, {})
    counts = [_member(usage, name, int, 0) for name in ("prompt_tokens", "completion_tokens")]
    return deltas, reason, Usage(*counts, reasoning_tokens=0) if usage else None


def _member(parent: Any, name: str, kind: type[T], absent: T) -> T:
    """`parent[name]`, or `absent` where there is none or null. Raises TypeError for another shape."""
    if not isinstance(parent, dict):
        raise TypeError(f"no object around {name}")
    value = parent.get(name)
    if not isinstance(value, kind | None):
        raise TypeError(f"{name} is no {kind.__name__}")
    return absent if value is None else value


def _parsed(data: bytes, base: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _foreign(data, base)
    return value


def _foreign(data: bytes, base: str) -> EngineError:
    return EngineError(f"{base} does not speak the OpenAI API: it sent {data[:80]!r}")


def _reason(body: dict[str, Any]) -> str | None:
    """The message of an error, if it has the usual shape."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
