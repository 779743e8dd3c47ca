"""Endpoints that fail in every way, over real sockets: what is tried again, what is not, and what is said."""

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import ChatRequest, Completion, Event, ModelCard, TextDelta, collect
from moonlet.errors import MoonletError, PromptError, UpstreamError
from moonlet.gateway import ask, upstream
from moonlet.gateway.endpoint import Endpoint
from moonlet.gateway.refusal import failure
from moonlet.gateway.upstream import Trail, Upstream
from tests.gateway.endpoint import (
    DONE,
    Break,
    FakeEndpoint,
    Says,
    chunk,
    event,
    refuses,
    running,
    text,
    usage,
)

HELLO = ChatRequest(parse_messages([{"role": "user", "content": "hi"}]))
CARD = ModelCard("m", 0, 4096)


def answers(
    endpoints: Sequence[Endpoint], *, times: int = 1, asked: ChatRequest = HELLO, **more: Any
) -> list[Completion | MoonletError]:
    """What becomes of `times` requests, one after the other."""

    async def work() -> list[Completion | MoonletError]:
        provider = Upstream(endpoints, CARD, **{"pause_s": 0.01, **more})
        found: list[Completion | MoonletError] = []
        for _ in range(times):
            try:
                found.append(await collect(provider.stream(asked)))
            except MoonletError as error:
                found.append(error)
        await provider.aclose()
        return found

    return asyncio.run(work())


def said(*failures: Says, **more: Any) -> UpstreamError:
    """The error in which the first request to an endpoint ends that gives these answers."""
    with running(FakeEndpoint(*failures)) as place:
        [error] = answers([place], **more)
    assert isinstance(error, UpstreamError), error
    return error


def nobody() -> Endpoint:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return Endpoint("m", f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "theirs")


def test_an_answer_and_what_was_asked() -> None:
    fake = FakeEndpoint(text("hello"))
    with running(fake, key="sk-secret") as place:
        [answer] = answers([place])
    assert isinstance(answer, Completion)
    assert (answer.text, answer.usage.prompt_tokens) == ("hello", 10)
    assert fake.bodies[0]["model"] == "theirs"
    assert fake.headers[0]["authorization"] == "Bearer sk-secret"
    assert fake.headers[0]["accept-encoding"] == "identity"
    assert "sk-secret" not in repr(place)


def test_a_connection_is_used_again() -> None:
    fake = FakeEndpoint(text("hello"))
    ports = set()
    real = fake.__call__

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            ports.add(scope["client"][1])
        await real(scope, receive, send)

    with running(noting) as place:  # type: ignore[arg-type]
        assert len(answers([place], times=3)) == 3
    assert len(ports) == 1


@pytest.mark.parametrize(
    "failure",
    [
        refuses(500, {"error": {"message": "oops"}}),
        refuses(503, "busy"),
        refuses(408, {}),
        refuses(429, {"error": {"type": "rate_limit_reached_error"}}),
        refuses(429, {}, retry_after="0"),
        Says([b"data: {}\n\n", Break()]),
        Says([b'data: {"error": {"message": "overloaded"}}\n\n']),
        Says([Break()], 200),
    ],
)
def test_what_passes_is_tried_again(failure: Says) -> None:
    fake = FakeEndpoint(failure, failure, text("at last"))
    with running(fake) as place:
        [answer] = answers([place])
    assert isinstance(answer, Completion), answer
    assert (answer.text, len(fake.bodies)) == ("at last", 3)


def test_not_for_ever() -> None:
    fake = FakeEndpoint(refuses(500, {"error": {"message": "oops"}}))
    with running(fake) as place:
        [error] = answers([place])
    assert isinstance(error, UpstreamError)
    assert f"{place} answered with status 500: oops" in str(error)
    assert (error.status, len(fake.bodies)) == (502, upstream.ATTEMPTS)


def test_pauses_grow_unless_the_endpoint_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    waiting = SimpleNamespace(sleep=sleep, get_running_loop=asyncio.get_running_loop)
    monkeypatch.setattr(upstream, "asyncio", waiting)
    fake = FakeEndpoint(refuses(429, {}, retry_after="7"), refuses(500, {}), text())
    with running(fake) as place:
        answers([place], pause_s=1.0)
    assert pauses[0] == 7.0
    assert 1.0 <= pauses[1] <= 3.0
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 0 ", 0.0),
        ("999999999", 3600.0),
        ("9999999999", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Mon, 01 Jan 1990 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Mon, 99 Jan 1990 00:00:00 GMT", None),
    ],
)
def test_what_retry_after_may_say(value: str, seconds: float | None) -> None:
    error = failure(429, {}, {"retry-after": value}, "m")
    assert isinstance(error, UpstreamError)
    assert error.retry_after_s == seconds


def test_but_not_for_long() -> None:
    fake = FakeEndpoint(refuses(429, {"error": {"message": "slow down"}}, retry_after="999999"))
    with running(fake) as place:
        [error] = answers([place])
    assert isinstance(error, UpstreamError)
    assert (error.status, error.retry_after_s, len(fake.bodies)) == (429, 3600.0, 1)


@pytest.mark.parametrize(
    ("failure", "sentence", "status"),
    [
        (refuses(401, {"error": {"message": "bad key"}}), "refuses the key of this server", 502),
        (refuses(403, {}), "refuses the key of this server", 502),
        (refuses(404, {"detail": "Not Found"}), "answered with status 404: Not Found", 502),
        (refuses(402, {"error": "pay"}), "no money left: pay", 502),
        (
            refuses(429, {"error": {"message": "m", "type": "exceeded_current_quota_error"}}),
            "no money left: m",
            502,
        ),
        (
            Says([b""], 302, {"location": "http://127.0.0.1:9/"}),
            "answered with status 302",
            502,
        ),
        (refuses(200, {"choices": []}), "answered with 'application/json' where a stream", 502),
        (Says([b"<html>"], 200, {}), "answered with '' where a stream", 502),
        (Says([b"data: {\n\n"]), "does not speak the OpenAI API", 502),
        (Says([chunk({"content": 7})]), "content is no str", 502),
        (Says([b"x" * (5 * 2**20)]), "a line of more than", 502),
        (refuses(418, [1]), "answered with status 418", 502),
    ],
)
def test_what_stays_wrong_is_not_tried_again(failure: Says, sentence: str, status: int) -> None:
    fake = FakeEndpoint(failure)
    with running(fake) as place:
        [error] = answers([place])
    assert isinstance(error, UpstreamError)
    assert sentence in str(error)
    assert str(place) in str(error)
    assert (error.status, len(fake.bodies)) == (status, 1)


def test_the_clients_mistake_is_the_clients() -> None:
    body = {"error": {"message": "invalid temperature", "param": "temperature"}}
    fake, other = FakeEndpoint(refuses(400, body)), FakeEndpoint(text())
    with running(fake) as first, running(other) as second:
        [error] = answers([first, second])
    assert isinstance(error, PromptError)
    assert "refuses the request: invalid temperature" in error.message
    assert error.param == "temperature"
    assert (len(fake.bodies), other.bodies) == (1, [])


KEY = "sk-" + "secret" * 10


@pytest.mark.parametrize(
    "says",
    [
        refuses(401, {"error": {"message": f"wrong key: {KEY}"}}),
        refuses(400, {"error": {"message": f"wrong key: {KEY}", "param": KEY}}),
        Says([event({"error": {"message": f"wrong key: {KEY}"}})]),
        Says([chunk({"content": "a"}), event({"error": {"message": f"wrong key: {KEY}"}})]),
        Says([event({"error": {"message": f"{'x' * 460} wrong key: {KEY}"}})]),
        Says([f"data: wrong key: {KEY}\n\n".encode()]),
        Says([b"data: " + b"x" * 50 + f" wrong key: {KEY}\n\n".encode()]),
    ],
)
def test_a_key_that_is_repeated_is_not_shown(says: Says, caplog: pytest.LogCaptureFixture) -> None:
    with running(FakeEndpoint(says), key=KEY) as place:
        [error] = answers([place])
    assert isinstance(error, PromptError | UpstreamError)
    told = f"{error} {getattr(error, 'param', '')} {caplog.text}"
    assert "***" in told
    assert KEY[:10] not in told


@pytest.mark.parametrize("wrong", [refuses(500, {}), refuses(401, {}), Says([b"data: {\n\n"])])
def test_the_next_endpoint_is_asked_and_the_first_one_rests(wrong: Says) -> None:
    first, second = FakeEndpoint(wrong), FakeEndpoint(text("from the second"))
    with running(first) as one, running(second) as two:
        found = answers([one, two], times=3)
    assert [getattr(answer, "text", answer) for answer in found] == ["from the second"] * 3
    assert len(second.bodies) == 3
    tries = len(first.bodies)
    assert 1 <= tries <= upstream.ATTEMPTS  # asked for the first request only


def test_an_endpoint_that_rests_is_asked_when_all_others_fail() -> None:
    first = FakeEndpoint(refuses(401, {}), text("back"))
    second = FakeEndpoint(text("once"), refuses(401, {}))
    with running(first) as one, running(second) as two:
        found = answers([one, two], times=2)
    assert [getattr(answer, "text", answer) for answer in found] == ["once", "back"]


def test_rest_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "REST_S", 0.0)
    first, second = FakeEndpoint(refuses(401, {}), text("back")), FakeEndpoint(text("once"))
    with running(first) as one, running(second) as two:
        found = answers([one, two], times=2)
    assert [getattr(answer, "text", answer) for answer in found] == ["once", "back"]


def test_nobody_there() -> None:
    away = nobody()
    [error] = answers([away])
    assert isinstance(error, UpstreamError)
    assert f"{away} cannot be reached" in str(error)
    assert error.status == 502
    with running(FakeEndpoint(text("here"))) as place:
        [answer] = answers([away, place])
    assert isinstance(answer, Completion)


def events_of(endpoints: Sequence[Endpoint], asked: ChatRequest = HELLO) -> tuple[list[Event], Any]:
    """The events until the error, and the error."""

    async def work() -> tuple[list[Event], Any]:
        provider, events = Upstream(endpoints, CARD, pause_s=0.01), []
        try:
            async for event in provider.stream(asked):
                events += [event]
        except MoonletError as error:
            return events, error
        finally:
            await provider.aclose()
        return events, None

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        ([Break()], "the connection to the upstream m at 127.0.0.1:"),
        ([], "broke the answer off before it was finished"),
        ([DONE], "broke the answer off before it was finished"),
        ([b"data: {\n\n"], "does not speak the OpenAI API"),
        ([b'data: {"error": {"message": "out of memory"}}\n\n'], "off: out of memory"),
    ],
)
def test_a_break_after_the_first_event_is_told_and_nothing_tried_again(
    rest: list[Any], sentence: str
) -> None:
    fake, other = FakeEndpoint(Says([chunk({"content": "a"}), 0.05, *rest])), FakeEndpoint(text())
    with running(fake) as first, running(other) as second:
        events, error = events_of([first, second])
    assert events == [TextDelta("a")]
    assert isinstance(error, UpstreamError)
    assert sentence in str(error)
    assert (len(fake.bodies), other.bodies) == (1, [])


def test_an_end_that_is_broken_off_is_an_end() -> None:
    whole = [chunk({"content": "a"}), chunk(finish="stop"), usage(3, 1)]
    with running(FakeEndpoint(Says([*whole, 0.05, Break()]))) as place:
        [answer] = answers([place])
    assert isinstance(answer, Completion)
    assert (answer.text, answer.usage.prompt_tokens) == ("a", 3)


def test_who_does_not_hang_up_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "AFTER_S", 0.05)
    pieces = [chunk({"content": "a"}), chunk(finish="stop"), usage(3, 1)]
    for more in ([DONE, 30.0], [30.0], [b": ping\n\n", 0.02] * 20_000):
        with running(FakeEndpoint(Says([*pieces, *more]))) as place:
            [answer] = answers([place])
        assert isinstance(answer, Completion), answer


@pytest.mark.parametrize(
    "pieces",
    [
        [30.0],
        [b": ping\n\n", 30.0],
        [b": ping\n\n", 0.05] * 200,
        [chunk({"role": "assistant"}), 30.0],
    ],
)
def test_silence_has_an_end(pieces: list[Any]) -> None:
    fake, other = FakeEndpoint(Says(pieces)), FakeEndpoint(text("from the second"))
    error = said(Says(pieces), silence_s=0.3)
    assert "sent nothing of an answer for 0.3 seconds" in str(error)
    assert error.status == 504
    with running(fake) as first, running(other) as second:
        [answer] = answers([first, second], silence_s=0.3)
    assert isinstance(answer, Completion), answer
    assert len(fake.bodies) == 1


def test_a_long_answer_is_no_silence() -> None:
    pieces: list[Any] = [chunk({"content": "a"}), 0.05] * 16
    with running(FakeEndpoint(Says([*pieces, chunk(finish="stop"), DONE]))) as place:
        [answer] = answers([place], silence_s=0.5)
    assert isinstance(answer, Completion), answer
    assert answer.text == "a" * 16


def test_a_slow_client_is_no_silence() -> None:
    pieces: list[Any] = [chunk({"content": "a"}), 0.05, chunk({"content": "b"}), 0.4]

    async def work(place: Endpoint) -> list[Event]:
        provider, events = Upstream([place], CARD, silence_s=0.8), []
        async for told in provider.stream(HELLO):
            events += [told]
            await asyncio.sleep(1.0)
        await provider.aclose()
        return events

    with running(FakeEndpoint(Says([*pieces, chunk(finish="stop"), DONE]))) as place:
        assert len(asyncio.run(work(place))) == 3


def test_silence_before_the_status_has_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = Endpoint("m", f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        [error] = answers([place], silence_s=0.2)
    assert isinstance(error, UpstreamError)
    assert error.status == 504


def test_an_answer_that_is_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            for _ in range(upstream.ATTEMPTS):
                connection, _address = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        [error] = answers([Endpoint("m", f"http://127.0.0.1:{listener.getsockname()[1]}/v1")])
        thread.join()
    assert isinstance(error, UpstreamError)
    assert "the connection to the upstream m" in str(error)


def test_a_deadline_ends_an_answer_as_a_limit_does() -> None:
    asked = ChatRequest(HELLO.messages, deadline_s=0.3)
    with running(FakeEndpoint(Says([chunk({"content": "abcde"}), 30.0]))) as place:
        [answer] = answers([place], asked=asked)
    assert isinstance(answer, Completion), answer
    assert (answer.text, answer.finish_reason) == ("abcde", "length")
    assert answer.usage.completion_tokens == 2  # a rough count


def test_who_leaves_ends_the_request() -> None:
    endless = FakeEndpoint(Says([chunk({"content": "a"}), *[0.02, b": ping\n\n"] * 1000]))

    async def work(place: Endpoint) -> list[Any]:
        provider = Upstream([place], CARD)
        async with aclosing(provider.stream(HELLO)) as events:
            await anext(events)
        left = list(provider._client._transport._pool.connections)  # type: ignore[attr-defined]
        await provider.aclose()
        return left

    with running(endless) as place:
        assert asyncio.run(work(place)) == []


def test_the_trail_says_who_answered_and_after_how_many_attempts() -> None:
    first, second = FakeEndpoint(refuses(500, {})), FakeEndpoint(text())

    async def work(places: list[Endpoint]) -> Trail:
        provider, trail = Upstream(places, CARD, pause_s=0.01), Trail()
        await collect(provider.answer(HELLO, trail))
        await provider.aclose()
        return trail

    with ExitStack() as stack:
        places = [stack.enter_context(running(fake)) for fake in (first, second)]
        trail = asyncio.run(work(places))
    assert (trail.endpoint, trail.attempts, trail.rough) == (
        places[1],
        upstream.ATTEMPTS + 1,
        False,
    )
