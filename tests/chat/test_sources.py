"""Where media may come from: data URLs always, files and web addresses when the server says so."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat import sources
from moonlet.chat.deadline import Deadline
from moonlet.chat.formats import FAMILIES, check_name, family_of
from moonlet.chat.sources import DATA_URLS_ONLY, MediaAccess, read_source
from moonlet.errors import MediaError
from tests.chat.films import KINDS, film
from tests.chat.test_images import GOOD, PICTURE, data_url, encoded


def read(
    url: str, access: MediaAccess = DATA_URLS_ONLY, what: str = "image", most: int = 2**20
) -> bytes:
    return read_source(url, what, most, access, Deadline(20))


def refused(
    message: str, url: str, access: MediaAccess = DATA_URLS_ONLY, what: str = "image"
) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        read(url, access, what)
    assert str(caught.value).endswith(".")


# Data URLs


def test_a_data_url() -> None:
    for url in (
        data_url(GOOD),
        data_url(GOOD).replace("data:", "DATA:").replace(";base64", ";BASE64"),
    ):
        assert read(url) == GOOD
    for name in ("", "application/octet-stream", "image/*", "image/png;charset=utf-8", "IMAGE/PNG"):
        assert read(data_url(GOOD, name)) == GOOD


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64", "not of the form data:image/png;base64"),
        ("data:" + "x" * 1000, "not of the form"),
        ("data:image/png,%89PNG", "not of the form"),
        ("data:base64,AAAA", "not of the form"),
        ("data:image/png;base64,@@@@", "valid base64"),
        ("data:image/png;base64,AAAAA", "valid base64"),
        ("data:image/png;base64,ééé", "valid base64"),
        ("file:///etc/passwd", "is not supported; send a data URL of the form data:image/png"),
        ("/etc/passwd", "is not supported"),
        ("javascript:alert(1)", "is not supported"),
        ("", "is not supported"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    everything = MediaAccess(fetch_urls=True, resolve_file=lambda file_id: Path("x"))
    for access in (MediaAccess(), everything):
        refused(message, url, access)


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(data_url(GOOD), most=len(GOOD)) == GOOD
    with pytest.raises(MediaError, match="The image has 75 bytes, 74 are allowed"):
        read(data_url(bytes(75)), most=74)
    with pytest.raises(MediaError, match="The image has about 75 bytes, 72 are allowed"):
        read(data_url(bytes(75)), most=72)
    monkeypatch.setattr(sources.base64, "b64decode", lambda *_, **__: pytest.fail("was decoded"))
    with pytest.raises(MediaError, match="about"):
        read("data:image/png;base64," + "A" * 2 * len(GOOD), most=len(GOOD))


# What the bytes are

FILES = {kind: encoded(PICTURE, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")}


def test_every_file_is_recognised() -> None:
    assert [family_of(data) for data in FILES.values()] == ["PNG", "JPEG", "WebP", "GIF"]
    families = ["MP4", "MP4", "WebM", "WebM", "AVI", "MPEG", "MPEG", "FLV", "MP4", "WMV"]
    assert [family_of(film(kind, 2, (176, 144))) for kind in KINDS] == families
    for data in (
        b"",
        b"G",
        b"hello",
        b"RIFF1234WAVE",
        b"<svg>",
        b"%PDF",
        b"#EXTM3U\n",
        b"BM" + bytes(99),
    ):
        assert family_of(data) is None


def test_a_name_that_contradicts_the_bytes() -> None:
    refused(
        "given as 'image/png' but the data are JPEG; send image/jpeg instead",
        data_url(FILES["JPEG"]),
    )
    refused("'video/mp4' but the data are GIF", data_url(FILES["GIF"], "video/mp4"), what="video")
    refused("'text/lies'", data_url(GOOD, "text/lies"))
    refused("'video/\\*' but", data_url(GOOD, "video/*"))
    assert (
        read(data_url(b"who knows", "image/png")) == b"who knows"
    )  # whoever decodes it will say so


def test_names_of_one_family_do_not_contradict() -> None:
    mp4 = b"\0\0\0\x18ftypmp42"
    for name in FAMILIES["MP4"]:
        check_name(name, mp4)
    with pytest.raises(MediaError, match="send video/mp4 instead"):
        check_name("video/webm", mp4)


# Uploaded files


def test_without_a_file_store() -> None:
    refused("keeps no uploaded files, so it cannot read 'ms://abc'", "ms://abc")


def test_an_uploaded_file(tmp_path: Path) -> None:
    (tmp_path / "file-1_A").write_bytes(GOOD)
    access = MediaAccess(resolve_file=tmp_path.joinpath)
    assert read("ms://file-1_A", access) == GOOD
    assert read("MS://file-1_A", access) == GOOD
    assert read("ms://file-1_A", access, most=len(GOOD)) == GOOD
    with pytest.raises(MediaError, match="more than"):
        read("ms://file-1_A", access, most=len(GOOD) - 1)


@pytest.mark.parametrize(
    "file_id", ["", "gone", "..", "../secret", "a/b", "/etc/passwd", "a\0b", "a.b", "é", "x" * 129]
)
def test_files_that_are_not_there(tmp_path: Path, file_id: str) -> None:
    (tmp_path.parent / "secret").write_bytes(GOOD)
    refused(
        "There is no uploaded file", f"ms://{file_id}", MediaAccess(resolve_file=tmp_path.joinpath)
    )
    refused("There is no uploaded file", "ms:gone", MediaAccess(resolve_file=tmp_path.joinpath))
    refused("There is no uploaded file", "ms://gone", MediaAccess(resolve_file=lambda i: {}[i]))


def test_a_resolver_may_say_more() -> None:
    def resolve(file_id: str) -> Path:
        raise MediaError("That file is being processed.")

    refused("being processed", "ms://abc", MediaAccess(resolve_file=resolve))


# Web addresses


def test_nothing_is_fetched_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "fetch", lambda *_: pytest.fail("it was fetched"))
    for url in ("http://media.example/a.png", "HTTPS://media.example/a.png"):
        refused("does not fetch URLs; send the image as a base64 data URL, or .* --fetch-urls", url)


def test_what_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, times = [], []

    def fetch(*given: Any) -> bytes:
        asked.append(given[:3])
        times.append(given[4].left())
        return GOOD

    monkeypatch.setattr(sources, "fetch", fetch)
    monkeypatch.setattr(sources, "FETCH_SECONDS", 5.0)
    assert read("https://media.example/a.png", MediaAccess(fetch_urls=True)) == GOOD
    assert asked == [("https://media.example/a.png", "image", 2**20)]
    assert 0 < times[0] <= 5  # of the 20 for everything


@given(st.text() | st.text().map("data:".__add__) | st.text().map("ms://".__add__))
def test_any_text_is_read_or_refused(url: str) -> None:
    access = MediaAccess(resolve_file=lambda file_id: Path("nowhere") / file_id)
    with contextlib.suppress(MediaError):
        assert isinstance(read(url, access), bytes)
