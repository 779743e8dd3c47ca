"""Token ids in, a stream of token ids out: one request after another, on a thread of its own.

The engine knows nothing of text. Its whole interface is `submit`, the `Stream` it returns, and
`close`; a scheduler that runs many requests together can stand behind the same three.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from moonlet.chat.media import MediaItem
from moonlet.engine.sampler import Sampler, SamplingParams
from moonlet.errors import EngineError, MoonletError
from moonlet.model import LatentCache, Media, Model

logger = logging.getLogger(__name__)

_PREFILL_CHUNK = 1024  # tokens between two looks at whether the request was cancelled


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt with its media in order, how to sample, and at most how many tokens to make."""

    token_ids: list[int]
    max_tokens: int
    media: list[MediaItem] = field(default_factory=list)
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True)
class Finished:
    """Why a stream ended: at an end token (the last of the stream), at the limit, or cancelled."""

    reason: Literal["stop", "length", "cancelled"]


Item = int | Finished | MoonletError


class Stream:
    """The answer to one request.

    Iterating blocks until the next token and raises the error that ended the generation, if one did.
    `cancel` may be called from any thread and frees the engine within one step. With `sink`, items go
    there instead, on the engine's thread: each token, then one Finished or error.
    """

    def __init__(self, sink: Callable[[Item], None] | None = None) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._sink = sink or self._items.put
        self._cancelled = threading.Event()
        self.finished: Finished | None = None

    def _put(self, item: Item) -> None:
        try:
            self._sink(item)
        except Exception:  # a broken listener must not take the engine's thread with it
            logger.exception("a stream's sink failed; its request is cancelled")
            self.cancel()

    def cancel(self) -> None:
        self._cancelled.set()

    def __iter__(self) -> Iterator[int]:
        while self.finished is None:
            item = self._items.get()
            if isinstance(item, MoonletError):
                raise item
            if isinstance(item, Finished):
                self.finished = item
            else:
                yield item


class Engine:
    """Runs `model` for requests in the order they come.

    end_ids: tokens that end an answer. max_seq_len: prompt and answer together.
    """

    def __init__(
        self, model: Model, end_ids: frozenset[int], max_seq_len: int | None = None
    ) -> None:
        self.model = model
        self.end_ids = end_ids
        self.max_seq_len = max_seq_len or model.config.max_position_embeddings
        self._jobs: queue.SimpleQueue[tuple[GenerateRequest, Stream] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="moonlet-engine", daemon=True)
        self._thread.start()

    def submit(
        self, request: GenerateRequest, sink: Callable[[Item], None] | None = None
    ) -> Stream:
        """Queues a request. Raises EngineError when it cannot fit or the engine is closed."""
        total = len(request.token_ids) + request.max_tokens
        if not request.token_ids or request.max_tokens < 1 or total > self.max_seq_len:
            raise EngineError(
                f"a prompt of {len(request.token_ids)} tokens and {request.max_tokens} new ones do not fit "
                f"this engine: at least one of each, at most {self.max_seq_len} together"
            )
        stream = Stream(sink)
        with self._closing:
            if self._closed:
                raise EngineError("the engine is closed; it takes no more requests")
            self._jobs.put((request, stream))
        return stream

    def close(self) -> None:
        """Ends the running request and those that wait as cancelled, and stops the thread."""
        with self._closing:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            request, stream = job
            try:
                with torch.inference_mode():
                    last: Item = self._generate(request, stream)
            except MoonletError as error:
                last = error
            except Exception as error:
                # Whatever happens must reach the one who asked and leave the thread alive.
                logger.exception("a generation failed")
                last = EngineError(f"generation failed: {error or type(error).__name__}")
            stream._put(last)

    def _is_over(self, stream: Stream) -> bool:
        return self._closed or stream._cancelled.is_set()

    def _generate(self, request: GenerateRequest, stream: Stream) -> Finished:
        if self._is_over(stream):
            return Finished("cancelled")
        sampler = Sampler(request.sampling)
        cache = self.model.new_cache(1, len(request.token_ids) + request.max_tokens)
        logits = None
        for token_ids, media in self._prefill_chunks(request):
            if self._is_over(stream):
                return Finished("cancelled")
            logits = self._step(token_ids, cache, media)
        assert logits is not None  # submit refuses empty prompts
        for left in reversed(range(request.max_tokens)):
            token = sampler.draw(logits)
            stream._put(token)
            if token in self.end_ids:
                return Finished("stop")
            if self._is_over(stream):
                return Finished("cancelled")
            if left:
                logits = self._step([token], cache)
        return Finished("length")

    def _step(
        self, token_ids: list[int], cache: LatentCache, media: Media | None = None
    ) -> torch.Tensor:
        """Logits [vocab_size] after the last of `token_ids`."""
        hidden = self.model.hidden(torch.tensor([token_ids]), media=media, cache=cache)
        return self.model.logits(hidden[0, -1])

    def _prefill_chunks(self, request: GenerateRequest) -> Iterator[tuple[list[int], Media | None]]:
        """The prompt in pieces, with the media that belong to each; no item is cut in two."""
        placeholder = self.model.config.media_placeholder_token_id or 0  # None: takes no media
        ids, waiting = request.token_ids, list(request.media)
        start = 0
        while start < len(ids):
            end = min(start + _PREFILL_CHUNK, len(ids))
            inside, items = ids[start:end].count(placeholder) if waiting else 0, []
            while inside > 0 and waiting:
                items.append(waiting.pop(0))
                inside -= items[-1].num_tokens
            if inside < 0:  # the last item goes on behind the border: move the border to its end
                end += -inside
            yield ids[start:end], _pack(items)
            start = end


def _pack(items: list[MediaItem]) -> Media | None:
    if not items:
        return None
    patches = torch.cat([torch.from_numpy(item.patches) for item in items])
    return Media(patches, [item.grid for item in items])
