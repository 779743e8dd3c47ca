"""What is learned from an endpoint's list of models, and what happens without one."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from moonlet.errors import ConfigError
from moonlet.gateway import discover as module
from moonlet.gateway.discover import CONTEXT, Found, discover
from moonlet.gateway.endpoint import Endpoint
from tests.gateway.endpoint import FakeEndpoint, running


def found(models: Any, **more: Any) -> Found:
    """What is found out about `m` at an endpoint that lists these."""
    with running(FakeEndpoint(models=models)) as place:
        return asyncio.run(discover([replace(place, model=None, **more)]))


def listed(*entries: Any) -> dict[str, Any]:
    return {"object": "list", "data": list(entries)}


def test_a_model_of_that_name_with_all_that_kimi_says_of_it() -> None:
    kimi = {"context_length": 1000, "supports_image_in": True, "supports_video_in": True}
    answer = found(
        listed({"id": "x"}, {"id": "m", "created": 7, "supports_reasoning": False, **kimi})
    )
    card = answer.card
    assert answer.endpoints[0].model == "m"
    assert (card.id, card.created, card.context_length) == ("m", 7, 1000)
    assert (card.supports_images, card.supports_video, card.supports_reasoning) == (
        True,
        True,
        False,
    )
    assert answer.warnings == ()


def test_the_only_model_whatever_it_is_called() -> None:
    answer = found(listed({"id": "org/Model", "max_model_len": 2000}))
    assert (answer.endpoints[0].model, answer.card.id) == ("org/Model", "m")
    assert answer.card.context_length == 2000
    assert (answer.card.supports_images, answer.card.supports_reasoning) == (True, True)
    assert not answer.card.supports_video


def test_one_of_many_must_be_named() -> None:
    many = listed(*({"id": f"model-{i}"} for i in range(9)))
    with pytest.raises(ConfigError, match=r"has 9 models \(model-0, .*#model="):
        found(many)
    with running(FakeEndpoint(models=many)) as place:
        answer = asyncio.run(discover([replace(place, model="not-listed")]))
    assert answer.endpoints[0].model == "not-listed"


def test_who_does_not_think_does_not_say_that_he_could() -> None:
    assert not found(listed({"id": "m"}), thinking="none").card.supports_reasoning


@pytest.mark.parametrize(
    ("owner", "thinking"),
    [("vllm", "template"), ("openai", "effort"), ("moonlet", "type"), (None, "type"), ([], "type")],
)
def test_how_it_is_told_to_think_follows_from_what_runs_there(owner: Any, thinking: str) -> None:
    models = listed({"id": "m", "owned_by": owner})
    assert found(models).endpoints[0].thinking == thinking
    assert found(models, thinking="none").endpoints[0].thinking == "none"


@pytest.mark.parametrize(
    "models",
    [
        None,
        [],
        {"data": {}},
        {"data": [{"id": 7}, 1, None, {"id": ""}, {"id": "x" * 500}]},
        {"data": [{"id": "m", "context_length": "much", "created": [], "supports_image_in": "x"}]},
        {"data": [{"id": "m", "context_length": -1, "max_model_len": True, "created": 1e9}]},
    ],
)
def test_lists_that_say_nothing(models: Any) -> None:
    answer = found(models)
    assert answer.endpoints[0].model == "m"
    assert (answer.card.context_length, answer.card.supports_images) == (CONTEXT, True)


def test_who_cannot_be_asked_is_taken_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 1000)
    away = Endpoint("m", "http://127.0.0.1:9/v1")
    with running(FakeEndpoint(models=listed({"id": "x" * 2000}))) as place:
        answer = asyncio.run(discover([away, replace(place, model="theirs")]))
    assert [endpoint.model for endpoint in answer.endpoints] == ["m", "theirs"]
    assert "cannot be reached" in answer.warnings[0]
    assert "more than 1000 bytes" in answer.warnings[1]
    assert all(warning.endswith("taken as it was given") for warning in answer.warnings)


def test_of_several_the_least_is_promised() -> None:
    with (
        running(FakeEndpoint(models=listed({"id": "theirs", "context_length": 9000}))) as one,
        running(FakeEndpoint(models=listed({"id": "theirs", "context_length": 8000, "supports_image_in": False}))) as two,
    ):  # fmt: skip
        card = asyncio.run(discover([one, two])).card
    assert (card.context_length, card.supports_images) == (8000, False)


def test_the_key_is_sent() -> None:
    fake = FakeEndpoint(models=listed({"id": "theirs"}))
    with running(fake, key="sk-1") as place:
        asyncio.run(discover([place]))
    assert fake.headers[0]["authorization"] == "Bearer sk-1"


def test_the_key_is_not_repeated() -> None:
    fake = FakeEndpoint(models={"error": "no", "key": "sk-12345678"})
    with running(fake, key="sk-12345678") as place:
        found = asyncio.run(discover([place]))
        fake.models = "wrong key: sk-12345678"
        again = asyncio.run(discover([place]))
    assert "sent no list of models" in found.warnings[0]
    assert "wrong key: ***" in again.warnings[0]
