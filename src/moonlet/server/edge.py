"""Around every request: an id for it, and an answer even where the code behind breaks."""

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moonlet.server.state import State

_USABLE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Edge:
    """ASGI middleware. The id is the client's `x-request-id` if it sent a usable one."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _sent_id(scope) or f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if started:
                raise  # nothing can be told any more: the connection breaks off
            await self.state.refusal(scope, error)(scope, receive, send_with_id)


def _sent_id(scope: Scope) -> str | None:
    sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return sent.decode() if _USABLE_ID.fullmatch(sent) else None
