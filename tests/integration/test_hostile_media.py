"""Pictures and films meant to hurt, through the API: refused by name, and the server's memory stays bounded."""

import base64
import http.client
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moonlet.chat.sources import MediaAccess
from moonlet.engine import load
from moonlet.server import create_app
from tests.chat.films import film
from tests.chat.test_fetch import PUBLIC, Web, answer, redirecting
from tests.chat.test_headers import small_gif
from tests.chat.test_images import GOOD
from tests.chat.test_video import box, patched
from tests.server.child import WAIT_S, Child, child_server
from tests.server.running import Running, serving
from tests.tiny_checkpoint import write_tiny_checkpoint

MB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


# Bombs


@pytest.fixture(scope="module")
def child(folder: Path) -> Iterator[Child]:
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc tells the memory of a process on Linux only")
    with child_server(str(folder)) as child:
        yield child


def ask(port: int, kind: str, url: str) -> tuple[int, Any]:
    """(status, answer) of a question about one picture or film."""
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body | {"model": "tiny"}))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def true_png(side: int) -> bytes:
    """A whole black PNG of one bit for each pixel: `side` times `side` / 8 bytes when it is unpacked."""
    rows = bytes((1 + (side + 7) // 8) * side)

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def lying_mp4(table: bytes, offset: int, *values: int) -> bytes:
    data = film(count=20, bf="0")
    return patched(data, box(data, table) + offset, f">{len(values)}I", *values)


BOMBS = {
    "png": ("image", "image/png", lambda: true_png(30_000), "more than the 67108864 pixels"),
    "gif": ("video", "image/gif", lambda: small_gif(100_000), "4096 frames allowed"),
    "mp4 with a billion times": (
        "video", "video/mp4", lambda: lying_mp4(b"stts", 4, 2**31 - 1, 20, 512), "more memory than",
    ),
    "mp4 with a billion samples": (
        "video", "video/mp4", lambda: lying_mp4(b"stsz", 8, 2**31 - 1), "not readable",
    ),
    "avi of huge frames": (
        "video", "video/avi", lambda: film("avi", count=2, size=(4096, 4112)), "16777216 pixels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_and_takes_no_memory(child: Child, name: str) -> None:
    kind, media_type, make, reason = BOMBS[name]
    url = data_url(make(), media_type)
    before = child.peak_bytes()
    for _ in range(3):
        status, told = ask(child.port, kind, url)
        assert status == 400, told
        assert told["error"]["param"] == "messages[0].content[0]"
        assert reason in told["error"]["message"]
    assert child.peak_bytes() - before < 60 * MB + 6 * len(url)
    assert ask(child.port, "image", data_url(GOOD, "image/png"))[0] == 200


def test_of_a_gif_with_a_hundred_thousand_frames_a_picture_is_the_first(child: Child) -> None:
    url = data_url(small_gif(100_000), "image/gif")
    before = child.peak_bytes()
    status, told = ask(child.port, "image", url)
    assert (status, told["usage"]["completion_tokens"]) == (200, 1)
    assert child.peak_bytes() - before < 60 * MB + 6 * len(url)


# Addresses inside


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


@pytest.fixture(scope="module")
def fetching(folder: Path, web: Web) -> Iterator[Running]:
    """A server started with --fetch-urls, in a world whose names and connections are those of `web`."""
    provider = load(folder, "tiny", access=MediaAccess(fetch_urls=True, network=web.network()))
    with serving(create_app(provider)) as running:
        yield running
    provider.close()


@pytest.fixture
def names(web: Web) -> Web:
    """`web` as new."""
    web.names = {"media.example": [[PUBLIC]]}
    web.serve = lambda sock: sock.sendall(answer(GOOD))
    web.dialled.clear()
    return web


def refused(server: Running, url: str, reason: str = "does not lead to a public address") -> None:
    for kind in ("image", "video"):
        status, told = ask(server.port, kind, url)
        assert status == 400, told
        assert told["error"]["param"] == "messages[0].content[0]"
        assert reason in told["error"]["message"]


def test_a_public_address_is_fetched(fetching: Running, names: Web) -> None:
    assert ask(fetching.port, "image", "http://media.example/a.png")[0] == 200
    assert names.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "127.0.0.1", "2130706433", "0.0.0.0", "169.254.169.254", "10.0.0.1", "[::1]",
        "[::ffff:169.254.169.254]", "[fe80::1]", "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]",
    ],
)  # fmt: skip
def test_addresses_inside_are_refused(fetching: Running, names: Web, host: str) -> None:
    refused(fetching, f"http://{host}/latest/meta-data/")
    assert not names.dialled


def test_a_name_that_is_rebound(fetching: Running, names: Web) -> None:
    """The name's owner first gives a public address and then the server's own: asked once, it is used once."""
    names.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert ask(fetching.port, "image", "http://rebind.example/1.png")[0] == 200
    assert names.dialled == [(PUBLIC, 80)]
    refused(fetching, "http://rebind.example/2.png")
    names.names["both.example"] = [[PUBLIC, "169.254.169.254"]]
    refused(fetching, "http://both.example/a.png")
    assert names.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://127.0.0.1/", "does not lead to a public address"),
        ("http://169.254.169.254/latest/meta-data", "does not lead to a public address"),
        ("http://[::1]/", "does not lead to a public address"),
        ("http://inside.example/", "does not lead to a public address"),
        ("http://media.example:6379/", "port 6379"),
        ("file:///etc/passwd", "not an http"),
    ],
)
def test_a_redirect_inside(fetching: Running, names: Web, target: str, reason: str) -> None:
    names.names["inside.example"] = [["10.1.2.3"]]
    for kind in ("image", "video"):
        redirecting(names, target)
        status, told = ask(fetching.port, kind, "http://media.example/a.png")
        assert status == 400, told
        assert reason in told["error"]["message"]
    assert names.dialled == [(PUBLIC, 80)] * 2


def test_without_the_switch_nothing_is_fetched(child: Child) -> None:
    for url in ("http://media.example/a.png", "https://127.0.0.1/a.png"):
        status, told = ask(child.port, "image", url)
        assert (status, "--fetch-urls" in told["error"]["message"]) == (400, True)
