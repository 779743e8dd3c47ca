"""Files that users name as tables, among them some that are none."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config.toml import MOST_BYTES, MOST_IN_LINE, read_toml
from moonlet.errors import ConfigError


def test_a_table_is_read_up_to_the_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    lines = ["a = 'é'", "#" * MOST_IN_LINE, *["#" * 99] * 980]
    text = "\n".join(lines)
    path.write_text(text + "#" * 10 + "\n" * (MOST_BYTES - 10 - len(text.encode())), "utf-8")
    assert path.stat().st_size == MOST_BYTES
    assert read_toml(path, "a table") == {"a": "é"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a" + b".a" * 25_000 + b" = 1", "it has a line of 50005 bytes, and may have 1000"),
        (b"#\n" * (MOST_BYTES // 2) + b"#", "it is longer than 100 kB"),
        (b"\xff", "can't decode"),
        (b"a = ", "Invalid value"),
        (b"a = " + b"[\n" * 40_000, "recursion"),
    ],
)
def test_what_is_no_such_table_is_refused_at_once(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(path, "a table of claims")
    assert str(caught.value).startswith(f"{path} cannot be read as a table of claims: ")
    assert reason in str(caught.value)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="it is no regular file"):
            read_toml(path, "a table")
    with pytest.raises(ConfigError, match="No such file"):
        read_toml(tmp_path / "absent", "a table")
    with pytest.raises(ConfigError, match="null byte"):
        read_toml(Path("a\0b"), "a table")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_table_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    try:
        found = read_toml(path, "a table")
    except ConfigError:
        return
    assert isinstance(found, dict)
