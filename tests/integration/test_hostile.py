"""A client that means harm, in front of a real engine: extremes of every field, schemas, tokens, hanging up."""

import json
import random
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from moonlet.engine import LocalProvider, load
from moonlet.engine.grammar import GrammarCompiler
from moonlet.server import create_app
from tests.server.running import WAIT_S, Running, serving
from tests.tiny_checkpoint import write_tiny_checkpoint

ASK: dict[str, Any] = {
    "model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "seed": 1,
    "thinking": {"type": "disabled"},
}  # fmt: skip
VOCABULARY = 512


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalProvider]:
    provider = load(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), "tiny")
    yield provider
    provider.close()


@pytest.fixture(scope="module")
def server(provider: LocalProvider) -> Iterator[Running]:
    with serving(create_app(provider)) as running:
        yield running


def ask(server: Running, path: str = "/v1/chat/completions", **more: Any) -> tuple[int, Any]:
    body = {name: value for name, value in {**ASK, **more}.items() if value is not ...}
    return server.post(json.dumps(body).encode(), path)


def refusal(told: Any) -> str:
    message = told["error"]["message"]
    assert 0 < len(message) < 700
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "more",
    [
        {"top_p": 5e-324}, {"top_p": 1}, {"temperature": 0}, {"temperature": 1e-5}, {"temperature": 2},
        {"min_p": 1}, {"min_p": 5e-324}, {"top_k": 1}, {"top_k": 2**31 - 1}, {"repetition_penalty": 0.01},
        {"repetition_penalty": 10}, {"presence_penalty": -2, "frequency_penalty": -2}, {"seed": -(2**63)},
        {"seed": 2**63 - 1}, {"n": 16}, {"stop": ["x" * 1024] * 5}, {"logprobs": True, "top_logprobs": 20},
        {"logit_bias": {str(VOCABULARY - 1): 100}}, {"logit_bias": {str(i): -100 for i in range(VOCABULARY)}},
        {"thinking": {"type": "enabled", "budget_tokens": 1}}, {"deadline_s": 5e-324},
    ],
)  # fmt: skip
def test_the_last_value_that_is_allowed(server: Running, more: dict[str, Any]) -> None:
    status, told = ask(server, **more)
    assert status == 200, told
    assert all(choice["finish_reason"] in ("stop", "length") for choice in told["choices"])


def test_no_time_at_all(server: Running) -> None:
    status, told = ask(server, deadline_s=0)
    assert (status, told["choices"][0]["finish_reason"]) == (200, "length")
    assert told["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"logit_bias": {str(VOCABULARY): 1}}, "logit_bias"),
        ({"logit_bias": {"999999999": -1}}, "logit_bias"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"max_tokens": 8192}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "ab"}] * 100_000}, "messages"),
        ({"n": 17}, "n"),
    ],
)
def test_the_first_value_that_is_not(server: Running, more: dict[str, Any], param: str) -> None:
    status, told = ask(server, **more)
    assert (status, told["error"]["param"]) == (400, param), told
    refusal(told)


@pytest.mark.parametrize(
    "prompt", [[277] * 50, [511, 0, 256, 276], "<|media_pad|>" * 9, "</think><think>"]
)
def test_tokens_that_mean_something_else_elsewhere(server: Running, prompt: Any) -> None:
    status, told = ask(server, "/v1/completions", prompt=prompt, messages=..., logprobs=2)
    assert status == 200, told


@pytest.mark.parametrize(
    "prompt", [[512], [2**31 - 1], [-1], [1.0], [True], "x" * 2_000_000, [1] * 9000]
)
def test_tokens_that_are_none_or_too_many(server: Running, prompt: Any) -> None:
    status, told = ask(server, "/v1/completions", prompt=prompt, messages=...)
    assert (status, told["error"]["param"][:6]) == (400, "prompt")
    refusal(told)


def test_a_text_is_not_tokenized_beyond_any_use(server: Running) -> None:
    for path, body in (
        ("/tokenize", {"prompt": "é" * 5_000_000}),
        ("/v1/tokenizers/estimate-token-count", {**ASK, "messages": [{"role": "user", "content": "é" * 5_000_000}]}),
    ):  # fmt: skip
        status, told = server.post(json.dumps(body, ensure_ascii=False).encode(), path)
        assert (status, "more than 1048576 tokens" in refusal(told)) == (400, True)


# Schemas


def many(count: int, value: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": value for i in range(count)}}


def deep(levels: int, leaf: Any) -> Any:
    for _ in range(levels):
        leaf = {"type": "object", "properties": {"a": leaf}, "required": ["a"]}
    return leaf


CYCLE = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
SCHEMAS: dict[str, Any] = {
    "a reference to itself": {"$ref": "#"},
    "references in a circle": {"$defs": CYCLE, "$ref": "#/$defs/a"},
    "alternatives in a circle": {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 9}}, "$ref": "#/$defs/a"},
    "no end": {"$defs": {"a": deep(1, {"$ref": "#/$defs/a"})}, "$ref": "#/$defs/a"},
    "a reference elsewhere": {"$ref": "http://127.0.0.1/schema.json"},
    "thirty choices of two": many(30, {"enum": ["x", "y"]}) | {"required": [f"p{i}" for i in range(30)]},
    "a product": {"allOf": [{"anyOf": [many(2, {"const": i * j}) for i in range(8)]} for j in range(10)]},
    "many properties": many(5000, {}),
    "many optional properties": many(3000, {"type": "integer"}) | {"additionalProperties": False},
    "many required names": many(1, {}) | {"required": [f"p{i}" for i in range(20_000)]},
    "deep": deep(59, {"type": "null"}),
    "too deep": deep(61, {"type": "null"}),
    "a wall of alternatives": {"anyOf": [{"type": "string", "maxLength": i} for i in range(500)]},
    "a billion letters": {"type": "string", "minLength": 10**9},
    "a billion items": {"type": "array", "minItems": 10**9, "items": {}},
    "a huge number": {"type": "integer", "minimum": 10**300},
    "a huge multiple": {"type": "integer", "multipleOf": 999_983},
    "nested quantifiers": {"type": "string", "pattern": "^((a+)+)+$"},
    "overlapping alternatives": {"type": "string", "pattern": "^(a|aa|aaa)*(b|bb)*c{1000}$"},
    "a counted tower": {"type": "string", "pattern": "^(((x{500}){500}){500}){500}$"},
    "an exponential automaton": {"type": "string", "pattern": "^(a|b)*a(a|b){200}$"},
    "every letter": {"type": "string", "pattern": "^[\\p{L}\\p{N}\\p{S}]{0,5000}$"},
    "a look behind": {"type": "string", "pattern": "(?<=a)b"},
    "a pattern of megabytes": {"type": "string", "pattern": "(a|b)" * 200_000},
    "patterns as names": {"type": "object", "patternProperties": {f"^(a|b)*a.{{{i}}}$": {} for i in range(40)}},
    "nothing": {"type": "object", "additionalProperties": False, "required": ["a"]},
}  # fmt: skip


def holds(schema: Any, text: str) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_that_blow_up(server: Running, name: str) -> None:
    """Refused, or followed: cut off where the answer is endless, valid where it came to its end."""
    schema = SCHEMAS[name]
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    status, told = ask(server, response_format=form, max_tokens=40)
    assert status in (200, 400), told
    if status == 400:
        refusal(told)
    elif told["choices"][0]["finish_reason"] == "stop":
        assert holds(schema, told["choices"][0]["message"]["content"])
    function = {"name": "f", "parameters": schema, "strict": True}
    tools = [{"type": "function", "function": function}]
    status, told = ask(server, tools=tools, tool_choice="required", max_tokens=40)
    assert status in (200, 400), told


def test_who_compiles_keeps_nobody_waiting(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than there are threads wait for their schemas: another client has its answer."""
    go_on, compiling = threading.Event(), threading.Event()

    def slow(self: GrammarCompiler, schema: Any, param: str = "") -> Any:
        compiling.set()
        assert go_on.wait(WAIT_S)
        raise AssertionError("told to end")

    monkeypatch.setattr(GrammarCompiler, "schema", slow)
    with ThreadPoolExecutor(40) as pool:
        form = {"type": "json_object"}
        waiting = [pool.submit(ask, server, response_format=form) for _ in range(40)]
        try:
            assert compiling.wait(WAIT_S)
            assert ask(server)[0] == 200
            assert ask(server, "/tokenize", prompt="hi", messages=...)[0] == 200
        finally:
            go_on.set()
        assert all(answer.result()[0] == 500 for answer in waiting)


# Hanging up


def test_hanging_up_at_any_moment(server: Running, provider: LocalProvider) -> None:
    dice = random.Random(7)

    def ask_and_leave(number: int) -> None:
        more = {"stream": number % 2 == 0, "max_tokens": 400, "n": 1 + number % 3}
        if number % 4 == 0:
            more["response_format"] = {"type": "json_object"}
        text = "xyz"[number % 3] * dice.randrange(1, 3000)
        body = json.dumps({**ASK, **more, "messages": [{"role": "user", "content": text}]}).encode()
        start = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as sock:
            sock.sendall((start.encode() + body)[: dice.randrange(1, 2 * len(body))])
            sock.settimeout(dice.uniform(0.001, 0.3))
            try:
                while sock.recv(4096):
                    pass
            except OSError:
                pass

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask_and_leave, range(60)))
    status, told = ask(server)
    assert (status, told["usage"]["completion_tokens"]) == (200, 6)
    while (stats := provider.stats())["requests_running"] or stats["requests_waiting"]:
        pass  # until the engine has seen that they are gone; a hang is the test's time limit
    assert stats["cache_pages_available"] == stats["cache_pages"]
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=WAIT_S) as response:
        lines = response.read().decode().splitlines()
    assert "moonlet:num_requests_running 0.0" in lines
