"""Asks an endpoint all samples and writes down what came, with patience for what is only temporary."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from moonlet.gateway.fidelity.answers import Answer, Call, read_plain, read_stream
from moonlet.gateway.fidelity.client import MAX_ATTEMPTS, Client, Reply, delay_s
from moonlet.gateway.fidelity.endpoint import CHAT
from moonlet.gateway.fidelity.errors import Failed, Refusal, Unreachable, VerifyError
from moonlet.gateway.fidelity.judge import NoSchema, text_problem
from moonlet.gateway.fidelity.records import CallRecord, Record, RecordFile
from moonlet.gateway.fidelity.samples import Sample

FOR_ALL = (401, 403, 404)  # no key, no right, no such model or path
NO_MONEY = b"exceeded_current_quota_error"  # a 429 that no waiting mends


async def replay(
    client: Client,
    samples: Iterator[Sample],
    records: RecordFile,
    *,
    concurrency: int,
    timeout_s: float,
    on_done: Callable[[], None] = lambda: None,
) -> list[Record]:
    """The record of every sample, in their order; what `records` has an answer to is not asked again.

    timeout_s: for one try of one sample. Raises what reading `samples` raises, and VerifyError when the
    first to be answered is told that there is no such model, or no access: it would be so for all.
    """
    asked: list[str] = []
    answered = False

    async def work() -> None:
        nonlocal answered
        for sample in samples:  # all workers take from one iterator, and between two awaits
            asked.append(sample.request)
            known = records.done.get(sample.request)
            if known is None or known.error is not None:
                record, status = await _one(client, sample, timeout_s)
                if status in FOR_ALL and not answered:
                    raise VerifyError(f"of {client.base}, {sample.body['model']}: {record.error}")
                answered = answered or record.error is None
                records.add(record)
            on_done()

    workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    return [records.done[request] for request in asked]


async def _one(client: Client, sample: Sample, timeout_s: float) -> tuple[Record, int | None]:
    """What came of it, and the status with which it was refused."""
    begun = time.monotonic()
    known = {"sample": sample.sample, "request": sample.request, "model": sample.body["model"]}
    try:
        answer = await ask_patiently(client, sample.body, timeout_s)
        choice = answer.first
    except Failed as error:
        status = error.status if isinstance(error, Refusal) else None
        return Record(**known, error=str(error), seconds=time.monotonic() - begun), status
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters")
        for tool in sample.body["tools"]
    }
    record = Record(
        **known,
        finish_reason=choice.finish,
        calls=tuple(_judged(call, schemas) for call in choice.calls),
        usage=answer.usages[-1] if answer.usages else {},
        seconds=time.monotonic() - begun,
    )
    return record, None


async def ask_patiently(client: Client, body: dict[str, Any], timeout_s: float) -> Answer:
    """Asks again after 429, 5xx and broken connections. Raises Failed when that does not help."""
    attempt = 0
    while True:
        attempt += 1
        headers: Any = {}
        try:
            async with asyncio.timeout(timeout_s):
                reply = await client.once("POST", CHAT, body)
            if reply.status == 200:
                return _read(body, reply)
            problem, headers = f"it answered {reply.told}", reply.headers
            if not _is_temporary(reply):
                raise Refusal(problem, reply.status)
        except TimeoutError:
            problem = f"no answer within {timeout_s:g} s"
        except Unreachable as error:
            problem = str(error)
        if attempt == MAX_ATTEMPTS:
            raise Failed(f"{problem}, {attempt} times")
        await asyncio.sleep(delay_s(headers, attempt))


def _is_temporary(reply: Reply) -> bool:
    return reply.status >= 500 or (reply.status == 429 and NO_MONEY not in reply.raw)


def _read(body: dict[str, Any], reply: Reply) -> Answer:
    """Raises Unreachable for a stream that broke off, Failed for what is no answer."""
    if body.get("stream") is not True:
        return read_plain(reply)
    answer = read_stream(reply, keep_chunks=False)  # there may be 100,000 of them
    if answer.after_done is None:
        raise Unreachable("the stream ended without [DONE]")
    return answer


def _judged(call: Call, schemas: dict[str, Any]) -> CallRecord:
    """A name that was declared, and arguments that its schema takes."""
    if call.name not in schemas:
        return CallRecord(call.name, call.arguments, "no such tool was declared")
    try:
        found = text_problem(call.arguments, schemas[call.name] or {})
    except NoSchema as error:
        return CallRecord(call.name, call.arguments, f"its schema is none: {error}", judged=False)
    return CallRecord(call.name, call.arguments, found)
