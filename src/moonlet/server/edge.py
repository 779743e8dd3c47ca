"""Around every request: an id for it, the API key, an answer even where the code behind breaks, and its memory."""

import asyncio
import re
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moonlet.server.state import State

_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Edge:
    """ASGI middleware. The id is the client's `x-request-id` if it sent a usable one."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        request_id = sent if _USABLE_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = (b"x-request-id", request_id.encode())
                message["headers"] = [*message.get("headers", []), own]
            await send(message)

        try:
            if scope["path"] not in self.state.public:
                scope["state"]["asked_by"] = self.state.keys.check(headers)
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server ends while the request is being read
            if started:
                raise
            await self.state.refusal(scope, self.state.closing.refusal())(
                scope, receive, send_with_id
            )
        except Exception as error:
            if started:
                raise  # nothing can be told any more: the connection breaks off
            await self.state.refusal(scope, error)(scope, receive, send_with_id)
        finally:
            self.state.bodies.give_back(scope)
