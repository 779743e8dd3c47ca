"""`moonlet chat`: scripted conversations with the fake provider, in this process and over HTTP."""

import asyncio
import base64
import io
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from moonlet.chat.fake import CARD, FakeProvider, broken, says
from moonlet.chat.messages import ImagePart
from moonlet.chat.provider import ChatRequest, Event, Finish, ReasoningDelta, TextDelta, Usage
from moonlet.cli import chat
from moonlet.cli.chat import Chat
from moonlet.cli.main import main
from moonlet.cli.sources import LocalSource, RemoteSource, Source
from moonlet.errors import EngineError, PromptError
from moonlet.server import create_app
from tests.server.running import Running, serving

THOUGHT = [
    ReasoningDelta("7+5=12"),
    TextDelta("It is "),
    TextDelta("632."),
    Finish("stop", Usage(3, 4, 1)),
]
MARKED = "[bold]x[/bold] :smile: **y**\x1b[2J"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeProvider, bytes], None]:
    """Puts a provider behind `moonlet chat` and bytes on its standard input."""

    def prepare(provider: FakeProvider, stdin: bytes) -> None:
        monkeypatch.setattr(chat, "load_provider", lambda _model, _keep_floats: provider)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))

    return prepare


def talk(source: Source, *lines: str) -> tuple[Chat, str]:
    """An interactive conversation: the lines are typed, then Ctrl-D. Returns what the screen shows."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    typed = iter(lines)

    def read(_prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    session = Chat(source, console, interactive=True, read_line=read)
    session.talk()
    source.close()
    return session, console.file.getvalue()  # type: ignore[attr-defined]


def test_piped_questions_get_plain_answers(
    piped: Callable[[FakeProvider, bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    provider = FakeProvider(THOUGHT)
    piped(provider, b"347+285?\n\n/instant\nand \xff\xfe?\n/exit\nnot asked\n")
    assert main(["chat"]) == 0
    assert capsys.readouterr().out == "It is 632.\nIt is 632.\n"
    first, second = provider.requests
    assert (first.thinking, second.thinking) == (True, False)
    assert [message.text for message in second.messages] == [
        "347+285?",
        "It is 632.",
        "and \ufffd\ufffd?",
    ]
    assert second.messages[1].reasoning == "7+5=12"


def test_piped_json_is_one_document(
    piped: Callable[[FakeProvider, bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    piped(FakeProvider(THOUGHT), b"347+285?\n")
    assert main(["chat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": "fake",
        "turns": [
            {
                "question": "347+285?",
                "reasoning": "7+5=12",
                "answer": "It is 632.",
                "finish_reason": "stop",
                "usage": {
                    "prompt_tokens": 3,
                    "completion_tokens": 4,
                    "reasoning_tokens": 1,
                    "cached_tokens": 0,
                    "cached_disk_tokens": 0,
                    "cache_break": None,
                    "cost": None,
                },
            }
        ],
    }


@pytest.mark.parametrize(
    ("error", "status"), [(broken("it broke"), 1), (PromptError("it broke"), 2)]
)
def test_a_failure_ends_a_piped_conversation(
    error: Exception,
    status: int,
    piped: Callable[[FakeProvider, bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    piped(FakeProvider([error]), b"a\nb\n")
    assert main(["chat"]) == status
    assert capsys.readouterr().err == "moonlet: it broke\n"


def test_a_terminal_shows_thinking_then_the_answer() -> None:
    session, screen = talk(LocalSource(FakeProvider(THOUGHT)), "347+285?")
    assert "7+5=12\n\nIt is 632.\n" in screen
    assert [message["role"] for message in session.messages] == ["user", "assistant"]


def test_an_answer_is_shown_as_it_is_but_cannot_steer_the_terminal() -> None:
    _, screen = talk(LocalSource(FakeProvider(says(MARKED))), "?")
    assert "[bold]x[/bold] :smile: **y**\ufffd[2J" in screen


def test_thinking_is_dim() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    source = LocalSource(FakeProvider(THOUGHT))
    Chat(source, console, interactive=True).ask("?")
    source.close()
    assert "\x1b[2m7+5=12\x1b[0m" in console.file.getvalue()  # type: ignore[attr-defined]


def test_commands() -> None:
    provider = FakeProvider(says("ok"))
    lines = ["one", "/clear", "/instant", "two", "/think", "three", "/help", "/exit", "four"]
    session, screen = talk(LocalSource(provider), *lines)
    asked = [[message.text for message in request.messages] for request in provider.requests]
    assert asked == [["one"], ["two"], ["two", "ok", "three"]]
    assert [request.thinking for request in provider.requests] == [True, False, True]
    assert "/image PATH" in screen
    assert len(session.turns) == 3


def test_a_failure_is_shown_and_forgotten() -> None:
    provider = FakeProvider([broken("it\x1b broke")])
    session, screen = talk(LocalSource(provider), "one", "/fly", "/image no.png", "/image x")
    assert "it\ufffd broke" in screen
    assert "no command /fly" in screen
    assert "cannot read no.png" in screen
    assert "does not look like an image" in screen
    assert session.messages == []


def test_an_image_goes_with_the_next_question_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    provider = FakeProvider(says("7"))
    talk(LocalSource(provider), f"/image {tmp_path / 'a.png'}", "what digit?", "sure?")
    image = provider.requests[0].messages[0].parts[0]
    assert image == ImagePart(f"data:image/png;base64,{base64.b64encode(PNG).decode()}")
    assert provider.requests[0].messages[0].text == "what digit?"
    assert len(provider.requests[1].messages[2].parts) == 1


def test_leaving_a_local_answer_stops_the_generation() -> None:
    provider = FakeProvider(says("one two"))
    source = LocalSource(provider)
    events = source.answer([{"role": "user", "content": "a"}], thinking=True)
    next(events)
    events.close()
    stopped_at = provider.closed
    source.close()
    assert (stopped_at, provider.finished) == (1, 0)


class Interrupted:
    """Answers with one word, then Ctrl-C is pressed and nothing comes any more."""

    card = CARD
    closed = False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        try:
            yield TextDelta("half")
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            self.closed = True


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on() -> None:
    provider = Interrupted()
    session, screen = talk(LocalSource(provider), "long story?")
    assert provider.closed
    assert "half (stopped)" in screen
    assert session.messages[-1]["content"] == "half"


def test_ctrl_c_ends_a_piped_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chat, "load_provider", lambda _model, _keep_floats: Interrupted())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert main(["chat"]) == 130
    assert capsys.readouterr() == ("half", "")


@pytest.fixture
def remote() -> Iterator[tuple[FakeProvider, Running]]:
    provider = FakeProvider(THOUGHT)
    with serving(create_app(provider)) as server:
        yield provider, server


def test_an_answer_over_http_is_the_same_answer(remote: tuple[FakeProvider, Running]) -> None:
    provider, server = remote
    source = RemoteSource(f"{server.url}/v1/")
    assert source.name == "fake"
    asked: Any = [{"role": "user", "content": "347+285?"}]
    assert list(source.answer(asked, thinking=False)) == [
        ReasoningDelta("7+5=12"),
        TextDelta("It is "),
        TextDelta("632."),
        Finish("stop", Usage(3, 4, 0)),
    ]
    assert not provider.requests[0].thinking
    list(source.answer(asked, thinking=True))
    assert provider.requests[1].thinking


def test_chat_with_a_url(
    remote: tuple[FakeProvider, Running],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"347+285?\n")))
    assert main(["chat", f"{remote[1].url}/v1"]) == 0
    assert capsys.readouterr().out == "It is 632.\n"


def test_refusals_over_http_name_their_reason(remote: tuple[FakeProvider, Running]) -> None:
    source = RemoteSource(f"{remote[1].url}/v1", model="other")
    with pytest.raises(EngineError, match=r"404: Not found the model other"):
        list(source.answer([{"role": "user", "content": "a"}], thinking=True))


def test_a_stream_that_breaks_is_an_error() -> None:
    provider = FakeProvider([TextDelta("a"), broken("it broke")])
    with serving(create_app(provider)) as server:
        events = RemoteSource(f"{server.url}/v1").answer([{"role": "user", "content": "a"}], True)
        assert next(events) == TextDelta("a")
        with pytest.raises(EngineError, match="it broke"):
            next(events)


def test_leaving_a_remote_answer_stops_the_generation() -> None:
    provider = FakeProvider([TextDelta("a"), asyncio.Event()])
    with serving(create_app(provider)) as server:
        events = RemoteSource(f"{server.url}/v1").answer([{"role": "user", "content": "a"}], True)
        next(events)
        events.close()
        server.wait(asyncio.wait_for(provider.closed_event.wait(), 30))
    assert provider.closed == 1


@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        ("http://127.0.0.1:9", 1, "cannot reach http://127.0.0.1:9"),
        ("http://[", 2, "cannot use the URL"),
        ("http://127.0.0.1:x/", 2, "cannot use the URL"),
    ],
)
def test_urls_that_do_not_answer(
    url: str, status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", url]) == status
    assert says in capsys.readouterr().err


def test_model_flag_needs_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model", "x"]) == 2
    assert "there is no URL here" in capsys.readouterr().err
