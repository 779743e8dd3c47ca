"""Raw HTTP: what was sent, what came back, and nothing in between that would tidy it up."""

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import httpx2

from moonlet.gateway.fidelity.errors import Failed, Unreachable, VerifyError
from moonlet.gateway.fidelity.sse import ServerEvent, read_events

MAX_BYTES = 64 * 2**20  # of one answer: 128,000 tokens streamed one by one take half of it
MAX_LINES = 500_000  # of one stream
CONNECT_S = 10.0
IDLE_S = 2.0  # before servers close a connection that nobody uses, which would look like a failure
MAX_DIGITS = 4000  # of an integer; Python itself stops soon after
MAX_ATTEMPTS = 5
MAX_DELAY_S = 300.0  # however long Retry-After says


@dataclass(frozen=True)
class Reply:
    """One HTTP answer. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @cached_property
    def json(self) -> Any:
        """The body. Raises Failed when it is no JSON."""
        try:
            return parse_json(self.raw)
        except ValueError:
            raise Failed(f"the body is no JSON: {shown(self.raw)}") from None

    @cached_property
    def events(self) -> list[ServerEvent]:
        """The body as a stream. Raises Failed for one that is endless in practice."""
        if self.raw.count(b"\n") > MAX_LINES:
            raise Failed(f"the stream has more than {MAX_LINES} lines")
        return read_events(self.raw)

    @property
    def told(self) -> str:
        """The status and the message of the error, for a sentence."""
        try:
            error = parse_json(self.raw)["error"]
            message = error["message"] if isinstance(error, dict) else error
        except (ValueError, KeyError, TypeError):
            message = self.raw
        return f"{self.status} ({shown(message)})"


@dataclass(frozen=True)
class Client:
    """An endpoint: `base` is the URL that `/chat/completions` is added to."""

    http: httpx2.AsyncClient
    base: str
    key: str | None = None

    @property
    def root(self) -> str:
        """Where the routes are that do not lie under /v1."""
        return self.base.removesuffix("/v1")

    async def send(self, method: str, path: str, body: Any = None) -> Reply:
        """`path` below the base, or a whole URL; `body`: bytes as they are, anything else as JSON.

        Waits and asks again when there were too many requests. Raises Unreachable without an answer,
        Failed for one that is too large.
        """
        attempt = 0
        while True:
            reply = await self.once(method, path, body)
            attempt += 1
            if reply.status != 429 or attempt == MAX_ATTEMPTS:
                return reply
            await asyncio.sleep(delay_s(reply.headers, attempt))

    async def once(self, method: str, path: str, body: Any = None) -> Reply:
        """The same without asking again."""
        url = path if "://" in path else self.base + path
        headers = {"Accept-Encoding": "identity"}
        if self.key is not None:
            headers |= {"Authorization": f"Bearer {self.key}"}
        content = body
        if body is not None and not isinstance(body, bytes):
            content = json.dumps(body).encode()
        if body is not None:
            headers["Content-Type"] = "application/json"
        raw = bytearray()
        try:
            async with (
                self.http.stream(method, url, content=content, headers=headers) as response,
                aclosing(response.aiter_bytes()) as pieces,
            ):
                async for piece in pieces:
                    raw += piece
                    if len(raw) > MAX_BYTES:
                        raise Failed(f"the answer has more than {MAX_BYTES} bytes")
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise VerifyError(f"cannot use the URL {shown(url)}: {error}") from error
        except httpx2.ConnectTimeout as error:
            raise Unreachable(f"no connection within {CONNECT_S:g} s") from error
        except httpx2.ConnectError as error:
            raise Unreachable(f"no connection: {error}") from error
        except httpx2.HTTPError as error:
            detail = str(error) or type(error).__name__
            raise Unreachable(f"the connection broke: {detail:.160}") from error
        return Reply(response.status_code, dict(response.headers), bytes(raw))


def open_http(transport: httpx2.AsyncBaseTransport | None = None) -> httpx2.AsyncClient:
    """An HTTP client that follows no redirect: the key belongs to one host only.

    Whoever asks sets the time for the whole of what they ask; here only connecting is bounded. Raises
    VerifyError for a proxy in the environment that cannot be used.
    """
    try:
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            limits=httpx2.Limits(keepalive_expiry=IDLE_S),
            transport=transport,
        )
    except (ValueError, ImportError, httpx2.InvalidURL) as error:
        raise VerifyError(f"the proxy of this environment cannot be used: {error}") from error


def open_client(http: httpx2.AsyncClient, url: str, key: str | None) -> Client:
    """The endpoint at `url`; one without a path gets `/v1`. Raises VerifyError."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise VerifyError(f"cannot use the URL {shown(url)}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise VerifyError(f"{shown(url)} is no URL such as http://127.0.0.1:8000/v1")
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise VerifyError("the API key holds a character that cannot be sent; copy the key anew")
    base = url.rstrip("/")
    if base.endswith("/chat/completions"):
        raise VerifyError(f"leave /chat/completions out: {shown(base)} must be what it is added to")
    return Client(http, base if parsed.path.strip("/") else f"{base}/v1", key)


def parse_json(raw: bytes | str) -> Any:
    """JSON as the standard has it: in UTF-8, without NaN. Raises ValueError."""
    if isinstance(raw, bytes):
        raw = raw.decode()  # which json.loads would guess
    try:
        return json.loads(raw, parse_constant=_refuse, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def shown(value: Any) -> str:
    """The beginning of what somebody sent, quoted for a sentence."""
    if isinstance(value, bytes):
        value = value[:800].decode("utf-8", "replace")
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


def delay_s(headers: Mapping[str, str], attempt: int) -> float:
    """How long to wait after try number `attempt`: what Retry-After says, else longer each time."""
    asked = headers.get("retry-after", "").strip()
    seconds: float | None = None
    if asked.isascii() and asked.isdigit():
        seconds = float(asked[:9])
    elif asked:
        try:
            when = parsedate_to_datetime(asked)
            seconds = (when.astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            pass
    if seconds is None:
        seconds = 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)  # not all at the same moment
    return min(max(seconds, 0.0), MAX_DELAY_S)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)
