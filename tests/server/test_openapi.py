"""/openapi.json is true: generated requests get answers of the shapes that stand there, and no 5xx."""

import math
from collections import Counter
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from moonlet.chat.fake import FakeProvider, says
from moonlet.server import create_app
from moonlet.server.profiles import PROFILES

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
# What nobody refuses, so that the other members are looked at.
PLAIN: dict[str, Any] = {
    "model": "fake", "messages": [{"role": "user", "content": "hi"}], "input": "hi", "prompt": "hi", "max_tokens": 9,
}  # fmt: skip


def app(profile: str = "open") -> FastAPI:
    return create_app(FakeProvider(says("ok then")), profile=PROFILES[profile])


def fuzz(total: int) -> Counter[str]:
    """Sends `total` requests or a few more, as the document allows and as it does not; counts them by route
    and status. Every route that can vary gets as many as any other."""
    apps = {name: app(name) for name in PROFILES}
    schema = schemathesis.openapi.from_asgi("/openapi.json", apps["open"])
    fixed, varied = [], []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.body:
            varied += [(operation, POSITIVE), (operation, NEGATIVE)]
        elif any(operation.iter_parameters()):
            varied.append((operation, POSITIVE))  # any text is allowed in a path
        else:
            fixed.append((operation, POSITIVE))
    answered: Counter[str] = Counter()
    for operation, mode in fixed:
        send(operation, mode, 1, apps, answered)
    for operation, mode in varied:
        send(operation, mode, math.ceil(total / len(varied)), apps, answered)
    return answered


def send(
    operation: Any,
    mode: GenerationMode,
    count: int,
    apps: dict[str, FastAPI],
    answered: Counter[str],
) -> None:
    """`count` requests to one route, each to one of the profiles."""

    @settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(operation.as_strategy(mode), st.sampled_from(sorted(apps)), st.data())
    def one(case: Case, profile: str, data: st.DataObject) -> None:
        if mode is POSITIVE and isinstance(case.body, dict):
            soften(case.body, data)
        response = case.call_and_validate(checks=CHECKS, app=apps[profile])
        answered[f"{operation.label} {response.status_code}"] += 1

    one()


def soften(body: dict[str, Any], data: st.DataObject) -> None:
    """Takes away what would be refused first, so that the rest is looked at: of dozens of invented
    members one is always wrong."""
    kept = data.draw(st.sets(st.sampled_from(sorted(body)), max_size=6)) if body else set()
    plain = data.draw(st.booleans())
    for name in body.keys() - kept - PLAIN.keys():
        del body[name]
    for name in body.keys() & PLAIN.keys():
        if plain or name == "model":
            body[name] = PLAIN[name]


def check(total: int) -> None:
    answered = fuzz(total)
    assert answered.total() >= total, answered
    for route in (
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/completions",
        "/tokenize",
    ):
        assert answered[f"POST {route} 200"], answered  # not all were refused


def test_a_few_hundred_requests() -> None:
    check(300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_requests() -> None:
    check(5000)


def test_every_route_is_described() -> None:
    made = app()
    paths = made.openapi()["paths"]
    assert set(paths) == {route.path_format for route in made.routes} - {"/openapi.json"}  # type: ignore[attr-defined]
    for path, methods in paths.items():
        for spec in methods.values():
            assert set(spec["responses"]) == {"200", "4XX", "5XX"}, path
            assert spec["summary"]


def test_text_is_text() -> None:
    paths = app().openapi()["paths"]
    assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    chat = paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert list(chat) == ["application/json", "text/event-stream"]
