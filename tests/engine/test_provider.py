"""What the provider of this process does beyond one plain answer, on random weights: whatever these say,
schemas, forced calls and budgets must hold."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import (
    ChatRequest,
    Completion,
    Sampling,
    TextRequest,
    collect,
    collect_all,
)
from moonlet.config import preset
from moonlet.engine import CacheFolder, LocalProvider, load
from moonlet.engine.local import fingerprint
from moonlet.errors import PromptError
from tests.tiny_checkpoint import write_tiny_checkpoint

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "sky": {"enum": ["blue", "grey"]},
    },
    "required": ["city", "days", "sky"],
    "additionalProperties": False,
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalProvider]:
    folder: Path = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    provider = load(folder, "tiny")
    yield provider
    provider.close()


def asked(*turns: dict[str, Any], **more: Any) -> ChatRequest:
    more.setdefault("sampling", Sampling(seed=3))
    more.setdefault("max_tokens", 400)
    more.setdefault("thinking", False)
    return ChatRequest(parse_messages(list(turns) or [{"role": "user", "content": "hi"}]), **more)


def answer(provider: LocalProvider, request: ChatRequest) -> Completion:
    return asyncio.run(collect(provider.stream(request)))


def holds(arguments: str) -> bool:
    value = json.loads(arguments)
    return (
        set(value) == {"city", "days", "sky"}
        and len(value["city"]) <= 8
        and value["days"] in range(1, 10)
        and value["sky"] in ("blue", "grey")
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_satisfied(provider: LocalProvider, seed: int) -> None:
    found = answer(provider, asked(schema=SCHEMA, sampling=Sampling(seed=seed)))
    assert found.finish_reason == "stop"
    assert holds(found.text)
    assert "\n" not in found.text


def test_a_schema_waits_for_the_end_of_the_thinking(provider: LocalProvider) -> None:
    found = answer(provider, asked(schema=SCHEMA, thinking=True, thinking_budget=20))
    assert found.reasoning
    assert found.usage.reasoning_tokens <= 20
    assert holds(found.text)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("only_tool", [None, "rain"])
def test_a_forced_call_is_one(
    provider: LocalProvider, thinking: bool, only_tool: str | None
) -> None:
    request = asked(
        tools=[tool("weather"), tool("rain")],
        must_call=True,
        only_tool=only_tool,
        parallel_tool_calls=False,
        thinking=thinking,
        thinking_budget=9 if thinking else None,
    )
    found = answer(provider, request)
    assert found.finish_reason == "tool_calls"
    [call] = found.tool_calls
    assert call.name == only_tool or only_tool is None
    assert call.id == f"functions.{call.name}:0"
    assert holds(call.arguments)
    assert found.text == ""


def test_ids_count_over_the_conversation(provider: LocalProvider) -> None:
    call = {
        "id": "functions.rain:0",
        "type": "function",
        "function": {"name": "rain", "arguments": "{}"},
    }
    request = asked(
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.rain:0", "content": "no"},
        tools=[tool("rain")],
        must_call=True,
        parallel_tool_calls=False,
    )
    assert [call.id for call in answer(provider, request).tool_calls] == ["functions.rain:1"]


def test_choices_differ_and_each_has_its_end(provider: LocalProvider) -> None:
    found = asyncio.run(collect_all(provider.stream(asked(n=3, max_tokens=12))))
    assert len({one.text for one in found}) == 3
    assert [one.usage.prompt_tokens for one in found] == [found[0].usage.prompt_tokens] * 3
    alone = answer(provider, asked(max_tokens=12))
    assert alone.text == found[0].text


def test_logprobs_are_told_for_every_visible_token(provider: LocalProvider) -> None:
    found = answer(provider, asked(max_tokens=15, logprobs=3, sampling=Sampling(temperature=0)))
    assert b"".join(one.token for one in found.logprobs).decode(errors="replace") == found.text
    for one in found.logprobs:
        assert len(one.top) == 3
        assert (one.token, one.logprob) == one.top[0]  # the likeliest was taken


def test_plain_text_goes_on(provider: LocalProvider) -> None:
    request = TextRequest("ab", Sampling(seed=1), max_tokens=9, n=2, logprobs=0)
    found = asyncio.run(collect_all(provider.complete(request)))
    assert [one.usage.prompt_tokens for one in found] == [2, 2]
    ids = provider.tokenize("ab")
    same = asyncio.run(
        collect_all(provider.complete(TextRequest(ids, Sampling(seed=1), max_tokens=9)))
    )
    assert same[0].text == found[0].text
    with pytest.raises(PromptError, match="no token 99999"):
        asyncio.run(collect(provider.complete(TextRequest([99999]))))
    assert provider.detokenize(ids) == "ab"


def test_counts_are_those_of_the_answer(provider: LocalProvider) -> None:
    request = asked(tools=[tool("rain")], max_tokens=1)
    counted = asyncio.run(provider.count_tokens(request))
    assert counted == answer(provider, request).usage.prompt_tokens


def test_what_was_computed_before_is_told_and_why_no_more(provider: LocalProvider) -> None:
    system, other = ({"role": "system", "content": c * 200} for c in "xy")
    user = {"role": "user", "content": "z" * 200}
    first = answer(provider, asked(system, user, max_tokens=1)).usage
    again = answer(provider, asked(system, user, max_tokens=1)).usage
    changed = answer(provider, asked(other, user, max_tokens=1)).usage
    assert first.cached_tokens < 64
    assert again.cached_tokens == (first.prompt_tokens - 1) // 64 * 64
    assert again.cache_break is None
    assert (changed.cached_tokens, changed.cache_break) == (0, "system_changed")


def test_a_reason_is_told_only_where_an_earlier_prompt_differs(tmp_path: Path) -> None:
    provider = load(write_tiny_checkpoint(tmp_path / "tiny"), "tiny")

    def told(*turns: dict[str, Any], **more: Any) -> str | None:
        return answer(provider, asked(*turns, max_tokens=1, **more)).usage.cache_break

    def say(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": text}

    try:
        long, system = say("user", "z" * 200), say("system", "s" * 300)
        assert [told(long, tools=[tool("rain")]) for _ in range(3)] == [None] * 3
        assert told(long, tools=[tool("hail")]) == "tools_changed"
        assert [told(say("user", "hi")) for _ in range(3)] == [None] * 3  # less than a page
        assert [told(long), told(say("user", "z" * 90 + "y" * 90))] == [None, None]
        turns = system, say("user", "a" * 90), say("assistant", "b" * 90), say("user", "c" * 90)
        assert [told(*turns), told(*turns), told(*turns[:2])] == [None] * 3
        assert told(*turns[:3], say("user", "d" * 90)) is None  # a new question
        assert told(system, say("user", "a" * 80), *turns[2:]) == "history_changed"
        assert told(*turns[:2], say("assistant", "e" * 90), turns[3]) == "history_changed"
        thought = turns[2] | {"reasoning_content": "f" * 90}
        keeping = asked(*turns[:2], thought, turns[3], max_tokens=1, preserve_thinking=True)
        assert answer(provider, keeping).usage.cache_break == "history_changed"
        other = say("system", "w" * 90)
        assert (
            told(other, *turns[1:2], thought, turns[3], preserve_thinking=True) == "system_changed"
        )
        assert told(other, *turns[1:2], thought, turns[3]) == "reasoning_dropped"
        assert told(say("system", "s" * 200 + "t" * 100), *turns[1:]) == "system_changed"
    finally:
        provider.close()


def test_a_partial_answer_goes_on(provider: LocalProvider) -> None:
    turns = (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "{", "partial": True},
    )
    found = answer(provider, asked(*turns, max_tokens=5, sampling=Sampling(temperature=0)))
    plain = answer(provider, asked(turns[0], max_tokens=1))
    assert found.usage.prompt_tokens == plain.usage.prompt_tokens + 1


def test_a_prompt_is_known_after_a_restart(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    request = asked({"role": "user", "content": "q" * 300}, max_tokens=2)
    usages = []
    for _ in range(2):
        provider = load(folder, "tiny", cache_folder=CacheFolder(tmp_path / "cache", 10**8))
        usages.append(answer(provider, request).usage)
        provider.close()
    cold, warm = usages
    assert cold.cached_tokens == 0
    assert warm.cached_tokens == warm.cached_disk_tokens == (warm.prompt_tokens - 1) // 64 * 64


def test_all_spoiled_pages_of_a_prompt_are_written_anew_at_once(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    request = asked({"role": "user", "content": "q" * 400}, max_tokens=2)
    cached = []
    for attempt in range(3):
        provider = load(folder, "tiny", cache_folder=CacheFolder(tmp_path / "cache", 10**8))
        cached.append(answer(provider, request).usage.cached_disk_tokens)
        provider.close()
        if attempt == 0:
            files = list((tmp_path / "cache").rglob("*.page"))
            for file in files:
                file.write_bytes(b"spoiled")
    assert len(files) > 3
    assert cached == [0, 0, 64 * len(files)]


def test_a_fingerprint_tells_models_and_ways_apart(tmp_path: Path) -> None:
    config = preset("tiny")
    one, other = (write_tiny_checkpoint(tmp_path / name) for name in ("one", "other"))
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = [
        fingerprint(one, config, "a"),
        fingerprint(other, config, "a"),
        fingerprint(one, config, "b"),
    ]
    assert len(set(found)) == 3
    assert fingerprint(one, config, "a") == found[0]
