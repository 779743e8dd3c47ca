"""Uploaded files: through the official client, raw forms at every cut, and the store on its own."""

import asyncio
import contextlib
import http.client
import itertools
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from moonlet.chat.fake import FakeProvider, says
from moonlet.errors import MediaError
from moonlet.server import create_app
from moonlet.server.errors import ApiError
from moonlet.server.file_store import FileLimits, FileStore, StoredFile, clean_name
from moonlet.server.multipart import MAX_FIELD_BYTES, MAX_PARTS, Form
from tests.server.running import WAIT_S, Running, serving

LIMITS = FileLimits(count=3, bytes_each=100_000, bytes_total=150_000)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "files", LIMITS)


@pytest.fixture
def server(store: FileStore) -> Iterator[Running]:
    with serving(create_app(FakeProvider(says("x")), files=store)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


def left(store: FileStore) -> set[str]:
    return {path.suffix for path in store.folder.iterdir()}


def put(
    store: FileStore, data: bytes = b"x", name: str = "a", purpose: str = "image"
) -> StoredFile:
    upload = store.upload()
    upload.write(data)
    upload.check(purpose)
    return upload.commit(name, purpose)


def test_from_upload_to_deletion(client: OpenAI, store: FileStore) -> None:
    text = "Zürich,8001\n" * 1000
    made = client.files.create(file=("../../dir/list.csv", text.encode()), purpose="file-extract")  # type: ignore[arg-type]
    assert made.to_dict() == {
        "id": made.id,
        "object": "file",
        "bytes": len(text.encode()),
        "created_at": made.created_at,
        "filename": "list.csv",
        "purpose": "file-extract",
        "status": "processed",
        "status_details": None,
    }
    assert client.files.retrieve(made.id) == made
    assert client.files.list().data == [made]
    content = client.files.content(made.id)
    assert content.text == text
    assert content.response.headers["content-type"] == "text/plain; charset=utf-8"
    assert content.response.headers["x-content-type-options"] == "nosniff"
    assert "list.csv" in content.response.headers["content-disposition"]
    assert client.files.delete(made.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)
    assert left(store) == set()


def test_lists(client: OpenAI, store: FileStore) -> None:
    ids = [put(store, purpose=purpose).id for purpose in ("image", "video", "image")]
    assert [file.id for file in client.files.list()] == ids[::-1]
    assert [file.id for file in client.files.list(order="asc")] == ids
    assert [file.id for file in client.files.list(purpose="video")] == ids[1:2]
    page = client.files.list(limit=2)
    assert ([file.id for file in page.data], page.has_more) == (ids[:0:-1], True)
    assert [file.id for file in client.files.list(limit=1)] == ids[::-1]  # page after page
    for wrong in ({"limit": 0}, {"limit": "x"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(**wrong)  # type: ignore[arg-type]
        assert caught.value.param == next(iter(wrong))


@pytest.mark.parametrize("purpose", ["batch", "assistants", "fine-tune", ""])
def test_other_purposes(client: OpenAI, store: FileStore, purpose: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="file-extract or image or video") as caught:
        client.files.create(file=b"x", purpose=purpose)
    assert caught.value.param == "purpose"
    assert left(store) == set()


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n\0\0", "é".encode("latin-1"), b"text\0text", b"%PDF-1.7\n1 0 obj", b"\xc3"],
)
def test_only_text_is_extracted(client: OpenAI, store: FileStore, data: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="only text") as caught:
        client.files.create(file=data, purpose="file-extract")  # type: ignore[arg-type]
    assert caught.value.param == "file"
    assert left(store) == set()
    client.files.create(file=data, purpose="image")  # type: ignore[arg-type]


def test_limits(client: OpenAI, store: FileStore) -> None:
    for size, says_why in ((0, "empty"), (100_001, "larger than the 100000 bytes")):
        with pytest.raises(openai.BadRequestError, match=says_why):
            client.files.create(file=b"x" * size, purpose="image")  # type: ignore[arg-type]
    client.files.create(file=b"x" * 100_000, purpose="image")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="all files together"):
        client.files.create(file=b"x" * 50_001, purpose="image")  # type: ignore[arg-type]
    client.files.create(file=b"x" * 49_999, purpose="image")  # type: ignore[arg-type]
    client.files.create(file=b"x", purpose="image")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="there are 3 files"):
        client.files.create(file=b"x", purpose="image")  # type: ignore[arg-type]
    assert (store.uploads, store.incoming) == (0, 0)
    client.files.delete(client.files.list().data[0].id)
    client.files.create(file=b"x", purpose="image")  # type: ignore[arg-type]


def test_far_too_much_is_refused_before_and_while_it_comes(
    server: Running, store: FileStore
) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    def without_end() -> Iterator[bytes]:
        yield head
        for _ in range(200):
            yield b"x" * 65536

    status, body = _post_form(server, head + b"x" * 3_000_000)
    assert (status, body["error"]["param"]) == (400, "file")
    status, body = _post_form(server, without_end())
    assert (status, body["error"]["param"]) == (400, "file")
    assert left(store) == set()
    assert (store.uploads, store.incoming) == (0, 0)


def _post_form(server: Running, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    try:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        connection.request("POST", "/v1/files", body, kind)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_a_client_that_leaves_leaves_nothing(server: Running, store: FileStore) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nxyz'
    )

    async def until(uploads: int) -> None:
        while store.uploads != uploads:
            await asyncio.sleep(0.001)

    server.wait(asyncio.wait_for(until(1), WAIT_S))
    connection.close()
    server.wait(asyncio.wait_for(until(0), WAIT_S))
    assert left(store) == set()


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "", "multipart/form-data; boundary="]
)
def test_what_is_no_form(server: Running, kind: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.request("POST", "/v1/files", b"{}", {"Content-Type": kind})
    response = connection.getresponse()
    assert response.status == 400
    assert "multipart/form-data" in json.loads(response.read())["error"]["message"]
    connection.close()


def part(head: str, body: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"


FORM = (
    part('name="other"', b"1")
    + part('name="file"; filename="\u00fc b.txt"', b"some\r\n--text")
    + part('name="purpose"', b"file-extract")
    + b"--b--\r\n"
)


def read(form: Form, body: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for begin, end in itertools.pairwise(edges):
        form.feed(body[begin:end])


@given(st.lists(st.integers(0, len(FORM)), max_size=8))
def test_a_form_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    store = FileStore(tmp_path_factory.mktemp("f"), LIMITS)
    form = Form("multipart/form-data; boundary=b", store)
    read(form, FORM, cuts)
    upload = form.finished()
    upload.check("file-extract")
    file = upload.commit(form.filename, form.fields["purpose"])
    assert file.filename == "\u00fc b.txt"
    assert store.path(file).read_bytes() == b"some\r\n--text"
    assert form.fields == {"other": "1", "purpose": "file-extract"}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"no form at all", "not valid"),
        (FORM[:-6], "broke off"),
        (b"--b--\r\n", "file is missing"),
        (part('name="purpose"', b"image") + b"--b--\r\n", "file is missing"),
        (part('name="file"', b"a") * 2 + b"--b--\r\n", "more than one file"),
        (part('name="a"', b"x" * (MAX_FIELD_BYTES + 1)), "longer than"),
        (part(f'name="{"x" * 10_000}"', b"x"), "not valid"),
        (b"--b\r\n" + b"a: b\r\n" * 1000, "not valid"),
        (part('name="a"', b"1") * (MAX_PARTS + 1), "parts"),
    ],
)
def test_hostile_forms(store: FileStore, body: bytes, why: str) -> None:
    form = Form("multipart/form-data; boundary=b", store)

    def read_all() -> None:
        read(form, body, [])
        form.finished()

    with contextlib.closing(form), pytest.raises(ApiError, match=why):
        read_all()
    assert left(store) == set()


@given(st.binary(max_size=200), st.integers(0, len(FORM)), st.integers(0, 30))
def test_damaged_forms(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, gone: int
) -> None:
    store = FileStore(tmp_path_factory.mktemp("f"), LIMITS)
    form = Form("multipart/form-data; boundary=b", store)
    with contextlib.closing(form), contextlib.suppress(ApiError):
        read(form, FORM[:at] + junk + FORM[at + gone :], [at])
        form.finished()
    assert left(store) == set()


def test_a_large_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    store = FileStore(tmp_path, FileLimits())
    form = Form("multipart/form-data; boundary=b", store)
    form.feed(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n')
    block = b"y" * 65536
    tracemalloc.start()
    for _ in range(512):
        form.feed(block)
    form.feed(b"\r\n--b--\r\n")
    form.finished().check("file-extract")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert form.finished().size == 512 * 65536
    assert peak < 8 * 2**20
    form.close()


def test_files_outlive_the_server(tmp_path: Path) -> None:
    first = FileStore(tmp_path, LIMITS)
    kept = [put(first, b"one", "\u00fc.png"), put(first, b"two")]
    unfinished = first.upload()
    unfinished.write(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    second = FileStore(tmp_path, LIMITS)
    assert list(second.files.values()) == sorted(kept, key=lambda file: file.id)
    assert second.path(kept[0]).read_bytes() == b"one"
    assert not list(tmp_path.glob(".*.partial"))
    assert (tmp_path / "notes.txt").exists()
    unfinished.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda record, data: data.unlink(),
        lambda record, data: data.write_bytes(b"longer than before"),
        lambda record, data: record.write_text("{"),
        lambda record, data: record.write_text("[" * 5000),
        lambda record, data: record.write_text("{}"),
        lambda record, data: record.write_text(record.read_text().replace("image", "cake")),
        lambda record, data: record.write_bytes(b"\xff" * 100_000),
        lambda record, data: record.unlink(),
    ],
)
def test_a_damaged_file_is_cleared_away(tmp_path: Path, damage: Any) -> None:
    store = FileStore(tmp_path, LIMITS)
    file = put(store, b"one")
    other = put(store, b"two")
    damage(tmp_path / f"{file.id}.json", store.path(file))
    assert list(FileStore(tmp_path, LIMITS).files) == [other.id]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{other.id}.data",
        f"{other.id}.json",
    ]


def test_without_a_folder_nothing_is_left_behind() -> None:
    store = FileStore()
    folder = store.folder
    put(store)
    assert len(list(folder.iterdir())) == 2
    del store
    assert not folder.exists()


def test_resolving(store: FileStore) -> None:
    picture, film, text = (put(store, purpose=p) for p in ("image", "video", "file-extract"))
    assert store.resolve(picture.id).read_bytes() == b"x"
    assert store.resolve(film.id) == store.path(film)
    with pytest.raises(MediaError, match="file-extract"):
        store.resolve(text.id)
    for wrong in ("file-" + "0" * 32, "../" + picture.id, ""):
        with pytest.raises(LookupError):
            store.resolve(wrong)


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("a.txt", "a.txt"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\a b.csv", "a b.csv"),
        ("..", "file"),
        ("", "file"),
        ("a\r\nSet-Cookie: x\0", "a__Set-Cookie: x_"),
        ("x" * 500, "x" * 200),
        ("\u202etxt.exe", "_txt.exe"),
    ],
)
def test_names(given_name: str, kept: str) -> None:
    assert clean_name(given_name) == kept
