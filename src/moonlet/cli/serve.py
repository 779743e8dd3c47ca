"""`moonlet serve [MODEL]`: the OpenAI-compatible server."""

import asyncio
import json
import socket
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moonlet.cli.console import UsageError, add_json_flag, print_json
from moonlet.cli.models import add_model_options, load_provider

if TYPE_CHECKING:
    from moonlet.chat.provider import Provider

QUESTION = "347+285"
SHUTDOWN_S = 3  # how long running answers may go on after Ctrl-C


def add_parser(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "serve",
        help="OpenAI-compatible server",
        description="Serve a model over HTTP. Ctrl-C stops it.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="folder, .gguf file or org/name (default: the embedded model)",
    )
    add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    # The port first: loading a large model only to find it taken would be a waste.
    with bind(args.host, args.port) as sock:
        provider = load_provider(args.model, args.keep_floats)
        port = sock.getsockname()[1]

        def announce() -> None:
            url = f"http://{_reachable(args.host)}:{port}"
            if args.json:
                print_json(
                    {
                        "url": f"{url}/v1",
                        "model": provider.card.id,
                        "request": request(url, provider),
                    }
                )
            else:
                print(f"{provider.card.id} answers at {url}/v1\n\n{request(url, provider)}\n")
            sys.stdout.flush()

        serve(provider, sock, announce)
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A socket that owns the address but does not accept connections yet. Raises UsageError."""
    if not 0 <= port < 2**16:
        raise UsageError(f"port {port} does not exist; choose one from 0 to 65535")
    sock = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, UnicodeError) as error:
        if sock is not None:
            sock.close()
        raise _unavailable(host, port, error) from error
    return sock


def serve(provider: "Provider", sock: socket.socket, announce: Callable[[], None]) -> None:
    """Answers on `sock` until Ctrl-C, which is raised as KeyboardInterrupt once all is closed.

    `announce` is called when connections are accepted, not before.
    """
    import uvicorn

    from moonlet.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce()

    config = uvicorn.Config(
        create_app(provider),
        # What goes wrong in a request is logged by the app; all that uvicorn would add is the
        # traceback of an answer that Ctrl-C cut off.
        log_config=None,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    host, port = sock.getsockname()[:2]
    try:
        asyncio.run(Server(config).serve([sock]))
    except OSError as error:  # another process began to listen between our bind and now
        raise _unavailable(host, port, error) from error


def request(url: str, provider: "Provider") -> str:
    """A shell command that asks the server one question, with thinking if the model can."""
    body: dict[str, Any] = {
        "model": provider.card.id,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    if provider.card.supports_reasoning:
        body["thinking"] = {"type": "enabled"}
    quoted = json.dumps(body).replace("'", "'\\''")
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{quoted}'"


def _reachable(host: str) -> str:
    """The address to connect to when `host` is listened on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _unavailable(host: str, port: int, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UsageError(
        f"cannot listen on {host}:{port}: {reason}; choose another address with --host and --port"
    )
