"""The whole way, from an official client to random weights and back: what must hold whatever these say."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from PIL import Image

from moonlet.chat.sources import MediaAccess
from moonlet.engine import load
from moonlet.server import create_app
from moonlet.server.file_store import FileStore
from tests.server.running import Running, serving
from tests.tiny_checkpoint import write_tiny_checkpoint

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "count", "parameters": SCHEMA}}]
ASK: list[Any] = [{"role": "user", "content": "hi"}]
INSTANT = {"thinking": {"type": "disabled"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = FileStore(None)
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    provider = load(folder, "tiny", access=MediaAccess(resolve_file=store.resolve))
    with serving(create_app(provider, files=store)) as running:
        yield running
    provider.close()


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    )


def chat(client: openai.OpenAI, **more: Any) -> Any:
    more = {"model": "tiny", "messages": ASK, "seed": 1, "max_tokens": 300} | more
    return client.chat.completions.create(**more)


def assembled(chunks: Any) -> tuple[str, list[tuple[str, str, str]], str]:
    text, calls, finish = "", {}, ""
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                one = calls.setdefault(call.index, ["", "", ""])
                one[0] += call.id or ""
                one[1] += call.function.name or ""
                one[2] += call.function.arguments or ""
            finish = choice.finish_reason or finish
    return text, [tuple(call) for call in calls.values()], finish


def test_a_schema_holds_and_streams_the_same(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    plain = chat(client, response_format=form, extra_body=INSTANT)
    value = json.loads(plain.choices[0].message.content)
    assert set(value) == {"ok", "n"}
    streamed = chat(client, response_format=form, extra_body=INSTANT, stream=True)
    assert assembled(streamed) == (plain.choices[0].message.content, [], "stop")


@pytest.mark.parametrize("thinking", [False, True])
def test_a_forced_call_holds_and_streams_the_same(client: openai.OpenAI, thinking: bool) -> None:
    extra = {"thinking_budget": 12} if thinking else INSTANT
    asked = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    message = chat(client, **asked, extra_body=extra).choices[0].message
    [call] = message.tool_calls
    assert call.id == "functions.count:0"
    assert set(json.loads(call.function.arguments)) == {"ok", "n"}
    text, calls, finish = assembled(chat(client, **asked, extra_body=extra, stream=True))
    assert (text, finish) == ("", "tool_calls")
    assert calls == [(call.id, "count", call.function.arguments)]


def test_counts_agree_everywhere(client: openai.OpenAI, server: Running) -> None:
    used = chat(client, max_tokens=1, tools=TOOLS).usage.prompt_tokens
    status, body = server.post(
        json.dumps({"model": "tiny", "messages": ASK, "tools": TOOLS}).encode(),
        "/v1/tokenizers/estimate-token-count",
    )
    assert (status, body["data"]["total_tokens"]) == (200, used)


def test_an_uploaded_picture_is_the_picture(client: openai.OpenAI) -> None:
    data = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(data, "PNG")
    raw = data.getvalue()
    uploaded = client.files.create(file=("red.png", raw), purpose="image")  # type: ignore[arg-type]
    answers = []
    for url in (f"ms://{uploaded.id}", "data:image/png;base64," + base64.b64encode(raw).decode()):
        part = {"type": "image_url", "image_url": {"url": url}}
        answer = chat(
            client, messages=[{"role": "user", "content": [part]}], max_tokens=8, temperature=0
        )
        answers.append((answer.usage.prompt_tokens, answer.choices[0].message))
    assert answers[0] == answers[1]
    gone = {"type": "image_url", "image_url": {"url": "ms://file-gone"}}
    with pytest.raises(openai.BadRequestError, match="no uploaded file"):
        chat(client, messages=[{"role": "user", "content": [gone]}])


def test_the_other_dialects_reach_the_model(client: openai.OpenAI, server: Running) -> None:
    response = client.responses.create(
        model="tiny", input="hi", max_output_tokens=200, reasoning={"effort": "none"},
        tools=[{"type": "function", "name": "count", "parameters": SCHEMA, "strict": True}],
        tool_choice="required", parallel_tool_calls=False,
    )  # fmt: skip
    [call] = [item for item in response.output if item.type == "function_call"]
    assert set(json.loads(call.arguments)) == {"ok", "n"}
    claude = anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{server.port}", api_key="none", max_retries=0
    )
    message = claude.messages.create(
        model="tiny", max_tokens=200, messages=ASK,
        tools=[{"name": "count", "input_schema": SCHEMA}],
        # One call: random weights have no seed in this dialect, and may well call until the limit.
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )  # fmt: skip
    assert message.stop_reason == "tool_use"
    text = client.completions.create(model="tiny", prompt="ab", max_tokens=5, seed=1)
    assert text.usage is not None
    assert text.usage.prompt_tokens == 2


def test_a_second_turn_is_computed_from_where_the_first_ended(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": "w" * 300}]
    first = chat(client, messages=turns, max_tokens=5, extra_body=INSTANT)
    turns += [{"role": "assistant", "content": "so"}, {"role": "user", "content": "more"}]
    second = chat(client, messages=turns, max_tokens=5, extra_body=INSTANT)
    assert (
        second.usage.prompt_tokens_details.cached_tokens
        >= first.usage.prompt_tokens // 64 * 64 - 64
    )
    assert second.usage.prompt_tokens_details.cached_tokens > 0
