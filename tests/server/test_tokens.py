"""Counting and tokenizing without an answer."""

import json
from typing import Any

import pytest

from moonlet.chat.fake import FakeProvider
from moonlet.chat.provider import Finish, Usage
from moonlet.errors import MediaError
from moonlet.server import create_app
from moonlet.server.profiles import OPENAI
from tests.server.running import Running, serving

CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def provider() -> FakeProvider:
    return FakeProvider([Finish("stop", Usage(7, 1, 0))])


def post(server: Running, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    return server.post(json.dumps(body).encode(), path)


def test_the_estimate_is_the_usage_of_the_answer(server: Running) -> None:
    status, counted = post(server, "/v1/tokenizers/estimate-token-count", CHAT)
    _, answer = post(server, "/v1/chat/completions", CHAT)
    assert (status, counted) == (200, {"data": {"total_tokens": answer["usage"]["prompt_tokens"]}})


def test_an_estimate_is_refused_as_the_chat_would_be(server: Running) -> None:
    for body in ({**CHAT, "messages": []}, {**CHAT, "model": "other"}, {**CHAT, "tools": 3}):
        refused = [
            post(server, path, body)
            for path in ("/v1/tokenizers/estimate-token-count", "/v1/chat/completions")
        ]
        assert refused[0][0] == refused[1][0] >= 400
        assert refused[0][1]["error"] == refused[1][1]["error"]


def test_an_estimate_of_a_prompt_that_cannot_be_rendered() -> None:
    provider = FakeProvider([MediaError("no image", "messages[0].content[0]")])
    with serving(create_app(provider)) as server:
        status, body = post(server, "/v1/tokenizers/estimate-token-count", CHAT)
    assert (status, body["error"]["param"]) == (400, "messages[0].content[0]")


def test_there_and_back(server: Running) -> None:
    status, told = post(
        server, "/tokenize", {"model": "fake", "prompt": "hé", "return_token_strs": True}
    )
    assert status == 200
    assert told == {
        "count": 3,
        "max_model_len": 4096,
        "tokens": [104, 195, 169],
        "token_strs": ["h", "\ufffd", "\ufffd"],
    }
    assert post(server, "/detokenize", {"tokens": told["tokens"]}) == (200, {"prompt": "hé"})
    assert post(server, "/tokenize", {"prompt": ""})[1]["tokens"] == []
    assert post(server, "/detokenize", {"tokens": []}) == (200, {"prompt": ""})


def test_the_prompt_of_a_chat_as_tokens(server: Running) -> None:
    for more in ({}, {"model": "fake", "add_generation_prompt": True}):
        status, told = post(server, "/tokenize", {"messages": CHAT["messages"], **more})
        assert (status, told["count"], told["tokens"]) == (200, 7, [0] * 7)
    with serving(
        create_app(FakeProvider([Finish("stop", Usage(7, 1, 0))]), profile=OPENAI)
    ) as other:
        body = {"messages": CHAT["messages"], "return_token_strs": True}
        assert post(other, "/tokenize", body)[1]["token_strs"] == ["\0"] * 7


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": CHAT["messages"], "tools": 3}, "tools"),
        (
            "/tokenize",
            {"messages": CHAT["messages"], "add_generation_prompt": False},
            "add_generation_prompt",
        ),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [256]}, "tokens"),
    ],
)
def test_refusals(server: Running, path: str, body: dict[str, Any], param: str) -> None:
    status, told = post(server, path, body)
    assert (status, told["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_another_model(server: Running, path: str) -> None:
    assert post(server, path, {"model": "other", "prompt": "a", "tokens": []})[0] == 404
