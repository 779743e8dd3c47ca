"""Failures as the error object of the OpenAI API, with the `type` words of the Kimi API.

    {"error": {"message": str, "type": str, "param": str | None, "code": str | None}, "request_id": str}

| status | type                         | code               | when                                   |
| ------ | ---------------------------- | ------------------ | -------------------------------------- |
| 400    | invalid_request_error        |                    | a body, field, prompt or image that cannot be used |
| 401    | invalid_authentication_error |                    | this server wants an API key and got none |
| 401    | incorrect_api_key_error      | invalid_api_key    | an API key that it does not know       |
| 404    | resource_not_found_error     | model_not_found    | another model than the one served      |
| 404    | resource_not_found_error     | unknown_url        | no such route                          |
| 405    | invalid_request_error        | method_not_allowed | the route exists, the method does not  |
| 408    | invalid_request_error        | request_timeout    | the body did not come in time          |
| 413    | invalid_request_error        | body_too_large     | more bytes than the server accepts     |
| 429    | engine_overloaded_error      |                    | too many requests wait; Retry-After says for how long to stay away |
| 429    | rate_limit_reached_error     |                    | the same, said by the endpoint that was to answer |
| 429    | exceeded_current_quota_error |                    | the budget of the API key is used up   |
| 500    | server_error                 |                    | our fault; the log has the details, the answer has not |
| 502    | server_error                 |                    | the endpoint that was to answer failed |
| 503    | server_unavailable           |                    | the model is still being loaded, or could not be |
| 504    | server_error                 |                    | the endpoint that was to answer took too long |

Validation never answers 422: clients of this API know 400.
"""

import logging
import math
from typing import Any

from starlette.exceptions import HTTPException

from moonlet.errors import (
    EngineError,
    MediaError,
    MoonletError,
    NotSupportedError,
    PromptError,
    QuotaError,
    UpstreamError,
)

logger = logging.getLogger(__name__)


class ApiError(MoonletError):
    """A refusal that already knows its HTTP status. `param` names the field of the request.

    `headers` go out with it.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.kind = kind
        self.code = code
        self.headers = headers or {}


def error_body(error: ApiError, request_id: str | None) -> dict[str, Any]:
    """The JSON object of a refusal in OpenAI's shape; the id stands beside it where there is one."""
    body: dict[str, Any] = {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }
    return body if request_id is None else {**body, "request_id": request_id}


def as_api_error(error: Exception) -> ApiError:
    """`error` as the refusal that a client may see; what a client may not see goes to the log."""
    match error:
        case ApiError():
            return error
        case PromptError() | MediaError():
            return ApiError(error.message, error.param)
        case NotSupportedError():
            return ApiError(str(error))
        case QuotaError():
            return ApiError(str(error), status=429, kind="exceeded_current_quota_error")
        case UpstreamError():
            return _from_upstream(error)
        case HTTPException():
            return _from_http(error)
    logger.error("a request failed", exc_info=error)
    # The message of an EngineError is written for the user; anything else may show internals.
    message = (
        str(error) if isinstance(error, EngineError) else "the server failed; its log says why"
    )
    return ApiError(message, status=500, kind="server_error")


def _from_upstream(error: UpstreamError) -> ApiError:
    """What another endpoint did; it is in the log where it was noticed."""
    kind = "rate_limit_reached_error" if error.status == 429 else "server_error"
    wait = error.retry_after_s
    headers = {} if wait is None else {"Retry-After": str(math.ceil(wait))}
    return ApiError(str(error), status=error.status, kind=kind, headers=headers)


def _from_http(error: HTTPException) -> ApiError:
    """What the router refuses: 404 and 405."""
    if error.status_code == 404:
        message = "no such route; the API is under /v1, for instance /v1/chat/completions"
        return ApiError(message, status=404, kind="resource_not_found_error", code="unknown_url")
    code = "method_not_allowed" if error.status_code == 405 else None
    return ApiError(
        str(error.detail), status=error.status_code, code=code, headers=dict(error.headers or {})
    )
