"""One picture or video from the web, by a server that strangers may send anywhere.

An address in a request could point into the server's own network. So a name is resolved once, all that it
resolves to must be public, and the connection goes to the very address that was checked: a second answer of
the name's owner is never asked for. Every redirect begins at the beginning. Proxies, cookies and credentials
play no part.
"""

import http.client
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from moonlet import __version__
from moonlet.chat.deadline import Deadline
from moonlet.errors import MediaError

MAX_REDIRECTS = 3

_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 2**16
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")  # IDNA alone lets spaces and slashes through
_CONNECT_S = 10.0
_URL_SIGNS = "%/:=&?~+!$,;'@()*[]"  # signs of a path and query that are no text to be quoted
# IPv6 is public inside the global unicast block; NAT64 carries an IPv4 address in its last 32 bits.
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _resolve(host: str, port: int) -> list[str]:
    """Every address of a host, in the order to try; also reads spellings such as 127.1 and 0x7f000001."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True)
class Network:
    """How names become addresses and addresses become connections; tests put a world of their own here."""

    ports: frozenset[int] = frozenset((80, 443))
    resolve: Callable[[str, int], list[str]] = _resolve
    connect: Callable[[tuple[str, int], float], socket.socket] = socket.create_connection
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context


INTERNET = Network()


@dataclass(frozen=True)
class _Target:
    secure: bool
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.secure) else f"{host}:{self.port}"


def fetch(url: str, what: str, most_bytes: int, network: Network, deadline: Deadline) -> bytes:
    """The body behind `url`. Raises MediaError for what is refused, fails, or is no image or video."""
    for _ in range(1 + MAX_REDIRECTS):
        target = _target(url, network.ports)
        with _answer(target, network, deadline) as response:
            location = response.headers.get("Location")
            if response.status in _REDIRECTS and location:
                url = _joined(url, location)
                continue
            return _body(response, what, most_bytes)
    raise MediaError(f"The {what} URL leads through more than {MAX_REDIRECTS} redirects.")


def is_public(address: str) -> bool:
    """Whether a numeric address is of the public internet, by itself and by what is embedded in it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _target(url: str, ports: frozenset[int]) -> _Target:
    shown = repr(url[:60])
    if any(char <= " " or char in "\\\x7f" for char in url):
        raise MediaError(f"The URL {shown} holds spaces, backslashes or control characters.")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna" if not url.isascii() else "ascii").decode()
        secure = parts.scheme == "https"
        port = _default_port(secure) if parts.port is None else parts.port
    except ValueError as error:
        raise MediaError(f"The URL {shown} is malformed.") from error
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise MediaError(f"The URL {shown} is not an http or https address.")
    if "@" in parts.netloc:
        raise MediaError("A URL with a user name or a password is not fetched; leave them out.")
    if port not in ports:
        allowed = ", ".join(map(str, sorted(ports)))
        raise MediaError(f"The URL {shown} asks for port {port}, allowed are {allowed}.")
    path = quote(parts.path or "/", safe=_URL_SIGNS)
    query = f"?{quote(parts.query, safe=_URL_SIGNS)}" if parts.query else ""
    return _Target(secure, host, port, path + query)


def _default_port(secure: bool) -> int:
    return 443 if secure else 80


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise MediaError(f"The URL {url[:60]!r} redirects to a malformed address.") from error


@contextmanager
def _answer(
    target: _Target, network: Network, deadline: Deadline
) -> Iterator[http.client.HTTPResponse]:
    """The server's answer with its headers read. Raises MediaError, also for what breaks inside the block."""
    try:
        sock = _connected(target, network, deadline)
        with closing(sock), deadline.ending(lambda: _hang_up(sock)):
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = sock  # so that it never connects by name
            headers = {
                "Host": target.host_header,
                "User-Agent": f"moonlet/{__version__}",
                "Accept": "image/*, video/*",
                "Accept-Encoding": "identity",  # nothing that unpacks to more than was sent
                "Connection": "close",
            }
            connection.request("GET", target.path, headers=headers)
            with connection.getresponse() as response:
                yield response
                deadline.left()  # a body that ends when its time does is no body
    except MediaError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise MediaError(
            f"The server {target.host} has no valid certificate for its name: {error.verify_message}."
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        deadline.left()
        raise MediaError(
            f"The URL could not be fetched from {target.host}: {type(error).__name__}."
        ) from error


def _connected(target: _Target, network: Network, deadline: Deadline) -> socket.socket:
    """A connection to the first address that takes one, all of them being public."""
    try:
        addresses = network.resolve(target.host, target.port)
    except (OSError, UnicodeError) as error:
        raise MediaError(f"The URL's host {target.host[:60]!r} is not known.") from error
    # One private address among public ones is how rebinding begins, so it spoils them all.
    if not addresses or not all(map(is_public, addresses)):
        raise MediaError(
            f"The URL's host {target.host[:60]!r} does not lead to a public address; this server fetches "
            "from public addresses only."
        )
    for address in addresses[:-1]:
        try:
            return _connect(address, target, network, deadline)
        except OSError:
            continue
    return _connect(addresses[-1], target, network, deadline)


def _connect(address: str, target: _Target, network: Network, deadline: Deadline) -> socket.socket:
    sock = network.connect((address, target.port), min(_CONNECT_S, deadline.left()))
    sock.settimeout(None)  # from here on the deadline hangs up
    if not target.secure:
        return sock
    # The handshake is left for later, where the deadline can hang up on it.
    return network.tls().wrap_socket(
        sock, server_hostname=target.host, do_handshake_on_connect=False
    )


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):  # the other side may have been faster
        # Not SSLSocket's own, which takes the TLS layer away under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _body(response: http.client.HTTPResponse, what: str, most_bytes: int) -> bytes:
    if response.status != 200:
        raise MediaError(f"The {what} URL answered with the status {response.status}.")
    kind = response.headers.get_content_type()
    if not kind.startswith(("image/", "video/")):
        raise MediaError(f"The {what} URL holds {kind[:60]!r}, which is no image or video.")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MediaError(f"The {what} URL answered with a compressed body, which is not read.")
    body = bytearray()
    while piece := response.read(_CHUNK):
        body += piece
        if len(body) > most_bytes or len(body) + (response.length or 0) > most_bytes:
            raise MediaError(f"The {what} URL holds more than the {most_bytes} bytes allowed.")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(body)
