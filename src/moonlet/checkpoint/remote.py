"""How a model on the Hub is stored, without its weights: only the starts of its files are fetched.

Asked by HTTP range requests. Nothing that the server says is believed beyond a bound: not the length of a
header, not the number of files, not that it sends what was asked for.
"""

import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from moonlet.checkpoint.gguf import GgufFile, MoreNeeded
from moonlet.checkpoint.gguf_model import GgufModel
from moonlet.checkpoint.hub import REPOSITORY
from moonlet.checkpoint.safetensors_header import check_length
from moonlet.checkpoint.tally import Tally, described_in
from moonlet.checkpoint.untrusted import parse_json_object, shown
from moonlet.config import ModelConfig, from_hf
from moonlet.config.tensors import Part
from moonlet.errors import CheckpointError, ConfigError, NotSupportedError

TEXT_LIMIT = 16 << 20  # of config.json and of the list of files
HEADER_LIMIT = 8 << 20  # of a shard; those of K2.5 have 0.5 MB
GGUF_LIMIT = 64 << 20  # before the tensors of all parts together; K2.5's vocabulary takes 6 MB
FILES_LIMIT = 2000
TIMEOUT_S, DEADLINE_S = 30, 120  # without a byte; for one answer
_FIRST = 1 << 18  # of a header, fetched before its length is known
_AT_ONCE = 8
_SHARD = re.compile(r"model(-[0-9]{5}-of-[0-9]{5,6})?\.safetensors")
_SPLIT = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteModel:
    """A model of a repository: bytes by part and type, and the name of the files that they are in.

    stored is empty where safetensors files were not looked at, because something else was asked for.
    """

    config: ModelConfig
    name: str
    stored: dict[Part, dict[str, int]]


def stored_on_hub(
    repository: str, which: str | None = None, endpoint: str | None = None
) -> RemoteModel:
    """How `org/name` is stored: its safetensors files, or of its GGUF models the one that `which` names.

    Of safetensors files with `which` only the configuration is fetched: what they take in another quantization
    is for the caller to compute. endpoint: of the Hub, without one that of huggingface_hub. Raises CheckpointError when it cannot be reached
    or holds no model, ConfigError and NotSupportedError for a model of another class.
    """
    if not REPOSITORY.fullmatch(repository):
        raise CheckpointError(f"'{shown(repository)}' is no repository name like org/name")
    remote = _Remote(repository, endpoint)
    files = remote.files()
    shards = [name for name in files if _SHARD.fullmatch(name)]
    shards = shards or [n for n in files if n.endswith(".safetensors") and "/" not in n]
    if shards and "config.json" in files:
        return _in_safetensors(remote, [] if which else shards)
    ggufs = [name for name in files if name.lower().endswith(".gguf")]
    if not ggufs:
        raise CheckpointError(
            f"{repository} holds neither config.json with safetensors files nor GGUF files"
        )
    return _in_gguf(remote, ggufs, which)


def _in_safetensors(remote: "_Remote", shards: Sequence[str]) -> RemoteModel:
    source = f"config.json of {remote.repository}"
    config = _any_quantization(parse_json_object(remote.text("config.json"), source), source)
    if not shards:
        return RemoteModel(config, remote.repository, {})
    tally = Tally(config)
    for name, length, size, data in remote.headers(shards):
        where = f"{name} of {remote.repository}"
        header = parse_json_object(data, f"the header of {where}")
        tally.add(described_in(header, where, length, size), where)
    return RemoteModel(config, remote.repository, tally.bytes_by_part(remote.repository))


def _any_quantization(raw: dict[str, Any], source: str) -> ModelConfig:
    """The network; how it is stored is read from the files, so that foreign quantizations do no harm."""
    try:
        return from_hf(raw, source)
    except (ConfigError, NotSupportedError):
        plain = {key: value for key, value in raw.items() if key != "quantization_config"}
        text = plain.get("text_config")
        if isinstance(text, dict):
            plain["text_config"] = {k: v for k, v in text.items() if k != "quantization_config"}
        return from_hf(plain, source)


def _in_gguf(remote: "_Remote", names: Sequence[str], which: str | None) -> RemoteModel:
    chosen = _choose(remote.repository, names, which)
    files = [remote.gguf(name) for name in chosen]
    vision = [name for name in names if _is_vision(name)]
    vision.sort(key=lambda name: ("f16" not in name.lower(), name))
    mmproj = remote.gguf(vision[0]) if vision else None
    label = _SPLIT.sub("", Path(chosen[0]).name).removesuffix(".gguf")
    model = GgufModel(Path(f"{remote.repository}/{chosen[0]}"), files, mmproj)
    return RemoteModel(model.config, label, model.bytes_by_part())


def _is_vision(name: str) -> bool:
    return name.rpartition("/")[2].lower().startswith("mmproj")


def _choose(repository: str, names: Sequence[str], which: str | None) -> list[str]:
    """The files of one model, in order."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if not _is_vision(name):
            models.setdefault(_SPLIT.sub("", name).removesuffix(".gguf"), []).append(name)
    found = [one for one in models if which is None or which.lower() in one.lower()]
    # "Q4_K_M" is also in "UD-Q4_K_M": what ends a word is meant first.
    exact = [one for one in found if which and re.search(rf"(^|[/.]|[^d]-){re.escape(which)}$", one, re.IGNORECASE)]  # fmt: skip
    found = exact if len(exact) == 1 else found
    if len(found) != 1:
        some = ", ".join(shown(one.rpartition("/")[2]) for one in [*(found or models)][:8])
        raise CheckpointError(
            f"{repository} has {len(models)} GGUF models, of which {len(found)} fit "
            f"{shown(which) if which else 'what was asked for'}: name the quantization of one, like {some}"
        )
    parts = models[found[0]]
    split = _SPLIT.search(parts[0])
    if split is not None and len(parts) != int(split[2]):
        raise CheckpointError(
            f"{repository} has {len(parts)} of the {int(split[2])} parts of {shown(found[0])}"
        )
    return parts


class _Remote:
    """The files of one repository."""

    def __init__(self, repository: str, endpoint: str | None) -> None:
        from huggingface_hub import constants, get_token

        self.repository = repository
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token, self._held = get_token(), 0

    def files(self) -> list[str]:
        """Names of all files."""
        url = f"{self._endpoint}/api/models/{self.repository}"
        listed = parse_json_object(self._get(url, TEXT_LIMIT)[0], f"the list of {self.repository}")
        siblings = listed.get("siblings")
        named = siblings if isinstance(siblings, list) else []
        names = [one.get("rfilename") for one in named if isinstance(one, dict)]
        return [name for name in names if isinstance(name, str)]

    def text(self, name: str) -> bytes:
        """A small file, whole."""
        return self._get(self._url(name), TEXT_LIMIT)[0]

    def headers(self, names: Sequence[str]) -> Iterator[tuple[str, int, int, bytes]]:
        """Name, length of the header, size of the file and the header of each, some fetched together."""
        if len(names) > FILES_LIMIT:
            raise CheckpointError(
                f"{self.repository} has {len(names)} safetensors files; at most {FILES_LIMIT} are read"
            )
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(names), _AT_ONCE):
                yield from pool.map(self._header, names[start : start + _AT_ONCE])

    def _header(self, name: str) -> tuple[str, int, int, bytes]:
        data, size = self._range(name, 0, _FIRST)
        length = int.from_bytes(data[:8], "little")
        check_length(length, size, f"{name} of {self.repository}", HEADER_LIMIT)
        if len(data) < 8 + length:
            data += self._range(name, len(data), 8 + length - len(data))[0]
        return name, length, size, data[8 : 8 + length]

    def gguf(self, name: str) -> GgufFile:
        """What stands before the data of a GGUF file; its tensors have sizes, but no bytes."""
        data, size = self._range(name, 0, self._allowed(name, _FIRST))
        while True:
            try:
                return GgufFile(Path(f"{self.repository}/{name}"), data, size)
            except MoreNeeded as more:
                wanted = min(max(2 * len(data), more.wanted), size)
            data += self._range(name, len(data), self._allowed(name, wanted - len(data)))[0]

    def _allowed(self, name: str, length: int) -> int:
        """`length` more bytes of GGUF files, which are all held at once."""
        self._held += length
        if self._held > GGUF_LIMIT:
            raise CheckpointError(
                f"{name} of {self.repository} takes what stands before tensors to more than {GGUF_LIMIT} bytes"
            )
        return length

    def _url(self, name: str) -> str:
        return f"{self._endpoint}/{self.repository}/resolve/main/{urllib.parse.quote(name)}"

    def _range(self, name: str, begin: int, length: int) -> tuple[bytes, int]:
        """Bytes from `begin` on, `length` or up to the end of the file, and the size of the file."""
        return self._get(self._url(name), length, begin)

    def _get(self, url: str, limit: int, begin: int | None = None) -> tuple[bytes, int]:
        request = urllib.request.Request(url, headers={"User-Agent": "moonlet"})
        if begin is not None:
            request.add_header("Range", f"bytes={begin}-{begin + limit - 1}")
        if self._token:  # it must not follow a redirect to where the files lie
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                if begin is None:
                    return self._whole(response, limit), 0
                return self._part(response, begin, limit)
        except urllib.error.HTTPError as error:
            error.close()
            raise CheckpointError(self._refusal(error.code)) from None
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = shown(str(getattr(error, "reason", None) or error))
            raise CheckpointError(
                f"cannot look at {self.repository} on {self._endpoint}: {reason}"
            ) from error

    def _refusal(self, status: int) -> str:
        if status in (401, 403):
            return (
                f"{self._endpoint} does not show {self.repository}: it is private or does not exist, or it asks "
                "you to accept its terms and to log in with `hf auth login`"
            )
        if status == 404:
            return f"there is no folder {self.repository} here and no such public repository on {self._endpoint}"
        return f"{self._endpoint} answered {status} when asked about {self.repository}"

    def _whole(self, response: HTTPResponse, limit: int) -> bytes:
        data = _read(response, limit + 1)
        if len(data) > limit:
            raise CheckpointError(
                f"{self._endpoint} sends more than {limit} bytes for a text of {self.repository}"
            )
        return data

    def _part(self, response: HTTPResponse, begin: int, length: int) -> tuple[bytes, int]:
        told = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", response.headers.get("Content-Range", ""))  # fmt: skip
        if response.status != 206 or told is None:
            raise CheckpointError(
                f"{self._endpoint} does not send parts of files, so that {self.repository} would have to be "
                "downloaded whole; do that, and plan for the folder"
            )
        size = int(told[3])
        wanted = min(length, size - begin)
        data = _read(response, wanted) if int(told[1]) == begin else b""
        if wanted <= 0 or len(data) != wanted:
            raise CheckpointError(
                f"{self._endpoint} sent {len(data)} of {max(wanted, 0)} bytes of a file of {self.repository}"
            )
        return data, size


def _read(response: HTTPResponse, limit: int) -> bytes:
    """At most `limit` bytes, within DEADLINE_S however slowly they drip."""
    end, pieces, missing = time.monotonic() + DEADLINE_S, [], limit
    while missing > 0 and (piece := response.read1(min(missing, 1 << 16))):
        pieces.append(piece)
        missing -= len(piece)
        if time.monotonic() > end:
            raise TimeoutError(f"no complete answer within {DEADLINE_S} s")
    return b"".join(pieces)
