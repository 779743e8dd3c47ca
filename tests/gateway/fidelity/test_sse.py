"""Server-sent events: how the standard reads them, however a server writes them."""

from hypothesis import given
from hypothesis import strategies as st

from moonlet.gateway.fidelity.sse import ServerEvent, read_events


def test_names_data_and_comments() -> None:
    raw = b": ping\n\nevent: a\ndata: {}\n\ndata:x\ndata: y\nid: 7\n\n\n\ndata: [DONE]\n\n"
    assert read_events(raw) == [
        ServerEvent("a", "{}"),
        ServerEvent(None, "x\ny"),
        ServerEvent(None, "[DONE]"),
    ]


def test_every_end_of_line_and_none_that_is_not() -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        raw = end.join([b"data: 1", b"", b"data: \xe2\x80\xa8\xc2\x85", b"", b""])
        assert [event.data for event in read_events(raw)] == ["1", "\u2028\x85"]


def test_a_name_without_data_is_no_event_and_is_forgotten() -> None:
    assert read_events(b"event: a\n\ndata: 1\n\n") == [ServerEvent(None, "1")]


def test_what_is_cut_off_is_seen() -> None:
    assert read_events(b"\xef\xbb\xbfdata: 1\n\ndata: 2") == [
        ServerEvent(None, "1"),
        ServerEvent(None, "2"),
    ]


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)
    )
)
def test_whatever_is_written_is_read(texts: list[str]) -> None:
    raw = "".join(f"data: {text}\n\n" for text in texts).encode()
    assert [event.data for event in read_events(raw)] == texts


@given(st.binary())
def test_any_bytes_are_some_events(raw: bytes) -> None:
    read_events(raw)
