"""The ledger: what happened is in it, whatever happens."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moonlet.chat.fake import FakeProvider, broken, says
from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import (
    ChatRequest,
    Completion,
    Finish,
    ModelCard,
    TextDelta,
    TextRequest,
    Usage,
    collect,
    collect_all,
)
from moonlet.errors import ConfigError, EngineError, MoonletError, PromptError, QuotaError
from moonlet.gateway.budgets import Budgets
from moonlet.gateway.ledger import End, Ledger
from moonlet.gateway.metered import Metered, MeteredText, metered
from moonlet.gateway.upstream import Upstream
from moonlet.plan.prices import Price
from tests.gateway.endpoint import FakeEndpoint, Says, chunk, refuses, running, text

HELLO = ChatRequest(parse_messages([{"role": "user", "content": "x" * 400}]), asked_by="abc")
PRICE = Price(input=1.0, cached_input=0.1, output=10.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with closing(Ledger(path)) as ledger:
        yield ledger


def rows(path: Path) -> list[dict[str, Any]]:
    """What anybody else reads in the file, while it is written too."""
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM requests ORDER BY id")]


def asked(provider: Metered, request: ChatRequest = HELLO) -> Any:
    async def work() -> Any:
        try:
            return await collect(provider.stream(request))
        except MoonletError as error:
            return error
        finally:
            await provider.aclose()

    return asyncio.run(work())


def known(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def test_a_request_is_a_row(ledger: Ledger, path: Path) -> None:
    usage = {"cached_tokens": 400, "completion_tokens_details": {"reasoning_tokens": 20}}
    with running(
        FakeEndpoint(refuses(500, {}), text("hi", 1000, 50, **usage)), price=PRICE
    ) as place:
        provider = metered(Upstream([place], ModelCard("m", 0, 9), pause_s=0.01), ledger, Budgets())
        answer = asked(provider)
    [row] = rows(path)
    assert known(row, "model", "upstream", "attempts", "status", "asked_by", "rough") == (
        "m", place.host, 2, "ok", "abc", 0,
    )  # fmt: skip
    assert known(
        row, "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"
    ) == (1000, 400, 50, 20)
    # 600 tokens at 1, 400 at 0.1 and 50 at 10 dollars for a million.
    assert row["cost"] == pytest.approx(0.00114)
    assert answer.usage.cost == row["cost"]
    assert 0 < row["first_s"] <= row["whole_s"] < 60
    assert row["began"] > 1.7e9


def test_the_row_is_whole_before_the_end_is_told(ledger: Ledger, path: Path) -> None:
    provider = metered(FakeProvider(says("a b")), ledger, Budgets())

    async def work() -> list[str]:
        return [rows(path)[0]["status"] async for _ in provider.stream(HELLO)]

    assert asyncio.run(work()) == ["running", "running", "ok"]


def test_a_model_of_this_process_costs_nothing(ledger: Ledger, path: Path) -> None:
    provider = metered(FakeProvider(says("a b", 7)), ledger, Budgets())
    assert isinstance(provider, MeteredText)
    assert asked(provider).usage == Usage(7, 2, 0, cost=0.0)
    assert known(rows(path)[0], "upstream", "attempts", "cost", "prompt_tokens") == (
        None,
        0,
        0.0,
        7,
    )

    async def work() -> Any:
        return await collect_all(provider.complete(TextRequest("abc")))

    assert asyncio.run(work())[0].text == "a b"
    assert len(rows(path)) == 2
    assert provider.tokenize("a") == [97]


def test_choices_cost_as_one_request(ledger: Ledger, path: Path) -> None:
    provider = metered(
        FakeProvider([Finish("stop", Usage(10, 3, 0), 1), Finish("stop", Usage(10, 4, 1, 8), 0)]),
        ledger,
        Budgets(),
    )

    async def work() -> list[Completion]:
        return await collect_all(provider.stream(replace(HELLO, n=2)))

    assert [answer.usage.cost for answer in asyncio.run(work())] == [0.0, None]
    assert known(rows(path)[0], "prompt_tokens", "completion_tokens", "cached_tokens") == (10, 7, 0)


@pytest.mark.parametrize(
    ("script", "status", "tokens"),
    [
        ([PromptError("no")], "refused", (0, 0)),
        ([broken()], "failed", (0, 0)),
        ([TextDelta("x" * 40), broken()], "failed", (100, 10)),
        ([TextDelta("x" * 40)], "failed", (100, 10)),
        ([RuntimeError("a bug")], "failed", (0, 0)),
    ],
)
def test_how_requests_end(
    script: list[Any], status: str, tokens: tuple[int, int], ledger: Ledger, path: Path
) -> None:
    provider = metered(FakeProvider(script), ledger, Budgets())
    try:
        asked(provider)
    except RuntimeError:
        assert isinstance(script[0], RuntimeError)
    ledger.close()
    [row] = rows(path)
    assert known(row, "status", "prompt_tokens", "completion_tokens") == (status, *tokens)
    assert row["rough"] == 1


@pytest.mark.parametrize("written", [0, 40])
def test_who_leaves_pays_for_what_was_done(written: int, ledger: Ledger, path: Path) -> None:
    """The prompt is worked on, even if nothing has come of it yet."""
    fake = FakeEndpoint(Says([chunk({"content": "x" * written}), 30.0]))
    with running(fake, price=PRICE) as place:
        provider = metered(Upstream([place], ModelCard("m", 0, 9)), ledger, Budgets())

        async def work() -> None:
            events = provider.stream(HELLO)
            first = asyncio.ensure_future(anext(events))
            if written:
                await first
            while not fake.bodies:
                await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.wait({first})
            await events.aclose()
            await provider.aclose()

        asyncio.run(work())
    ledger.close()
    [row] = rows(path)
    tokens = written // 4
    assert known(row, "status", "attempts", "completion_tokens", "rough") == ("left", 1, tokens, 1)
    assert row["cost"] == pytest.approx((100 * 1 + tokens * 10) / 1e6)


def test_without_a_price_there_is_no_cost(ledger: Ledger, path: Path) -> None:
    with running(FakeEndpoint(text())) as place:
        answer = asked(metered(Upstream([place], ModelCard("m", 0, 9)), ledger, Budgets()))
    assert answer.usage.cost is None
    assert rows(path)[0]["cost"] is None


KILLED = """
import asyncio, sys
from pathlib import Path
from moonlet.chat.fake import FakeProvider
from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import ChatRequest, ModelCard, TextDelta
from moonlet.gateway.budgets import Budgets
from moonlet.gateway.endpoint import Endpoint
from moonlet.gateway.ledger import Ledger
from moonlet.gateway.metered import metered
from moonlet.plan.prices import Price
from moonlet.gateway.upstream import Upstream

async def main():
    place = Endpoint("m", sys.argv[2], "theirs", price=Price(1.0, 0.1, 10.0))
    provider = metered(Upstream([place], ModelCard("m", 0, 9)), Ledger(Path(sys.argv[1])), Budgets())
    request = ChatRequest(parse_messages([{"role": "user", "content": "x" * 400}]), asked_by="abc")
    async for event in provider.stream(request):
        print(event, flush=True)

asyncio.run(main())
"""


def test_a_kill_in_the_middle_of_a_request_loses_nothing(path: Path) -> None:
    fake = FakeEndpoint(text("first"), Says([chunk({"content": "a"}), 30.0]))
    with running(fake) as place:
        for kills in (False, True):
            command = [sys.executable, "-c", KILLED, str(path), place.url]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                assert "TextDelta" in child.stdout.readline()
                if kills:
                    child.send_signal(signal.SIGKILL)
                    child.wait()
    assert [row["status"] for row in rows(path)] == ["ok", "running"]
    with closing(Ledger(path)) as ledger:
        first, second = rows(path)
        assert known(second, "status", "asked_by", "rough") == ("broken off", "abc", 1)
        assert second["cost"] == pytest.approx(100 / 1e6)  # the prompt, as it was estimated
        assert ledger.spent() == {"abc": pytest.approx(first["cost"] + second["cost"])}
        assert ledger.new_id() == 3


def test_two_servers_cannot_write_one_ledger(ledger: Ledger, path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(ConfigError, match="another server writes"):
            Ledger(name)
    ledger.close()
    Ledger(link).close()


def test_a_link_that_goes_round_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="cannot be used"):
        Ledger(tmp_path / "a")


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    text_file = tmp_path / "text"
    text_file.write_text("not a database, but long enough to look like one" * 99)
    with pytest.raises(ConfigError, match="file is not a database"):
        Ledger(text_file)
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE mine (x)")
    with pytest.raises(ConfigError, match="is no ledger of this version"):
        Ledger(other)
    with pytest.raises(ConfigError, match="cannot be used"):
        Ledger(tmp_path)
    with pytest.raises(ConfigError, match="cannot be used"):
        Ledger(text_file / "ledger.sqlite")


def test_what_cannot_be_written_down_is_not_asked_for(ledger: Ledger) -> None:
    ledger._database.execute("DROP TABLE requests")
    fake = FakeProvider(says("a"))
    error = asked(metered(fake, ledger, Budgets()))
    assert isinstance(error, EngineError)
    assert "the ledger" in str(error)
    assert fake.requests == []


def test_a_key_over_its_budget_is_refused(ledger: Ledger, path: Path) -> None:
    with running(FakeEndpoint(text("hi", 1000, 50)), price=PRICE) as place:  # 0.0015 dollars each
        provider = metered(Upstream([place], ModelCard("m", 0, 9)), ledger, Budgets({"abc": 0.004}))

        async def work() -> list[Any]:
            found: list[Any] = []
            for asker in ("abc", "abc", "abc", "abc", "other"):
                try:
                    found.append(await collect(provider.stream(replace(HELLO, asked_by=asker))))
                except QuotaError as error:
                    found.append(error)
            await provider.aclose()
            return found

        found = asyncio.run(work())
    kinds = [type(answer).__name__ for answer in found]
    assert kinds == ["Completion", "Completion", "Completion", "QuotaError", "Completion"]
    assert "is 0.004 dollars, of which 0.0045 are spent" in str(found[3])
    assert [row["asked_by"] for row in rows(path)] == ["abc", "abc", "abc", "other"]
    again = Budgets({"abc": 0.004}, {row["asked_by"]: 0.0045 for row in rows(path)})
    with pytest.raises(QuotaError):
        again.set_aside("abc", 0.0)


def test_many_at_once_go_over_by_no_more_than_they_were_estimated() -> None:
    budgets = Budgets({"abc": 1.0})
    admitted = 0
    for _ in range(100):
        try:
            budgets.set_aside("abc", 0.3)
            admitted += 1
        except QuotaError:
            pass
    assert admitted == 4
    for _ in range(admitted):
        budgets.settle("abc", 0.3, 0.1)
    budgets.set_aside("abc", 0.3)  # 0.4 spent


def test_who_is_refused_sets_nothing_aside(ledger: Ledger) -> None:
    budgets = Budgets({"abc": 0.001})
    with running(FakeEndpoint(refuses(400, {"error": {"message": "no"}})), price=PRICE) as place:
        for _ in range(3):
            provider = metered(Upstream([place], ModelCard("m", 0, 9)), ledger, budgets)
            assert isinstance(asked(provider), PromptError)
    assert budgets._set_aside["abc"] == pytest.approx(0.0)


def test_ends_are_written_in_order(ledger: Ledger, path: Path) -> None:
    async def work() -> None:
        for status in ("ok", "failed"):
            row = ledger.new_id()
            await ledger.begin(row, "m", None, 1, None)
            await ledger.end(row, End(status, Usage(1, 2, 0), 0.5))

    asyncio.run(work())
    assert [known(row, "id", "status", "cost") for row in rows(path)] == [
        (1, "ok", 0.5),
        (2, "failed", 0.5),
    ]
    assert json.dumps(ledger.spent()) == "{}"  # nobody's
