"""A request body as a JSON object, or a refusal: nothing a client sends may hurt the server.

Guarded against: bodies over the limit (before they are in memory), many large ones at once, bodies that
come drop by drop or never end, more values than any real request has (before they are Python objects, of
which each takes far more memory than its text), invalid UTF-8 and JSON, NaN and infinities, integers of
thousands of digits, nesting deeper than any real request, and lone surrogates, which Python's JSON accepts
but no UTF-8 answer or tokenizer can carry.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from moonlet.server.errors import ApiError

MAX_DEPTH = 128  # a JSON schema of depth 30 inside a tool needs about 70
# Commas and opening brackets, which bound the number of values. Base64 has none of them, and a prompt
# that fills a context of 262,144 tokens with commas alone stays below.
MAX_STRUCTURE = 1_000_000

SMALL_BODY_BYTES = 2**16  # up to here a body is parsed at once, and always finds room
MAX_DIGITS = 400  # the largest float has 309
PATIENCE_S = 600.0  # for a whole body: 100 MB over a slow line
GRACE_S = 30.0  # before a body has to come at LEAST_RATE on the average
LEAST_RATE = 10_000  # bytes/s

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyBudget:
    """How much memory bodies may take: `max_bytes` each, and so many of those at the same time.

    What is in a body stays as long as its request is answered (a picture in it, a text), so that is how
    long its bytes count. A small body is always let in: other people's films keep no chat out.
    """

    def __init__(self, max_bytes: int, at_once: int) -> None:
        self.max_bytes = max_bytes
        self.most = max_bytes * at_once
        self.held = 0

    def take(self, size: int, scope: Scope) -> None:
        """Counts `size` more bytes for the request of `scope`. Raises ApiError (429) when all take too much."""
        state = scope.setdefault("state", {})
        taken = state.get("body_bytes", 0) + size
        if self.held + size > self.most and taken > SMALL_BODY_BYTES:
            raise ApiError(
                "too many large requests are answered at the same time; try again later",
                status=429,
                kind="engine_overloaded_error",
                headers={"Retry-After": "5"},
            )
        self.held += size
        state["body_bytes"] = taken

    def give_back(self, scope: Scope) -> None:
        """The request of `scope` is over."""
        self.held -= scope.get("state", {}).pop("body_bytes", 0)


async def read_body(request: Request, budget: BodyBudget) -> bytes:
    """The raw body, never holding more than `budget.max_bytes`.

    What comes beyond the limit is dropped as it arrives, up to as much again: a client that is still
    sending when the connection closes would see a reset instead of the answer. Raises ApiError: 413
    for a body over the limit, 408 for one that is too slow or does not end, 429 when there is no memory for
    it now, and 400 when the client leaves before its end.
    """
    limit = budget.max_bytes
    too_large = ApiError(
        f"the body is larger than the {limit} bytes that this server accepts",
        status=413,
        code="body_too_large",
    )
    stated = request.headers.get("content-length", "0")
    if not (stated.isascii() and stated.isdigit()) or len(stated) > 18:
        raise ApiError("the content-length of the request is no number of bytes")
    if int(stated) > 2 * limit:
        raise too_large
    body = bytearray()
    size = 0
    async with patience("body") as came:
        async for chunk in request.stream():
            size += len(chunk)
            came(size)
            if size <= limit:
                budget.take(len(chunk), request.scope)
                body += chunk
            elif size > 2 * limit:
                break
    if size > limit:
        raise too_large
    return bytes(body)


@asynccontextmanager
async def patience(what: str) -> AsyncGenerator[Callable[[int], None], None]:
    """Around the reading of a body; what it yields is told how many bytes have come so far.

    Raises ApiError: 408 when they come too slowly, 400 when the client leaves before the end.
    """
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(GRACE_S) as timeout:
            yield lambda size: timeout.reschedule(
                began + min(GRACE_S + size / LEAST_RATE, PATIENCE_S)
            )
    except ClientDisconnect:
        raise ApiError(f"the client left before its {what} had ended") from None  # nobody is told
    except TimeoutError:
        raise ApiError(
            f"the {what} came too slowly: this server waits {PATIENCE_S:g} seconds at most, and after "
            f"{GRACE_S:g} seconds it wants {LEAST_RATE} bytes a second",
            status=408,
            code="request_timeout",
        ) from None


def parse_object(body: bytes) -> dict[str, Any]:
    """`body` as a JSON object with only finite numbers and well-formed text. Raises ApiError (400)."""
    if sum(map(body.count, (b"[", b"{", b","))) > MAX_STRUCTURE:
        raise ApiError(f"the body has more than {MAX_STRUCTURE} commas and opening brackets")
    try:
        value = parse_finite(body.decode())
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # not JSON, not UTF-8, or an integer of thousands of digits
        raise ApiError(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object")
    if _is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    return _without_lone_surrogates(value) if _SURROGATE_ESCAPE.search(body) else value


def parse_finite(text: str) -> Any:
    """A JSON value without infinities. Raises ValueError, or RecursionError for one nested too deep."""
    return json.loads(
        text, parse_constant=_refuse_constant, parse_int=_int, parse_float=_finite_float
    )


def _finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is larger than any that can be computed with")
    return value


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _too_deep() -> ApiError:
    return ApiError(f"the body is nested deeper than {MAX_DEPTH} levels")


def _is_deeper(value: Any, levels: int) -> bool:
    row = [value]
    for _ in range(levels):
        row = [
            child
            for item in row
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not row:
            return False
    return True


def _without_lone_surrogates(value: Any) -> Any:
    """The same value with every unpaired surrogate replaced by U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
