"""A right endpoint passes every check; one that breaks a rule fails the check of that rule, and no other."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from moonlet.gateway.fidelity.check import PROFILES, Profile, Result
from moonlet.gateway.fidelity.client import open_client, open_http
from moonlet.gateway.fidelity.discovery import discover
from moonlet.gateway.fidelity.errors import VerifyError
from moonlet.gateway.fidelity.suite import GROUPS, run_suite, select
from moonlet.server import create_app
from moonlet.server.profiles import PROFILES as SERVER_PROFILES
from tests.gateway.fidelity.actor import CARD, Actor, Bend, Bent
from tests.gateway.fidelity.bends import BENDS, another_type, breaks_always, serves_everything

URL = "http://127.0.0.1:1"
KEY = "sk-right"


def verified(
    profile: Profile = "open",
    only: str | None = None,
    bend: Bend | None = None,
    actor: Actor | None = None,
    key: str | None = None,
    **more: Any,
) -> list[Result]:
    app = create_app(
        actor or Actor(), profile=SERVER_PROFILES[profile], api_keys=[key] if key else []
    )
    options = {"concurrency": 4, "timeout_s": 30.0} | more

    async def run() -> list[Result]:
        async with open_http(Bent(app, bend)) as http:
            endpoint = await discover(open_client(http, URL, key), None, profile)
            return await run_suite(endpoint, select(profile, only), **options)

    return asyncio.run(run())


def failed(results: list[Result]) -> dict[str, str]:
    return {result.id: result.detail for result in results if result.outcome == "failed"}


def skipped(results: list[Result]) -> set[str]:
    return {result.id for result in results if result.outcome == "skipped"}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_right_endpoint_passes_everything(profile: Profile) -> None:
    results = verified(profile, key=KEY)
    assert failed(results) == {}
    if profile != "openai":
        assert skipped(results) == {"images/blind"}
    assert len(results) > 150
    rules = {rule.id for group in GROUPS for rule in group.rules if profile in rule.profiles}
    assert rules <= {result.id for result in results}  # each of them saw something


@pytest.mark.parametrize("name", BENDS)
def test_a_broken_endpoint_fails_where_it_is_broken(name: str) -> None:
    bend, only, wanted = BENDS[name]
    found = failed(verified("open", only, bend))
    assert set(found) == wanted
    assert all(sentence and "nobody expects" not in sentence for sentence in found.values())


def test_kimis_types_of_errors() -> None:
    found = failed(verified("kimi", "requests/no-model", another_type))
    assert set(found) == {"error/kimi-type"}


@pytest.mark.parametrize("profile", ["open", "kimi"])
def test_every_check_can_fail(profile: Profile) -> None:
    """Whoever serves everything and whoever breaks always fail them all between them."""
    lenient = failed(verified(profile, bend=serves_everything, key=KEY))
    broken = failed(verified(profile, bend=breaks_always, key=KEY))
    wanted = {check.id for check in select(profile)}
    about_lists = {"models/list", "models/window", "models/kimi-extras"}
    assert wanted - lenient.keys() - broken.keys() == (about_lists | {"images/blind"}) & wanted


@pytest.mark.parametrize(
    ("broken", "wanted"),
    [
        (b"{}", {"models/list", "models/window", "models/kimi-extras"}),
        (b'{"object":"list","data":[]}', {"models/list", "models/window", "models/kimi-extras"}),
        (
            b'{"object":"list","data":[{"id":"actor","object":"model","created":1,"owned_by":"m"}]}',
            {"models/window", "models/kimi-extras"},
        ),
    ],
)
def test_a_broken_list_of_models(broken: bytes, wanted: set[str]) -> None:
    lists = iter([None])  # the first is for finding the model

    def bend(sent: dict[str, Any], status: int, raw: bytes) -> tuple[int, bytes]:
        is_list = b'"object":"list"' in raw
        return status, broken if is_list and next(lists, b"") is not None else raw

    assert set(failed(verified("kimi", "models/*", bend))) == wanted


def test_a_stream_that_calls_itself_something_else() -> None:
    class Plain(Bent):
        async def handle_async_request(self, request: Any) -> Any:
            response = await super().handle_async_request(request)
            if "event-stream" in response.headers["content-type"]:
                response.headers["content-type"] = "text/plain"
            return response

    async def run() -> list[Result]:
        async with open_http(Plain(create_app(Actor()))) as http:
            endpoint = await discover(open_client(http, URL, None), None, "open")
            checks = select("open", "chat/stream")
            return await run_suite(endpoint, checks, concurrency=4, timeout_s=30)

    assert set(failed(asyncio.run(run()))) == {"stream/type"}


def test_what_kimi_refuses_has_to_be_refused() -> None:
    lenient = create_app(Actor())  # serves everything

    async def run() -> list[Result]:
        async with open_http(Bent(lenient)) as http:
            endpoint = await discover(open_client(http, URL, None), None, "kimi")
            return await run_suite(endpoint, select("kimi"), concurrency=4, timeout_s=30)

    found = set(failed(asyncio.run(run())))
    assert found >= {
        "sampling/changed", "tools/required-plain-thinking", "tools/named-stream-thinking",
        "tools/kimi-names", "tools/kimi-subset", "json/kimi-subset", "history/no-reasoning",
        "chat/stop-too-long",
    }  # fmt: skip


def test_a_model_that_neither_sees_nor_thinks() -> None:
    blind = Actor(replace(CARD, supports_images=False, supports_reasoning=False))
    results = verified(actor=blind)
    assert failed(results) == {}
    passed = {result.id for result in results if result.outcome == "passed"}
    assert "images/blind" in passed
    assert {"images/one", "thinking/type-on", "tools/required-plain-thinking"} <= skipped(results)


def test_an_endpoint_without_the_other_routes_is_not_blamed() -> None:
    def bend(sent: dict[str, Any], status: int, raw: bytes) -> tuple[int, bytes]:
        is_chat = "messages" in sent and "max_tokens" in sent and "seed" in sent
        return (status, raw) if is_chat or not sent else (404, b"{}")

    for only in ("responses", "messages/*", "tokens/estimate"):
        results = verified(only=only, bend=bend)
        assert {result.outcome for result in results if result.id in skipped(results)} == {
            "skipped"
        }
        assert failed(results) == {}


def test_a_hang_is_a_failure() -> None:
    class Asleep(Bent):
        async def handle_async_request(self, request: Any) -> Any:
            if request.method == "POST":
                await asyncio.Event().wait()
            return await super().handle_async_request(request)

    async def run() -> list[Result]:
        async with open_http(Asleep(create_app(Actor()))) as http:
            endpoint = await discover(open_client(http, URL, None), None, "open")
            checks = select("open", "chat/plain")
            return await run_suite(endpoint, checks, concurrency=4, timeout_s=0.05)

    assert failed(asyncio.run(run())) == {"chat/plain": "it did not end within 0.05 s"}


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{}", b'{"choices":7}', b"\xff", b"[" * 9999]
)
@pytest.mark.parametrize("profile", ["open", "kimi"])
def test_whatever_comes_every_check_ends_in_a_sentence(profile: Profile, raw: bytes) -> None:
    results = verified(
        profile, bend=lambda sent, status, body: (200, raw) if sent else (status, body)
    )
    assert len(failed(results)) > 100
    assert all(len(sentence) < 600 for sentence in failed(results).values())


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    verified(only="requests", on_done=lambda done, total: seen.append((done, total)))
    total = len(select("open", "requests"))
    assert seen == [(number, total) for number in range(1, total + 1)]


def test_ids_are_unique_and_can_be_chosen() -> None:
    ids = [check.id for group in GROUPS for check in group.checks]
    assert len(ids) == len(set(ids))
    assert {check.id.split("/")[0] for check in select("open", "schemas/*-enum-*")} == {"schemas"}
    assert [check.id for check in select("open", "chat/plain")] == ["chat/plain"]
    with pytest.raises(VerifyError, match="no check is called 'nonsense'"):
        select("open", "nonsense")


def test_a_model_of_the_list_can_be_chosen_and_none_is_told() -> None:
    async def model(bend: Any, name: str | None) -> str:
        async with open_http(Bent(create_app(Actor()), bend)) as http:
            return (await discover(open_client(http, URL, None), name, "open")).model

    assert asyncio.run(model(None, None)) == "actor"
    assert asyncio.run(model(None, "other")) == "other"
