"""Fetching from a web of its own: local servers behind made-up names and public addresses."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat import fetch as fetch_module
from moonlet.chat.deadline import Deadline
from moonlet.chat.fetch import Network, fetch, is_public
from moonlet.errors import MediaError
from tests.chat.test_images import GOOD

NAME = "media.example"  # whose self-signed certificate this is, good for a hundred years
CERTIFICATE_FILE = Path(__file__).with_name("media.example.pem")
PUBLIC, OTHER = "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


def answer(body: bytes, head: bytes = OK) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Web:
    """One local server that all public addresses lead to; `names` is its DNS, `dialled` what was connected."""

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.looked_up: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        self.requests: list[bytes] = []
        self.serve: Callable[[socket.socket], Any] = lambda sock: sock.sendall(answer(GOOD))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resolve(self, host: str, port: int) -> list[str]:
        """The next of the answers for this name (the last one stays); real resolution of numbers."""
        self.looked_up.append(host)
        if host not in self.names:
            return fetch_module._resolve(host, port)
        answers = self.names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        assert is_public(address[0]), address
        self.dialled.append(address)
        return socket.create_connection(self._listener.getsockname(), timeout)

    def network(self, **changes: Any) -> Network:
        return Network(**{"resolve": self.resolve, "connect": self.connect} | changes)

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        try:
            with sock:
                self.requests.append(sock.recv(65536))
                self.serve(sock)
        except OSError:
            pass  # the client hung up

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    web.names["media.example"] = [[PUBLIC]]
    yield web
    web.close()


def get(
    web: Web, url: str = "http://media.example/a.png", seconds: float = 20, **changes: Any
) -> bytes:
    most = changes.pop("most", 2**20)
    return fetch(url, "image", most, web.network(**changes), Deadline(seconds))


def refused(
    web: Web, message: str, url: str = "http://media.example/a.png", **options: Any
) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        get(web, url, **options)
    assert str(caught.value).endswith(".")


def test_a_picture(web: Web) -> None:
    assert get(web, "http://media.example/a b.png".replace(" ", "%20") + "?x=1&y=é#part") == GOOD
    assert web.dialled == [(PUBLIC, 80)]
    head = web.requests[0].decode()
    assert head.startswith("GET /a%20b.png?x=1&y=%C3%A9 HTTP/1.1\r\nHost: media.example\r\n")
    assert "cookie" not in head.lower()
    assert "authorization" not in head.lower()
    assert "Accept-Encoding: identity\r\n" in head


def test_chunks_and_bodies_without_a_length(web: Web) -> None:
    web.serve = lambda sock: sock.sendall(OK + b"\r\n" + GOOD)
    assert get(web) == GOOD
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    web.serve = lambda sock: sock.sendall(OK + chunked)
    assert get(web) == GOOD


def test_the_next_address_is_tried(web: Web) -> None:
    web.names["media.example"] = [[OTHER, PUBLIC]]

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[0] == OTHER:
            raise ConnectionRefusedError
        return web.connect(address, timeout)

    assert get(web, connect=connect) == GOOD
    assert web.dialled == [(PUBLIC, 80)]


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.0.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "fe80::1", "fe80::1%lo", "fec0::1", "fc00::1",
        "fd12:3456::1", "ff02::1", "100::1", "3fff:ffff:ffff::%", "", "localhost", "127.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        PUBLIC,
        OTHER,
        "2001:4860:4860::8888",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.1", "0", "0.0.0.0", "2130706433", "0x7f000001",
        "0x7f.1", "017700000001", "0177.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "169.254.169.254", "2852039166", "10.0.0.1", "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "①②⑦.0.0.1", "127。0。0。1",
    ],
)  # fmt: skip
def test_every_spelling_of_the_server_itself(web: Web, host: str) -> None:
    refused(web, "does not lead to a public address|not known|malformed", f"http://{host}/a.png")
    assert not web.dialled


def test_one_private_address_spoils_a_name(web: Web) -> None:
    web.names["mixed.example"] = [[PUBLIC, "127.0.0.1"]]
    web.names["none.example"] = [[]]
    for name in ("mixed", "none"):
        refused(web, "does not lead to a public address", f"http://{name}.example/a.png")
    assert not web.dialled


def test_a_name_is_resolved_once(web: Web) -> None:
    """DNS rebinding: the first answer is public and passes, the second one would be the server itself."""
    web.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert get(web, "http://rebind.example/a.png") == GOOD
    assert web.looked_up == ["rebind.example"]
    assert web.dialled == [(PUBLIC, 80)]
    refused(web, "does not lead to a public address", "http://rebind.example/a.png")


def test_unknown_names(web: Web) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    refused(web, "is not known", resolve=resolve)
    refused(web, "is not known|malformed", f"http://{'a' * 70}.example/a.png")


# URLs


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://media.example:8080/", "asks for port 8080, allowed are 80, 443"),
        ("http://media.example:22/", "port 22"),
        ("http://media.example:0/", "port 0"),
        ("http://media.example:99999/", "malformed"),
        ("http://media.example:x/", "malformed"),
        ("http://user@media.example/", "user name or a password"),
        ("http://user:pass@media.example/", "user name or a password"),
        ("http://@media.example/", "user name or a password"),
        ("http://media.example\\@127.0.0.1/", "backslashes"),
        ("http://media.example/a b", "spaces"),
        ("http://media.example/\r\nHost: x", "control"),
        ("http://media.example/\x00", "control"),
        ("http://", "not an http"),
        ("http:///a.png", "not an http"),
        ("http://[::1/", "malformed"),
        ("ftp://media.example/", "not an http"),
        ("file:///etc/passwd", "not an http"),
        ("gopher://media.example/", "not an http"),
    ],
)
def test_urls_that_are_refused(web: Web, url: str, message: str) -> None:
    refused(web, message, url)
    assert not web.dialled


@given(st.text(), st.sampled_from(["", "/", "//", "http://", "https://", "http://a/?", "http://["]))
def test_any_url_is_refused_or_a_target(text: str, start: str) -> None:
    with contextlib.suppress(MediaError):
        target = fetch_module._target(start + text, frozenset((80, 443)))
        assert target.host.isascii()
        assert target.path.isascii()
        assert not set(target.host) & set("@/\\?# ")
        assert not set(target.host + target.path) & set(" \r\n\0")


def test_other_ports_can_be_configured(web: Web) -> None:
    assert get(web, "http://media.example:8080/", ports=frozenset({8080})) == GOOD
    assert web.dialled == [(PUBLIC, 8080)]
    assert b"Host: media.example:8080\r\n" in web.requests[0]
    refused(web, "port 80, allowed are 8080", ports=frozenset({8080}))


# Redirects


def redirecting(web: Web, *targets: str) -> None:
    left = list(targets)

    def serve(sock: socket.socket) -> None:
        if not left:
            sock.sendall(answer(GOOD))
            return
        head = f"HTTP/1.1 302 Found\r\nLocation: {left.pop(0)}\r\n"
        sock.sendall(answer(b"", head.encode()))

    web.serve = serve


def test_redirects_are_followed(web: Web) -> None:
    web.names["other.example"] = [[OTHER]]
    redirecting(web, "/b.png", "//other.example/c.png", "d.png")
    assert get(web) == GOOD
    assert [address for address, _ in web.dialled] == [PUBLIC, PUBLIC, OTHER, OTHER]
    assert [request.split(b" ")[1] for request in web.requests] == [
        b"/a.png",
        b"/b.png",
        b"/c.png",
        b"/d.png",
    ]


def test_too_many_redirects(web: Web) -> None:
    redirecting(web, *["/again"] * 4)
    refused(web, "more than 3 redirects")
    assert len(web.dialled) == 4


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://127.0.0.1/", "public address"),
        ("http://localhost:80/", "public address"),
        ("http://169.254.169.254/latest/meta-data", "public address"),
        ("http://[::1]/", "public address"),
        ("http://inside.example/", "public address"),
        ("http://media.example:6379/", "port 6379"),
        ("http://user@media.example/", "user name"),
        ("file:///etc/passwd", "not an http"),
        ("http://[::1/", "malformed"),
    ],
)
def test_redirects_are_checked_again(web: Web, target: str, message: str) -> None:
    web.names["inside.example"] = [["10.1.2.3"]]
    redirecting(web, target)
    refused(web, message)
    assert len(web.dialled) == 1


def test_a_redirect_is_resolved_anew_and_checked(web: Web) -> None:
    web.names["media.example"] = [[PUBLIC], ["127.0.0.1"]]
    redirecting(web, "http://media.example/b.png")
    refused(web, "public address")


# Answers


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Type: image/png\r\n", "status 404"),
        (b"HTTP/1.1 500 Oops\r\n", "status 500"),
        (b"HTTP/1.1 302 Found\r\n", "status 302"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Type: image/png\r\n", "status 206"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n", "'text/html', which is no image"),
        (b"HTTP/1.1 200 OK\r\n", "'text/plain', which is no image"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", "no image or video"),
        (OK + b"Content-Encoding: gzip\r\n", "compressed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "could not be fetched"),
        (OK + b"X: y\r\n" * 200, "could not be fetched"),
        (OK + b"X: " + b"y" * 70_000 + b"\r\n", "could not be fetched"),
    ],
)
def test_answers_that_are_refused(web: Web, head: bytes, message: str) -> None:
    web.serve = lambda sock: sock.sendall(answer(GOOD, head))
    refused(web, message)


def test_bodies_that_are_too_large(web: Web) -> None:
    assert get(web, most=len(GOOD)) == GOOD
    refused(web, f"more than the {len(GOOD) - 1} bytes", most=len(GOOD) - 1)
    web.serve = lambda sock: sock.sendall(OK + b"Content-Length: 99999999999\r\n\r\nx")
    refused(web, "more than the 1048576 bytes")


def test_a_body_without_end(web: Web) -> None:
    sent = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(OK + b"\r\n")
        while True:
            sock.sendall(bytes(2**16))
            sent.append(2**16)

    web.serve = serve
    refused(web, "more than the 1048576 bytes")
    assert sum(sent) < 2**24


def test_a_body_that_breaks_off(web: Web) -> None:
    web.serve = lambda sock: sock.sendall(answer(GOOD)[:-5])
    refused(web, "could not be fetched from media.example: IncompleteRead")
    web.serve = lambda sock: sock.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc")
    refused(web, "could not be fetched")
    web.serve = lambda sock: None
    refused(web, "could not be fetched")


@pytest.mark.parametrize("sent", [b"", b"H", OK, OK + b"\r\n", OK + b"Content-Length: 99\r\n\r\n"])
def test_slow_servers(web: Web, sent: bytes) -> None:
    """One byte now and then keeps any timeout of a single read from passing."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(sent)
        while True:
            sock.sendall(b"x")
            time.sleep(0.02)

    web.serve = serve
    refused(web, r"more than the 0\.3 seconds", seconds=0.3)


def test_a_cancelled_request(web: Web) -> None:
    stop = threading.Event()
    web.serve = lambda sock: stop.wait(20)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(MediaError, match="cancelled"):
        fetch("http://media.example/", "image", 99, web.network(), Deadline(20, stop))


# TLS


def over_tls(web: Web) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE_FILE)

    def answer_tls(sock: socket.socket) -> None:
        try:
            with context.wrap_socket(sock, server_side=True) as secure:
                web.requests.append(secure.recv(65536))
                web.serve(secure)
        except OSError:
            pass

    web._answer = answer_tls


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTIFICATE_FILE))


def test_https_is_verified_against_the_name(web: Web) -> None:
    web.names[NAME] = web.names["wrong.example"] = [[PUBLIC]]
    refused(web, "could not be fetched", f"https://{NAME}/a.png", tls=trusting)
    web.dialled.clear(), web.requests.clear()
    over_tls(web)
    assert get(web, f"https://{NAME}/a.png", tls=trusting) == GOOD
    assert web.dialled == [(PUBLIC, 443)]
    assert f"Host: {NAME}\r\n".encode() in web.requests[0]
    refused(web, "no valid certificate for its name", "https://wrong.example/a.png", tls=trusting)
    refused(web, "no valid certificate for its name", f"https://{NAME}/a.png")


def test_a_handshake_that_hangs(web: Web) -> None:
    web.serve = lambda sock: time.sleep(5)
    refused(web, r"more than the 0\.3 seconds", "https://media.example/", seconds=0.3, tls=trusting)
