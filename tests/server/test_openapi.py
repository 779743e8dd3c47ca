"""/openapi.json is true: generated requests get answers of the shapes that stand there, and no 5xx."""

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis import Case
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
FEW, MANY = 15, 400  # cases for every route


def app(profile: str = "open") -> FastAPI:
    return create_app(FakeProvider(says("ok then")), profile=PROFILES[profile])


def fuzz(app: FastAPI, examples: int) -> None:
    """Sends `examples` generated requests to every route, good ones and bad ones."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        def send(case: Case) -> None:
            if isinstance(case.body, dict) and case.path == "/v1/chat/completions":
                case.body["model"] = "fake"  # or nothing would get beyond a 404
            case.call_and_validate(checks=CHECKS)

        operation_test(operation, send)()


def operation_test(operation: Any, send: Callable[[Case], None]) -> Callable[[], None]:
    from hypothesis import given

    return given(case=operation.as_strategy())(send)


def test_a_few_requests() -> None:
    fuzz(app(), FEW)


@pytest.mark.slow
@pytest.mark.parametrize("profile", list(PROFILES))
def test_many_requests(profile: str) -> None:
    fuzz(app(profile), MANY)


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
