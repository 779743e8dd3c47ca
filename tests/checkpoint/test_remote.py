"""Models on the Hub, looked at through range requests: a server on this machine, honest and otherwise."""

import json
import re
import resource
import shutil
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from moonlet.chat.tokenizer import BYTE_TOKENS, write_vocabulary
from moonlet.checkpoint import GgufCheckpoint, remote, save_checkpoint
from moonlet.checkpoint.convert import Conversion, to_gguf
from moonlet.checkpoint.parts import Wish
from moonlet.checkpoint.remote import stored_on_hub
from moonlet.checkpoint.tally import stored_in_folder
from moonlet.config import load_config, preset
from moonlet.errors import CheckpointError
from moonlet.plan.stored import weights_as
from moonlet.quant.mixes import load_mix
from tests.checkpoint.tiny import edit_header, random_tensors

REPOSITORY = "org/name"
# Large enough that headers are a small share, with rows that fill INT4's groups.
CONFIG = replace(
    preset("tiny"), hidden_size=256, moe_intermediate_size=128, intermediate_size=256, n_routed_experts=32,
    num_hidden_layers=3,
)  # fmt: skip
Lie = Callable[["Hub", BaseHTTPRequestHandler, str], bool]


class Hub:
    """A folder as a repository: `served` counts bytes, `asked` keeps names, `lie` may answer in its place."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.served, self.asked = folder, 0, list[str]()
        self.lie: Lie = lambda hub, handler, name: False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.removeprefix(f"/{REPOSITORY}/resolve/main/")
        self.asked.append(name)
        if self.lie(self, handler, name):
            return
        if handler.path == f"/api/models/{REPOSITORY}":
            paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
            names = [{"rfilename": str(path.relative_to(self.folder))} for path in paths]
            self.send(handler, 200, json.dumps({"siblings": names}).encode())
            return
        path = self.folder / name
        if not path.is_file():
            self.send(handler, 404, b"")
            return
        data, wanted = path.read_bytes(), handler.headers.get("Range")
        if wanted is None:
            self.send(handler, 200, data)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        assert match
        begin, end = int(match[1]), min(int(match[2]), len(data) - 1)
        self.send_part(handler, data[begin : end + 1], begin, len(data))

    def send_part(
        self, handler: BaseHTTPRequestHandler, data: bytes, begin: int, size: int
    ) -> None:
        self.send(handler, 206, data, f"bytes {begin}-{begin + len(data) - 1}/{size}")

    def send(
        self, handler: BaseHTTPRequestHandler, status: int, data: bytes, part: str | None = None
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        if part:
            handler.send_header("Content-Range", part)
        handler.end_headers()
        try:
            handler.wfile.write(data)
        except OSError:
            return
        self.served += len(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", "a-token")
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "repository").mkdir()
    hub = Hub(tmp_path / "repository")
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in INT4 and several files."""
    folder = tmp_path_factory.mktemp("models") / "int4"
    save_checkpoint(
        folder, CONFIG, random_tensors(CONFIG, torch.bfloat16), quantize="int4", max_shard_bytes=1_500_000
    )  # fmt: skip
    write_vocabulary(folder / "tiktoken.model", BYTE_TOKENS)
    return folder


@pytest.fixture(scope="module")
def ggufs(model: Path) -> Path:
    folder = model.parent / "gguf"
    for mix in ("q8_0", "q4_k_m"):
        target = folder / mix / f"tiny-{mix.upper()}.gguf"
        to_gguf(Conversion(model, target, Wish(load_mix(mix))), 2, lambda done, total: None)
        mmproj = next(target.parent.glob("mmproj*"))
        mmproj.rename(folder / "mmproj-F16.gguf")
    return folder


def look(hub: Hub, which: str | None = None) -> remote.RemoteModel:
    return stored_on_hub(REPOSITORY, which, hub.url)


def test_safetensors_by_their_headers(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST", 4096)  # less than a header
    shutil.copytree(model, hub.folder, dirs_exist_ok=True)
    assert len(list(model.glob("*.safetensors"))) > 2
    found = look(hub)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    shapes = 3 * 32 * 2 * 16  # of 3 x 32 experts in 2 layers: two int64
    published = weights_as(load_config(model / "config.json"))
    counted = {part: sum(kinds.values()) for part, kinds in found.stored.items()}
    assert counted["experts"] == published.bytes_of("experts") + shapes
    assert sum(counted.values()) == published.total_bytes + shapes
    assert {part: set(kinds) for part, kinds in found.stored.items()} == {
        part: set(kinds) for part, kinds in published.stored.items()
    }
    assert found.stored == stored_in_folder(model, found.config)
    assert hub.served < size / 3
    assert "tiktoken.model" not in hub.asked


def test_another_quantization_costs_the_configuration_only(hub: Hub, model: Path) -> None:
    shutil.copytree(model, hub.folder, dirs_exist_ok=True)
    found = look(hub, "q4_k_m")
    assert (found.config, found.stored) == (load_config(model / "config.json"), {})
    assert hub.asked == [f"/api/models/{REPOSITORY}", "config.json"]


def test_gguf_by_the_name_of_its_quantization(
    hub: Hub, ggufs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST", 4096)  # far less than the header
    shutil.copytree(ggufs, hub.folder, dirs_exist_ok=True)
    path = ggufs / "q4_k_m" / "tiny-Q4_K_M.gguf"
    found = look(hub, "q4_k_m")
    wanted = GgufCheckpoint(path, ggufs / "mmproj-F16.gguf")
    assert (found.name, found.config) == ("tiny-Q4_K_M", wanted.config)
    assert found.stored == wanted.bytes_by_part()
    assert hub.served < path.stat().st_size / 2
    with pytest.raises(CheckpointError, match=r"2 GGUF models.*tiny-Q4_K_M, tiny-Q8_0"):
        look(hub)
    with pytest.raises(CheckpointError, match=r"0 fit UD-TQ1_0"):
        look(hub, "UD-TQ1_0")


def test_parts_of_a_gguf_have_to_be_complete(hub: Hub) -> None:
    (hub.folder / "UD-Q2").mkdir()
    for number in (1, 3):
        (hub.folder / "UD-Q2" / f"m-UD-Q2-{number:05d}-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="2 of the 3 parts"):
        look(hub)


def test_the_name_that_ends_so_is_meant() -> None:
    names = ["Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
             "UD-Q4_K_M/m-UD-Q4_K_M.gguf", "mmproj-F16.gguf"]  # fmt: skip
    assert remote._choose(REPOSITORY, names, "q4_k_m") == [names[1], names[0]]
    assert remote._choose(REPOSITORY, names, "ud-q4_k_m") == [names[2]]


def no_ranges(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    """Answers with the whole of an endless file."""
    if not name.endswith(".safetensors"):
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(10**12))
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(bytes(1 << 20))
            hub.served += 1 << 20
    except OSError:
        pass
    return True


def huge_header(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    if name.endswith(".safetensors"):
        hub.send_part(handler, (10**10).to_bytes(8, "little") + bytes(remote._FIRST - 8), 0, 10**11)
    return name.endswith(".safetensors")


def large_header(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    """Such as would fit into the file, and take many times its size once it is parsed."""
    if name.endswith(".safetensors"):
        hub.send_part(
            handler, (9 << 20).to_bytes(8, "little") + bytes(remote._FIRST - 8), 0, 10**11
        )
    return name.endswith(".safetensors")


def longer_than_itself(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    if name.endswith(".safetensors"):
        hub.send_part(handler, (5000).to_bytes(8, "little") + bytes(92), 0, 100)
    return name.endswith(".safetensors")


def cut_short(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    if name.endswith(".safetensors"):
        hub.send_part(handler, bytes(100), 0, 10**9)
    return name.endswith(".safetensors")


def bomb(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    """Brackets without end, which JSON may nest."""
    if name.endswith(".safetensors"):
        header = b"[" * (4 << 20)
        data = len(header).to_bytes(8, "little") + header
        begin = int(handler.headers["Range"][6:].split("-")[0])
        end = int(handler.headers["Range"].split("-")[1])
        hub.send_part(handler, data[begin : end + 1], begin, len(data))
    return name.endswith(".safetensors")


def many_objects(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    if name != f"/api/models/{REPOSITORY}":
        return False
    hub.send(handler, 200, b'{"siblings": [' + b"{}," * (2 << 20) + b"{}]}")
    return True


def endless_text(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    if name != "config.json":
        return False
    hub.send(handler, 200, b" " * (20 << 20))
    return True


def many_files(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    if name != f"/api/models/{REPOSITORY}":
        return False
    files = [{"rfilename": f"model-{i:05d}-of-90000.safetensors"} for i in range(90_000)]
    hub.send(
        handler, 200, json.dumps({"siblings": [*files, {"rfilename": "config.json"}]}).encode()
    )
    return True


def no_http(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    handler.wfile.write(b"\x00\xff" * 100)
    return True


def refuses(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
    hub.send(handler, 401, b"")
    return True


@pytest.mark.parametrize(
    ("lie", "reason"),
    [(no_ranges, "does not send parts"), (huge_header, "claims a header of 10000000000 bytes"),
     (large_header, "claims a header of 9437184 bytes; at most 8388608"), (longer_than_itself, "claims a header of 5000 bytes but has only 92"), (cut_short, "sent 100 of 262144 bytes"),
     (bomb, "nested too deeply"), (many_objects, "holds neither config.json"), (endless_text, "sends more than"),
     (many_files, "90000 safetensors files"), (no_http, "cannot look at"), (refuses, "hf auth login")],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_server_that_lies_costs_a_sentence(hub: Hub, model: Path, lie: Lie, reason: str) -> None:
    shutil.copytree(model, hub.folder, dirs_exist_ok=True)
    hub.lie = lie
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with pytest.raises(CheckpointError, match=reason) as error:
        look(hub)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit < before + 500 * 2**20
    assert hub.served < 100 << 20


def endless_key(begin: bytes) -> bytes:
    return begin + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 40)


def endless_table(begin: bytes) -> bytes:
    """An array of strings whose length is a lie."""
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 3_999_999)
    return begin + struct.pack("<QQ", 0, 1) + key


@pytest.mark.parametrize("start", [endless_key, endless_table])
def test_a_gguf_without_end(hub: Hub, start: Callable[[bytes], bytes]) -> None:
    (hub.folder / "m.gguf").touch()
    data = start(b"GGUF\x03\0\0\0")

    def lie(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
        if name != "m.gguf":
            return False
        begin, end = (int(number) for number in handler.headers["Range"][6:].split("-"))
        # Strings of 20 bytes, each with its length before it.
        count = end + 1 - begin
        filler = struct.pack("<Q20x", 20) * (count // 28 + 2)
        shift = (begin - len(data)) % 28 if begin else 0
        body = (data + filler)[:count] if begin == 0 else filler[shift : shift + count]
        hub.send_part(handler, body, begin, 1 << 42)
        return True

    hub.lie = lie
    with pytest.raises(CheckpointError, match=f"more than {remote.GGUF_LIMIT} bytes"):
        look(hub)
    assert hub.served < remote.GGUF_LIMIT + (1 << 20)


def test_files_that_are_not_complete(hub: Hub, model: Path) -> None:
    shutil.copytree(model, hub.folder, dirs_exist_ok=True)
    first = min(hub.folder.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        look(hub)
    first.unlink()
    with pytest.raises(CheckpointError, match=r"lacks .* of the network's"):
        look(hub)
    first.write_bytes(whole)

    def rename(header: dict[str, Any]) -> None:
        name = next(name for name in header if name != "__metadata__")
        header["something.else"] = header.pop(name)

    edit_header(first, rename)
    with pytest.raises(CheckpointError, match=r"something\.else, which is no tensor"):
        look(hub)


def test_nobody_there(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="holds neither"):
        look(hub)
    with pytest.raises(CheckpointError, match="no such public repository"):
        stored_on_hub("org/other", None, hub.url)
    hub.close()
    with pytest.raises(CheckpointError, match="cannot look at"):
        look(hub)
    with pytest.raises(CheckpointError, match="no repository name"):
        stored_on_hub("org/../etc", None, hub.url)


def test_the_token_does_not_follow_to_where_files_lie(hub: Hub, model: Path) -> None:
    shutil.copytree(model, hub.folder, dirs_exist_ok=True)
    other, seen = Hub(hub.folder), list[str | None]()

    def redirect(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
        if not name.endswith(".safetensors"):
            return False
        handler.send_response(302)
        handler.send_header("Location", other.url + handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        assert handler.headers["Authorization"] == "Bearer a-token"
        return True

    def note(hub: Hub, handler: BaseHTTPRequestHandler, name: str) -> bool:
        seen.append(handler.headers["Authorization"])
        return False

    hub.lie, other.lie = redirect, note
    try:
        assert look(hub).stored
    finally:
        other.close()
    assert seen
    assert set(seen) == {None}
