"""The checklist of a release, line by line, with the official clients and random weights behind the server."""

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from PIL import Image

from moonlet.chat.sources import MediaAccess
from moonlet.engine import load
from moonlet.server import create_app
from moonlet.server.file_store import FileStore
from moonlet.server.profiles import KIMI
from tests.server.running import Running, serving
from tests.tiny_checkpoint import write_tiny_checkpoint

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("count", "look")
]
ASK: list[Any] = [{"role": "user", "content": "hi"}]
ON, OFF = (
    {"thinking": {"type": "enabled"}, "thinking_budget": 6},
    {"thinking": {"type": "disabled"}},
)
BOTH = pytest.mark.parametrize("think", [False, True], ids=["instant", "thinking"])
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
KEY = "a-key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    store = FileStore(None)
    provider = load(folder, "tiny", access=MediaAccess(resolve_file=store.resolve))
    with serving(create_app(provider, files=store)) as running:
        yield running
    provider.close()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def strict(folder: Path) -> Iterator[openai.OpenAI]:
    """Kimi's rules, and a key."""
    provider = load(folder, "kimi-k2.5")
    with (
        serving(create_app(provider, profile=KIMI, api_keys=[KEY])) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client
    provider.close()


def chat(client: openai.OpenAI, think: bool = False, **more: Any) -> Any:
    extra = (ON if think else OFF) | more.pop("extra_body", {})
    asked: Any = {"model": "tiny", "messages": ASK, "seed": 1, "max_tokens": 300, **more}
    return client.chat.completions.create(**asked, extra_body=extra)


def answer(client: openai.OpenAI, stream: bool, **more: Any) -> dict[str, Any]:
    """What was said, collected by hand if it is a stream."""
    got = chat(client, stream=stream, **more)
    if not stream:
        [choice] = got.choices
        calls = [
            (c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []
        ]
        reasoning = getattr(choice.message, "reasoning_content", None) or ""
        said = {"reasoning": reasoning, "text": choice.message.content or "", "calls": calls}
        return said | {"finish": choice.finish_reason}
    said = {"reasoning": "", "text": "", "calls": {}, "finish": None}
    ids = set()
    for chunk in got:
        ids.add(chunk.id)
        for choice in chunk.choices:
            piece = getattr(choice.delta, "reasoning_content", None)
            assert not (piece and (said["text"] or said["calls"])), "a thought after the answer"
            said["reasoning"] += piece or ""
            said["text"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                one = said["calls"].setdefault(call.index, ["", "", ""])
                one[0] += call.id or ""
                one[1] += call.function.name or ""
                one[2] += call.function.arguments or ""
            assert not (said["finish"] and choice.finish_reason)
            said["finish"] = choice.finish_reason or said["finish"]
    assert len(ids) == 1
    return said | {"calls": [tuple(call) for call in said["calls"].values()]}


def test_models_and_keys(client: openai.OpenAI, strict: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.supports_image_in) == ("tiny", True)  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        chat(client, model="another")
    assert [model.id for model in strict.models.list().data] == ["kimi-k2.5"]
    with pytest.raises(openai.AuthenticationError):
        strict.with_options(api_key="wrong").models.list()


def test_a_stream_ends_with_usage_and_done(client: openai.OpenAI, server: Running) -> None:
    chunks = list(chat(client, max_tokens=5, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    plain = chat(client, max_tokens=5)
    assert plain.usage.prompt_tokens == chunks[-1].usage.prompt_tokens
    body = {"model": "tiny", "messages": ASK, "max_tokens": 2, "stream": True}
    raw = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).text
    assert raw.endswith("data: [DONE]\n\n")


@STREAMED
def test_thinking_comes_first_or_not_at_all(client: openai.OpenAI, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    thought = answer(client, stream, think=True, response_format=form)
    assert thought["reasoning"]
    assert json.loads(thought["text"]).keys() == {"ok"}
    for switch in (OFF, {"chat_template_kwargs": {"thinking": False}}):
        assert not answer(client, stream, extra_body=switch, max_tokens=5)["reasoning"]
    with pytest.raises(openai.BadRequestError):
        chat(client, extra_body=OFF | {"chat_template_kwargs": {"thinking": True}})


def test_fixed_parameters(client: openai.OpenAI, strict: openai.OpenAI) -> None:
    for wrong in ({"temperature": 1.1}, {"top_p": 0.8}, {"n": 2}, {"presence_penalty": 0.5}):
        with pytest.raises(openai.BadRequestError):
            chat(strict, model="kimi-k2.5", max_tokens=2, **wrong)
        assert chat(client, max_tokens=2, **wrong).choices
    assert chat(strict, model="kimi-k2.5", max_tokens=2, temperature=0.6, top_p=0.95).choices


def test_where_answers_end(client: openai.OpenAI) -> None:
    whole = chat(client, max_tokens=40, temperature=0)
    assert whole.choices[0].finish_reason == "length"
    text = whole.choices[0].message.content
    stops = [text[9:11], "never1", "never2", "never3", "never4"]
    for count in (1, 5):
        cut = chat(client, max_tokens=40, temperature=0, stop=stops[:count]).choices[0]
        assert (cut.message.content, cut.finish_reason) == (text[: text.index(stops[0])], "stop")
    with pytest.raises(openai.BadRequestError):
        chat(client, max_tokens=10**8)


@BOTH
@STREAMED
@pytest.mark.parametrize("choice", ["auto", "none", "required", "named"])
def test_tools(client: openai.OpenAI, choice: Any, stream: bool, think: bool) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    wanted = named if choice == "named" else choice
    said = answer(client, stream, think=think, tools=TOOLS, tool_choice=wanted,
                  parallel_tool_calls=False, max_tokens=120)  # fmt: skip
    assert "<|" not in said["text"]
    if choice in ("required", "named"):
        [(call_id, name, arguments)] = said["calls"]
        assert call_id == f"functions.{name}:0"
        assert name == "look" or choice == "required"
        assert json.loads(arguments).keys() == {"ok"}
        assert (said["text"], said["finish"]) == ("", "tool_calls")
    elif choice == "none":
        assert not said["calls"]


@pytest.mark.parametrize("foreign", ["call_abc", "toolu_1", "functions.look:7"])
def test_a_history_with_foreign_ids_and_no_reasoning(client: openai.OpenAI, foreign: str) -> None:
    call = {"id": foreign, "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": foreign, "content": "seen"}]  # fmt: skip
    said = answer(client, False, messages=turns, tools=TOOLS, tool_choice="required",
                  parallel_tool_calls=False)  # fmt: skip
    assert said["calls"][0][0].endswith(":1")


@BOTH
@STREAMED
@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_json(client: openai.OpenAI, kind: str, stream: bool, think: bool) -> None:
    form: Any = {"type": kind}
    if kind == "json_schema":
        form["json_schema"] = {"name": "a", "schema": SCHEMA, "strict": True}
    said = answer(client, stream, think=think, response_format=form)
    if kind == "json_schema" or said["finish"] == "stop":  # any object may be longer than the limit
        assert isinstance(json.loads(said["text"]), dict)
        assert "\n" not in said["text"]


def test_images(client: openai.OpenAI) -> None:
    def picture(color: str) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (56, 28), color).save(data, "PNG")
        return data.getvalue()

    def part(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url}}

    def seen(*urls: str) -> int:
        content = [*map(part, urls), {"type": "text", "text": "what?"}]
        turns = [{"role": "user", "content": content}]
        return chat(client, messages=turns, max_tokens=1).usage.prompt_tokens

    urls = [
        "data:image/png;base64," + base64.b64encode(picture(c)).decode() for c in ("red", "blue")
    ]
    uploaded = client.files.create(file=("r.png", picture("red")), purpose="image")  # type: ignore[arg-type]
    assert seen(urls[0]) == seen(f"ms://{uploaded.id}")
    one, two = seen(urls[0]), seen(*urls)
    assert seen(*urls, *urls) - two == 2 * (two - one)
    for wrong in ("data:image/png;base64,!!!", "http://127.0.0.1/x.png", "ms://file-gone"):
        with pytest.raises(openai.BadRequestError):
            seen(wrong)


def test_a_partial_answer_goes_on(client: openai.OpenAI) -> None:
    turns = [*ASK, {"role": "assistant", "content": "the be", "partial": True}]
    said = chat(client, messages=turns, max_tokens=4)
    assert said.usage.completion_tokens == 4
    assert said.usage.prompt_tokens > chat(client, max_tokens=4).usage.prompt_tokens


def test_estimates_are_exact(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": "tiny", "messages": ASK, "tools": TOOLS}
    told: Any = client.post("/tokenizers/estimate-token-count", cast_to=object, body=asked | OFF)
    assert (
        told["data"]["total_tokens"] == chat(client, tools=TOOLS, max_tokens=1).usage.prompt_tokens
    )
    counted = claude.messages.count_tokens(model="tiny", messages=ASK).input_tokens
    said = claude.messages.create(model="tiny", messages=ASK, max_tokens=2)
    assert said.usage.input_tokens == counted


def test_logprobs_and_seeds(client: openai.OpenAI) -> None:
    said = chat(client, max_tokens=6, logprobs=True, top_logprobs=3, temperature=0)
    content = said.choices[0].logprobs.content
    assert len(content) == 6
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.logprob == max(top.logprob for top in one.top_logprobs)
    for temperature in (0, 1.5):
        again = {
            chat(client, max_tokens=12, temperature=temperature, seed=7).choices[0].message.content
            for _ in range(3)
        }
        assert len(again) == 1


def test_who_leaves_makes_room(client: openai.OpenAI, server: Running) -> None:
    stream = chat(client, stream=True, max_tokens=2000)
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 10  # a busy machine; without load it is one step
    while gauge(server, "num_requests_running") > 0:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_many_streams_do_not_mix(client: openai.OpenAI) -> None:
    def ask(number: int) -> tuple[int, str]:
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": number}}}
        return number, answer(client, True, response_format=form)["text"]

    with ThreadPoolExecutor(64) as pool:
        done, _ = wait_for([pool.submit(ask, number) for number in range(1000, 1064)])
    assert len(done) == 64
    for one in done:
        number, text = one.result()
        assert text == str(number)


def test_event_orders(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    events = list(
        client.responses.create(model="tiny", input="hi", max_output_tokens=8, stream=True)
    )
    names = [event.type for event in events]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with claude.messages.stream(model="tiny", messages=ASK, max_tokens=8) as stream:
        kinds = [event.type for event in stream]
    raw = [kind for kind in kinds if kind.startswith(("message_", "content_block_"))]
    assert raw[0] == "message_start"
    assert raw[-2:] == ["message_delta", "message_stop"]
    assert raw.count("content_block_start") == raw.count("content_block_stop") >= 1


def test_files(client: openai.OpenAI) -> None:
    made = client.files.create(file=("a.txt", b"hello"), purpose="file-extract")  # type: ignore[arg-type]
    assert made.id in [file.id for file in client.files.list()]
    assert client.files.retrieve(made.id).bytes == 5
    assert client.files.content(made.id).read()
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a.txt", b"hello"), purpose="nothing")  # type: ignore[arg-type]


def gauge(server: Running, name: str) -> float:
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"moonlet:{name}"))


def test_metrics_and_health(client: openai.OpenAI, server: Running, folder: Path) -> None:
    before = gauge(server, "generation_tokens_total")
    chat(client, max_tokens=3)
    assert gauge(server, "generation_tokens_total") == before + 3
    assert httpx2.get(f"{server.url}/health/ready").status_code == 200
    loading: Future[Any] = Future()
    with serving(create_app(loading)) as running:
        assert httpx2.get(f"{running.url}/health").status_code == 200
        assert httpx2.get(f"{running.url}/health/ready").status_code == 503
        with (
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as early,
            pytest.raises(openai.InternalServerError) as caught,
        ):
            chat(early)
        assert caught.value.status_code == 503
        provider = load(folder, "tiny")
        loading.set_result(provider)
        assert httpx2.get(f"{running.url}/health/ready").status_code == 200
        provider.close()


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"temperature": 9}, 400),
        ({"messages": []}, 400),
        ({"messages": [{"role": "user", "content": "x" * 10**6}]}, 400),
        ({"model": "nobody"}, 404),
        ({"tool_choice": "required"}, 400),
    ],
)
def test_errors_are_objects(client: openai.OpenAI, wrong: dict[str, Any], status: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, **wrong)
    assert caught.value.status_code == status
    body: Any = caught.value.body
    assert body["message"]
    assert body["type"]


def test_too_many_are_told_to_come_back(folder: Path) -> None:
    def ask(_: int) -> int:
        try:
            chat(client, messages=[{"role": "user", "content": "y" * 1500}], max_tokens=60)
        except openai.APIStatusError as error:
            waits = int(error.response.headers.get("retry-after", 0))
            return error.status_code if waits else -1
        return 200

    provider = load(folder, "tiny")
    with (
        serving(create_app(provider, max_waiting=1)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client,
        ThreadPoolExecutor(24) as pool,
    ):
        assert set(pool.map(ask, range(24))) == {200, 429}
    provider.close()
