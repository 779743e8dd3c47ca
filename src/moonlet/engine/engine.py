"""Token ids in, streams of token ids out: many requests together, on a thread of its own.

Each step computes one token of every answer and a chunk of one prompt (`moonlet.engine.scheduler` says
which), draws, and hands out what was drawn. The engine knows nothing of text. Its whole interface is
`submit`, the `Stream` it returns, `stats` and `close`.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from moonlet.engine.batch import Batch, Logits
from moonlet.engine.disk import DiskTier
from moonlet.engine.lookup import Lookup
from moonlet.engine.memory import page_budget
from moonlet.engine.prefix import PrefixCache, keys_of, spans_of
from moonlet.engine.sampler import Sampler
from moonlet.engine.scheduler import Plan, Scheduler, Task
from moonlet.engine.stream import Finished, GenerateRequest, Item, Stream
from moonlet.errors import EngineError, MoonletError
from moonlet.model import Model

logger = logging.getLogger(__name__)

PAGE_SIZE = 64
STALL_S = 0.25  # how long a chunk of a prompt may keep the running answers waiting
MAX_CHUNK = 2048  # tokens of a prompt between two looks at whether its request was cancelled
T = TypeVar("T")


@dataclass(eq=False)
class _Answer:
    """What the engine keeps with a task."""

    request: GenerateRequest
    stream: Stream
    sampler: Sampler
    deadline: float
    lookup: Lookup = field(default_factory=Lookup)
    made: int = 0


class Engine:
    """Runs `model` for many requests at once.

    end_ids: tokens that end an answer. max_seq_len: prompt and answer together. pages: how many the latent
    cache has, by default what a part of the free memory holds. disk: where pages outlive the process.
    """

    def __init__(
        self,
        model: Model,
        end_ids: frozenset[int],
        max_seq_len: int | None = None,
        *,
        pages: int | None = None,
        page_size: int = PAGE_SIZE,
        disk: DiskTier | None = None,
    ) -> None:
        self.model = model
        self.end_ids = end_ids
        wanted = max_seq_len or model.config.max_position_embeddings
        count = pages or page_budget(model, page_size, wanted)
        self.max_seq_len = min(wanted, count * page_size)
        self._prefix = PrefixCache(model.new_cache(count, page_size), disk)
        self._scheduler = Scheduler(self._prefix.pages, self._prefix.fill)
        self._batch = Batch(model, self._prefix.cache)
        self._prefill_speed = 0.0  # tokens a second, as last seen
        self._plain_s = 0.0  # for one token of one answer alone, as last seen
        self._steps = 0
        self._jobs: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="moonlet-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: GenerateRequest,
        sink: Callable[[Item], None] | None = None,
        after: Stream | None = None,
    ) -> Stream:
        """Queues a request. `after`: another with the same prompt, which is computed only once for both.

        Raises EngineError when it cannot fit or the engine is closed.
        """
        total = len(request.token_ids) + request.max_tokens
        if not request.token_ids or request.max_tokens < 1 or total > self.max_seq_len:
            raise EngineError(
                f"a prompt of {len(request.token_ids)} tokens and {request.max_tokens} new ones do not fit "
                f"this engine: at least one of each, at most {self.max_seq_len} together"
            )
        stream = Stream(sink)
        placeholder = self.model.config.media_placeholder_token_id or 0  # None: takes no media
        spans = spans_of(request.token_ids, request.media, placeholder)
        seconds = float("inf") if request.deadline_s is None else request.deadline_s
        deadline = time.monotonic() + seconds
        sampler = Sampler(request.sampling, request.token_ids, request.choice)
        task = Task(
            list(request.token_ids),
            keys_of(request.token_ids, request.media, spans),
            spans,
            after and after.task,
            _Answer(request, stream, sampler, deadline),
        )
        with self._closing:
            if self._closed:
                raise EngineError("the engine is closed; it takes no more requests")
            stream.task = task
            self._jobs.put(task)
        return stream

    def stats(self) -> dict[str, float]:
        """Counts for a monitor; read without stopping the engine, so that they may be a step apart."""
        scheduler, pages = self._scheduler, self._prefix.pages
        return {
            "requests_running": len(scheduler.decoding) + len(scheduler.prefilling),
            "requests_waiting": len(scheduler.waiting) + self._jobs.qsize(),
            "cache_pages": pages.count,
            "cache_pages_available": pages.available,
            "cache_evictions": pages.evictions,
            "preemptions": scheduler.preemptions,
            "steps": self._steps,
            "disk_bytes": self._prefix.disk.bytes_used if self._prefix.disk else 0,
        }

    def close(self) -> None:
        """Ends the running requests and those that wait as cancelled, and stops the thread."""
        with self._closing:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._prefix.close()

    def _run(self) -> None:
        while self._take_jobs():
            try:
                with torch.inference_mode():
                    self._drop_cancelled()
                    chunk = self._chunk()
                    if (plan := self._scheduler.plan(chunk)) is not None:
                        self._step(plan)
            except Exception:  # a fault of ours, outside of any one request
                logger.exception("a step failed; all requests end with an error")
                for task in [*self._scheduler.running, *self._scheduler.waiting]:
                    self._end(task, EngineError("the engine failed; its log says why"))
        for task in [*self._scheduler.running, *self._scheduler.waiting]:
            self._end(task, Finished("cancelled"))

    def _take_jobs(self) -> bool:
        """Moves what was submitted to the scheduler, waiting when nothing else is to be done."""
        scheduler = self._scheduler
        while True:
            idle = not (scheduler.running or scheduler.waiting)
            try:
                job = self._jobs.get(block=idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            scheduler.add(job)

    def _drop_cancelled(self) -> None:
        now = time.monotonic()
        for task in [*self._scheduler.running, *self._scheduler.waiting]:
            answer: _Answer = task.data
            if answer.stream.is_cancelled:
                self._end(task, self._finished(task, "cancelled"))
            elif now > answer.deadline:
                self._end(task, self._finished(task, "length"))

    def _chunk(self) -> int:
        """Tokens of a prompt in the next step: few enough that the running answers hardly stall."""
        if not self._scheduler.decoding:
            return MAX_CHUNK
        return min(max(int(self._prefill_speed * STALL_S), PAGE_SIZE), MAX_CHUNK)

    def _step(self, plan: Plan) -> None:
        self._steps += 1
        if len(plan.decode) == 1 and (draft := self._draft(plan.decode[0])):
            self._verify(plan.decode[0], draft)
        elif plan.decode:
            self._decode(plan.decode)
        if plan.prefill:
            self._prefill(plan.prefill, plan.begin, plan.end)

    def _decode(self, tasks: list[Task]) -> None:
        """One token of every task."""
        begun = time.perf_counter()
        rows = self._compute(tasks, lambda: self._batch.decode(tasks))
        for task, logits in zip(tasks, rows, strict=False):  # no rows after a failure
            self._scheduler.computed(task, len(task.tokens))
            self._draw(task, logits)
        if len(tasks) == 1:
            self._plain_s = time.perf_counter() - begun

    def _draft(self, task: Task) -> list[int]:
        """Tokens to try together. Only for one alone: many are faster side by side than with any draft."""
        answer: _Answer = task.data
        limit = answer.request.max_tokens - answer.made - 1
        draft = answer.lookup.draft(task.tokens, limit, self._plain_s)
        return draft[: self._scheduler.spare_room(task, len(draft))]

    def _verify(self, task: Task, draft: list[int]) -> None:
        """Tokens of one task as long as they are those of the draft, and one more."""
        answer: _Answer = task.data
        begun, before = time.perf_counter(), answer.made
        rows = self._compute([task], lambda: self._batch.verify(task, draft))
        for logits, guess in zip(rows, [*draft, None], strict=False):
            self._scheduler.computed(task, len(task.tokens))
            self._draw(task, logits)
            if task.state != "decode" or task.tokens[-1] != guess:
                break
        answer.lookup.took(time.perf_counter() - begun, max(answer.made - before, 1))

    def _prefill(self, task: Task, begin: int, end: int) -> None:
        """A piece of a prompt; after the last one, the first token of the answer."""
        begun = time.perf_counter()
        items = zip(task.data.request.media, task.uncut, strict=True)
        media = [item for item, span in items if begin <= span[0] < end]
        for logits in self._compute([task], lambda: [self._batch.prefill(task, begin, end, media)]):
            self._scheduler.computed(task, end)
            if logits is not None:
                self._draw(task, logits)
        self._prefill_speed = (end - begin) / (time.perf_counter() - begun)

    def _compute(self, tasks: list[Task], compute: Callable[[], Sequence[T]]) -> Sequence[T]:
        """What `compute` returns. When it fails, that ends the tasks, and nothing is returned."""
        try:
            return compute()
        except Exception as error:  # noqa: BLE001  it must reach those who asked, the thread lives on
            for task in tasks:
                self._end(task, _failure(error))
            return []

    def _draw(self, task: Task, logits: Logits) -> None:
        answer: _Answer = task.data
        request = answer.request
        try:
            mask = request.guide.mask() if request.guide else None
            drawn = answer.sampler.draw(logits, mask, request.logprobs)
            if request.guide:
                request.guide.accept(drawn.token)
        except Exception as error:  # noqa: BLE001  a fault of this answer must not end the others
            return self._end(task, _failure(error))
        answer.made += 1
        task.append(drawn.token)
        answer.stream.put(drawn)
        if drawn.token in self.end_ids:
            self._end(task, self._finished(task, "stop"))
        elif answer.made == request.max_tokens:
            self._end(task, self._finished(task, "length"))

    def _finished(self, task: Task, reason: Literal["stop", "length", "cancelled"]) -> Finished:
        return Finished(reason, task.reused, task.from_disk, task.lost, task.differs_at)

    def _end(self, task: Task, last: Item) -> None:
        self._scheduler.end(task)
        stream: Stream = task.data.stream
        stream.task = None
        stream.put(last)


def _failure(error: Exception) -> MoonletError:
    if isinstance(error, MoonletError):
        return error
    logger.error("a generation failed", exc_info=error)
    return EngineError(f"generation failed: {error or type(error).__name__}")
