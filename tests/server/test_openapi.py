"""/openapi.json is true: generated requests get answers of the shapes that stand there, and no 5xx."""

from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
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
from moonlet.server.chat_schema import CHAT_REQUEST
from moonlet.server.profiles import PROFILES

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
FEW, MANY = 15, 200  # cases for every route
MEMBERS = sorted(CHAT_REQUEST["properties"])


def app(profile: str = "open") -> FastAPI:
    return create_app(FakeProvider(says("ok then")), profile=PROFILES[profile])


def fuzz(app: FastAPI, examples: int, mode: GenerationMode = GenerationMode.POSITIVE) -> None:
    """Sends `examples` requests to every route; they are as the document allows, or as it does not."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for result in schema.get_all_operations():
        operation = result.ok()
        varies = operation.body or any(operation.iter_parameters())
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # any text is allowed in a path

        @settings(
            max_examples=examples if varies else 1,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            operation.as_strategy(mode),
            st.sets(st.sampled_from(MEMBERS), max_size=8),
            st.booleans(),
        )
        def send(case: Case, kept: set[str], plain: bool) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "fake"  # or nothing would get beyond a 404
            if mode is GenerationMode.POSITIVE and case.path == "/v1/chat/completions":
                soften(case.body, kept, plain)
            case.call_and_validate(checks=CHECKS)

        send()


def soften(body: dict[str, Any], kept: set[str], plain: bool) -> None:
    """Takes away what would be refused first, so that the rest is looked at: of dozens of invented
    members one is always wrong."""
    for name in body.keys() - kept - {"model", "messages"}:
        del body[name]
    if plain:
        body["messages"] = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_a_few_requests(mode: GenerationMode) -> None:
    fuzz(app(), FEW, mode)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # every route, hundreds of times
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("profile", list(PROFILES))
def test_many_requests(profile: str, mode: GenerationMode) -> None:
    fuzz(app(profile), MANY, mode)


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
