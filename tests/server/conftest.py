"""A real server in front of the `provider` of the test's module, and the official client to it."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from moonlet.chat.fake import FakeProvider
from moonlet.server import create_app
from tests.server.running import Running, serving


@pytest.fixture(scope="module")
def server(provider: FakeProvider) -> Iterator[Running]:
    with serving(create_app(provider)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client
