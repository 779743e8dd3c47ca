"""What an endpoint answers in place of an answer -> whose fault it is, and whether to ask again.

| status             | raised here                  | what becomes of the request              |
| ------------------ | ---------------------------- | ---------------------------------------- |
| 400, 413, 422      | PromptError                  | the client is told, in the endpoint's words |
| 401, 403, 404, 3xx | UpstreamError                | the next endpoint: this one is not set up right |
| 402, 429 over quota | UpstreamError               | the next endpoint: its account is empty  |
| 429                | UpstreamError 429, `retry`   | asked again after Retry-After            |
| 408, 425, 5xx      | UpstreamError, `retry`       | asked again                              |

The same words in a stream that has begun count as the status that they usually come with.
"""

import email.utils
import time
from collections.abc import Mapping
from typing import Any

from moonlet.errors import PromptError, UpstreamError

LONGEST_WAIT_S = 3600.0  # what a Retry-After may ask for
MAX_MESSAGE = 500  # characters of an endpoint's own words

_CLIENTS = (400, 413, 422)
_AGAIN = (408, 425, 429)
_CLIENTS_TYPES = ("invalid_request_error", "content_filter", "BadRequestError")
_NO_MONEY = ("exceeded_current_quota_error", "insufficient_quota", "insufficient_balance")


def failure(
    status: int, body: dict[str, Any], headers: Mapping[str, str], who: str
) -> PromptError | UpstreamError:
    """The exception for an answer with that status; `body` is empty where it was no JSON."""
    message, kinds, param = _told(body)
    words = f": {message}" if message else ""
    if status in _CLIENTS:
        return PromptError(f"{who} refuses the request{words or f' with status {status}'}", param)
    if status == 402 or (status == 429 and kinds & set(_NO_MONEY)):
        return UpstreamError(f"the account of {who} has no money left{words}")
    if status in (401, 403):
        return UpstreamError(
            f"{who} refuses the key of this server, or has none from it (status {status}){words}"
        )
    again = status in _AGAIN or status >= 500
    return UpstreamError(
        f"{who} answered with status {status}{words}",
        {429: 429, 408: 504, 504: 504}.get(status, 502),
        retry=again,
        retry_after_s=_retry_after(headers.get("retry-after", "")) if again else None,
    )


def failure_in_stream(chunk: dict[str, Any], who: str) -> PromptError | UpstreamError:
    """The exception for a chunk that holds an error."""
    message, kinds, _ = _told(chunk)
    if kinds & set(_CLIENTS_TYPES):
        return failure(400, chunk, {}, who)
    if kinds & set(_NO_MONEY):
        return failure(402, chunk, {}, who)
    reason = f": {message}" if message else " without a reason"
    return UpstreamError(f"{who} broke the answer off{reason}", retry=True)


def _told(body: dict[str, Any]) -> tuple[str, set[str], str | None]:
    """The message of an error, the words that class it, and the field that it is about."""
    error = body.get("error")
    if isinstance(error, str):
        return _clean(error), set(), None
    # vLLM's older versions and FastAPI's defaults have no object around the members.
    error = error if isinstance(error, dict) else body
    message = error.get("message", error.get("detail"))
    param = error.get("param")
    kinds = {kind for kind in (error.get("type"), error.get("code")) if isinstance(kind, str)}
    return (
        _clean(message) if isinstance(message, str) else "",
        kinds,
        param if isinstance(param, str) and len(param) <= 200 and param.isprintable() else None,
    )


def _clean(message: str) -> str:
    """An endpoint's words without anything but printable characters."""
    text = "".join(char if char.isprintable() else " " for char in message[:MAX_MESSAGE])
    return " ".join(text.split())


def _retry_after(value: str) -> float | None:
    """Seconds, given as such or as a date; None for anything else."""
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) <= 9:
        return min(float(value), LONGEST_WAIT_S)
    try:
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S)
