"""A real uvicorn on a free port of 127.0.0.1, in a thread, for as long as a `with` lasts."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from openai import OpenAI

WAIT_S = 30  # only ever reached by a test that fails


class _Server(uvicorn.Server):
    loop: asyncio.AbstractEventLoop
    accepting: threading.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.accepting.set()


@dataclass
class Running:
    """A server that accepts connections at `port`; `loop` is the one that `app` runs in."""

    port: int
    loop: asyncio.AbstractEventLoop
    app: FastAPI

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`, awaited in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def post(
        self, body: bytes | Iterator[bytes], path: str = "/v1/chat/completions"
    ) -> tuple[int, Any]:
        """(status, parsed JSON) of a raw request, for bodies that no client would send."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request("POST", path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


@contextmanager
def serving(app: FastAPI) -> Iterator[Running]:
    sock = socket.socket(proto=socket.IPPROTO_TCP)  # as `moonlet serve` makes it: see cli/serve.py
    sock.bind(("127.0.0.1", 0))
    server = _Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    server.accepting = threading.Event()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    assert server.accepting.wait(WAIT_S), "the server did not start"
    try:
        yield Running(sock.getsockname()[1], server.loop, app)
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive(), "the server did not stop"
