"""`moonlet serve [MODEL]`: the OpenAI-compatible server.

It answers from the first moment: /health and other endpoints' models at once, everything else with 503
until the model is loaded. The model is loaded in the main thread, where Ctrl-C can interrupt it, and the
server runs in another.
"""

import json
import os
import re
import resource
import signal
import socket
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet.cli.console import UsageError, add_json_flag, print_json
from moonlet.cli.models import add_model_options, load_provider
from moonlet.cli.upstreams import Gateway, add_upstream_options, open_gateway

if TYPE_CHECKING:
    from fastapi import FastAPI

    from moonlet.chat.provider import Provider
    from moonlet.server.file_store import FileStore

QUESTION = "347+285"
SHUTDOWN_S = 3  # how long running answers may go on after Ctrl-C
LAST_WORDS_S = 2  # and how long they may take to say that they end
KEYS_VARIABLE = "MOONLET_API_KEYS"
NO_MODEL = "none"
CACHE_GB = 20.0
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/\s]+"
)  # as browsers send it: no path, no "/" at its end


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
        help="folder, .gguf file or org/name (default: the embedded model); 'none' serves --upstream alone",
    )
    add_model_options(parser)
    add_upstream_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument(
        "--compat",
        choices=("open", "kimi", "openai"),
        default="open",
        help="refuse what this API refuses (%(default)s: serve what can be served)",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"ask for this key; may be repeated, and {KEYS_VARIABLE} holds more, with commas between",
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin ask, '*' for all; may be repeated (default: none)",
    )
    parser.add_argument(
        "--max-waiting",
        type=int,
        metavar="N",
        default=128,
        help="refuse further requests while N wait for their first token (%(default)s)",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="keep what prompts were computed to there, so that a restart need not compute them again",
    )
    parser.add_argument(
        "--cache-gb",
        type=float,
        default=CACHE_GB,
        metavar="N",
        help="at most so many GB in --cache-dir (%(default)g)",
    )
    parser.add_argument(
        "--files",
        metavar="DIR",
        help="keep uploaded files in this folder (default: until the server ends)",
    )
    parser.add_argument(
        "--fetch-urls",
        action="store_true",
        help="fetch images and videos from public http(s) addresses (default: data URLs and uploads only)",
    )
    parser.add_argument(
        "--otel",
        action="store_true",
        help="send a trace of every request as OTEL_EXPORTER_OTLP_ENDPOINT says (needs moonlet[otel])",
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    from moonlet.chat.sources import MediaAccess

    loading: Future[Provider] = Future()
    _allow_connections()
    with ExitStack() as stack:
        files = _files(args.files)
        access = MediaAccess(args.fetch_urls, files.resolve)
        # The port first: loading a large model only to find it taken would be a waste.
        sock = stack.enter_context(bind(args.host, args.port))
        gateway = stack.enter_context(open_gateway(args, access, _keys(args)))
        if args.model == NO_MODEL:
            loading.set_result(gateway.take_first())
        app = _app(args, loading, gateway, stack, files)
        stack.callback(_close, loading)  # after the server has ended
        server = stack.enter_context(answering(app, sock))
        if args.model != NO_MODEL:
            provider = load_provider(args.model, args.keep_floats, _cache(args), access)
            loading.set_result(gateway.admit(provider))
        provider = loading.result()
        url = f"http://{_reachable(args.host)}:{sock.getsockname()[1]}"
        models = [provider.card.id, *(other.card.id for other in gateway.others)]
        with_key = bool(_keys(args))
        example = request(url, provider, with_key=with_key, switch=args.compat != "openai")
        _announce(url, models, example, with_key, args.json)
        wait(server)
    return 0


def _allow_connections() -> None:
    """Every client that waits, or only holds on, takes an open file: as many as the system allows at all."""
    with suppress(OSError, ValueError):  # macOS names a limit that it does not take
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _cache(args: Namespace) -> tuple[Path, int] | None:
    """The folder for the latents of prompts, and at most how many bytes. Raises UsageError."""
    if not 0 < args.cache_gb < 1e6:
        raise UsageError(f"--cache-gb is {args.cache_gb:g}, but it must be above 0")
    if args.cache_dir is None:
        if args.cache_gb != CACHE_GB:
            raise UsageError("--cache-gb needs --cache-dir, the folder that it limits")
        return None
    try:
        args.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--cache-dir {args.cache_dir} cannot be used: {error.strerror}"
        ) from error
    return args.cache_dir, int(args.cache_gb * 1e9)


def _close(loading: "Future[Provider]") -> None:
    if loading.done() and not loading.cancelled() and loading.exception() is None:
        loading.result().close()


def _app(
    args: Namespace,
    loading: "Future[Provider]",
    gateway: Gateway,
    stack: ExitStack,
    files: "FileStore",
) -> "FastAPI":
    from moonlet.server import create_app
    from moonlet.server.profiles import PROFILES
    from moonlet.server.trace import OtlpTracing

    if args.max_waiting < 1:
        raise UsageError(
            f"--max-waiting is {args.max_waiting}, but at least 1 must be able to wait"
        )

    for origin in args.cors:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--cors {origin} is not an origin; write it as https://example.org:8080, or '*' for all"
            )

    return create_app(
        loading,
        gateway.others,
        profile=PROFILES[args.compat],
        api_keys=_keys(args),
        cors=args.cors,
        max_waiting=args.max_waiting,
        tracing=stack.enter_context(closing(OtlpTracing())) if args.otel else None,
        files=files,
    )


def _files(folder: str | None) -> "FileStore":
    from moonlet.server.file_store import FileStore

    try:
        return FileStore(None if folder is None else Path(folder))
    except OSError as error:
        raise UsageError(
            f"--files {folder} cannot be used: {error.strerror}; choose a folder that can be written"
        ) from error


def _keys(args: Namespace) -> list[str]:
    """Those of the command line, where others can read them, and of the environment, where they cannot."""
    listed = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    return [*args.api_key, *filter(None, listed)]


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises UsageError."""
    if not 0 <= port < 2**16:
        raise UsageError(f"port {port} does not exist; choose one from 0 to 65535")
    sock = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        # asyncio switches Nagle's algorithm off only where the socket names its protocol. With it on, the
        # tokens of a stream wait up to 40 ms for the client's acknowledgement of the one before.
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except (OSError, UnicodeError) as error:
        if sock is not None:
            sock.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(
            f"cannot listen on {host}:{port}: {reason}; "
            "choose another address with --host and --port"
        ) from error
    return sock


@contextmanager
def answering(app: "FastAPI", sock: socket.socket) -> Iterator[threading.Event]:
    """A server for `app` on `sock`, for as long as the `with` lasts; the event is set when it has ended.

    `sock` is closed then. An event, because Ctrl-C in `Thread.join` makes Python 3.11 take the thread for ended.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        # What goes wrong in a request is logged by the app; all that uvicorn would add is the
        # traceback of an answer that Ctrl-C cut off.
        log_config=None,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S + LAST_WORDS_S,
    )
    server = uvicorn.Server(config)
    ended = threading.Event()
    own = sock.dup()  # which nobody closes under it, as a second Ctrl-C closes the other

    def run() -> None:
        try:
            server.run([own])
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="moonlet-server")
    before = signal.signal(signal.SIGTERM, _terminate)
    thread.start()
    try:
        yield ended
    finally:
        server.should_exit = True
        sock.close()  # or the system would go on accepting for it
        try:
            if not ended.wait(SHUTDOWN_S):
                app.state.moonlet.closing.begin()
                ended.wait()
        finally:  # pressed again: nothing is waited for any more
            server.force_exit = True
            signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, _: object) -> None:
    """Stops as Ctrl-C does, with the exit status that shells give to a process that a signal ended."""
    sys.exit(128 + signum)


def wait(ended: threading.Event) -> None:
    """Until the server ends, or until Ctrl-C, which is raised as KeyboardInterrupt."""
    ended.wait()


def request(url: str, provider: "Provider", *, with_key: bool = False, switch: bool = True) -> str:
    """A shell command that asks the server one question, with thinking if the model can.

    with_key: it takes an API key from MOONLET_API_KEY, where `moonlet chat` looks for it too. switch: thinking
    is asked for by name, in a member that OpenAI does not have; without it the model thinks all the same.
    """
    body: dict[str, Any] = {
        "model": provider.card.id,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    if switch and provider.card.supports_reasoning:
        body["thinking"] = {"type": "enabled"}
    quoted = json.dumps(body).replace("'", "'\\''")
    key = ' -H "Authorization: Bearer $MOONLET_API_KEY"' if with_key else ""
    route = f"{url}/v1/chat/completions"
    return f"curl {route}{key} -H 'Content-Type: application/json' -d '{quoted}'"


def _announce(url: str, models: list[str], example: str, with_key: bool, as_json: bool) -> None:
    if as_json:
        print_json({"url": f"{url}/v1", "model": models[0], "models": models, "request": example})
    else:
        verb = "answers" if len(models) == 1 else "answer"
        print(f"{', '.join(models)} {verb} at {url}/v1\n")
        if with_key:
            print("MOONLET_API_KEY must hold one of the keys for this:")
        print(f"{example}\n")
    sys.stdout.flush()


def _reachable(host: str) -> str:
    """The address to connect to when `host` is listened on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
