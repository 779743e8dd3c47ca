"""API keys: who may ask, when the server has keys at all."""

import hmac
from collections.abc import Iterable
from hashlib import sha256

from starlette.datastructures import Headers

from moonlet.errors import ConfigError
from moonlet.server.errors import ApiError

SHORT = 12  # hexadecimal digits


class ApiKeys:
    """The keys that this server knows; without any, everybody may ask. Only their digests are kept."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Raises ConfigError for a key that no client could send."""
        self._digests = []
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("an API key must be of visible ASCII characters, without spaces")
            self._digests.append(_digest(key))

    def check(self, headers: Headers) -> str | None:
        """Who asks: the short digest of the key that was sent, None where none was and none is needed.

        Raises ApiError (401) unless `Authorization: Bearer` or `x-api-key` holds one of the keys.
        """
        sent = _sent(headers)
        if not self._digests:
            return None if sent is None else short_digest(sent)
        if sent is None:
            raise _refusal(
                "this server wants an API key: send it as 'Authorization: Bearer KEY'",
                "invalid_authentication_error",
                None,
            )
        # Digests, and all of them: the time says neither how much of a key was right nor which.
        digest = _digest(sent)
        if sum(hmac.compare_digest(digest, known) for known in self._digests) == 0:
            raise _refusal(
                "the API key is not one of this server's",
                "incorrect_api_key_error",
                "invalid_api_key",
            )
        return digest.hex()[:SHORT]


def short_digest(key: str) -> str:
    """What a key is called where it must not be seen: the beginning of its SHA-256."""
    return _digest(key).hex()[:SHORT]


def _sent(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "replace")).digest()


def _refusal(message: str, kind: str, code: str | None) -> ApiError:
    return ApiError(
        message, status=401, kind=kind, code=code, headers={"WWW-Authenticate": "Bearer"}
    )
