"""The provider of this process: a real engine on a tiny checkpoint, and a scripted one for the words."""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from moonlet.chat.messages import parse_messages
from moonlet.chat.provider import (
    ChatRequest,
    Completion,
    ModelCard,
    ReasoningDelta,
    Sampling,
    Started,
    TextDelta,
    collect,
)
from moonlet.chat.template import ChatTemplate
from moonlet.chat.tokenizer import BYTE_TOKENS, Tokenizer, write_vocabulary
from moonlet.checkpoint import save_checkpoint
from moonlet.config import preset
from moonlet.engine import Drawn, Finished, GenerateRequest, LocalProvider, load
from moonlet.engine.local import compute_type, sampling_defaults
from moonlet.engine.provider import MEDIA_WAITING, SamplingDefaults
from moonlet.engine.stream import Item, Stream
from moonlet.errors import CheckpointError, EngineError, MediaError, PromptError, TokenizerError
from moonlet.model import Model, build_on_meta
from tests.tiny_checkpoint import write_tiny_checkpoint

TINY = preset("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def provider(folder: Path) -> Iterator[LocalProvider]:
    provider = load(folder, "tiny")
    yield provider
    provider.close()


def request(text: str | list[dict[str, Any]] = "hi", **more: Any) -> ChatRequest:
    more.setdefault("sampling", Sampling(seed=3))
    return ChatRequest(parse_messages([{"role": "user", "content": text}]), **more)


def answer(provider: LocalProvider, asked: ChatRequest) -> Completion:
    return asyncio.run(collect(provider.stream(asked)))


def picture(width: int, height: int, colour: str = "red") -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def test_the_card_tells_what_the_model_can(provider: LocalProvider) -> None:
    card = provider.card
    assert (card.id, card.context_length) == ("tiny", TINY.max_position_embeddings)
    assert card.supports_images
    assert card.supports_reasoning


def test_an_answer_counts_its_tokens(provider: LocalProvider) -> None:
    completions = [
        answer(provider, request(max_tokens=20, sampling=Sampling(seed=i))) for i in range(6)
    ]
    for completion in completions:
        cut_off = completion.finish_reason == "length"
        assert completion.usage.completion_tokens in ({20} if cut_off else range(1, 21))
    completion = completions[0]
    # role token, "user", middle, "hi", end; role token, "assistant", middle, think
    assert completion.usage.prompt_tokens == 1 + 4 + 1 + 2 + 1 + 1 + 9 + 1 + 1


def test_the_same_seed_gives_the_same_answer(provider: LocalProvider) -> None:
    assert answer(provider, request(max_tokens=30)) == answer(provider, request(max_tokens=30))


def test_images_reach_the_model(provider: LocalProvider) -> None:
    greedy = Sampling(temperature=0)
    small = answer(provider, request([picture(28, 28)], max_tokens=5, sampling=greedy))
    wide = answer(provider, request([picture(84, 56)], max_tokens=5, sampling=greedy))
    assert wide.usage.prompt_tokens == small.usage.prompt_tokens + 5


def test_what_an_image_shows_changes_the_answer(provider: LocalProvider) -> None:
    greedy = Sampling(temperature=0)
    seen = {
        answer(provider, request([picture(28, 28, colour)], max_tokens=12, sampling=greedy)).text
        + answer(
            provider, request([picture(28, 28, colour)], max_tokens=12, sampling=greedy)
        ).reasoning
        for colour in ("black", "white", "red", "blue")
    }
    assert len(seen) > 1


def test_a_bad_image_is_refused_with_its_place(provider: LocalProvider) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(MediaError) as caught:
        answer(provider, request([{"type": "text", "text": "x"}, part]))
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[0].content[1]")


def test_what_does_not_fit_the_context_is_refused(provider: LocalProvider) -> None:
    with pytest.raises(PromptError) as caught:
        answer(provider, request(max_tokens=TINY.max_position_embeddings))
    assert caught.value.param == "max_tokens"
    assert f"at most {TINY.max_position_embeddings - 21} new tokens fit" in str(caught.value)
    with pytest.raises(PromptError) as caught:
        answer(provider, request("x" * (TINY.max_position_embeddings + 1)))
    assert caught.value.param == "messages"


def test_small_models_are_computed_in_float32_and_large_ones_as_stored() -> None:
    assert compute_type(preset("nano")) == torch.float32
    assert compute_type(preset("moonlight-16b-a3b")) is None


def test_leaving_an_answer_frees_the_engine(
    provider: LocalProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Stream] = []
    submit = provider._engine.submit

    def spy(asked: GenerateRequest, sink: Callable[[Item], None], after: None) -> Stream:
        streams.append(submit(asked, sink, after))
        return streams[-1]

    monkeypatch.setattr(provider._engine, "submit", spy)

    async def leave() -> None:
        async with aclosing(provider.stream(request(max_tokens=4000))) as events:
            await anext(events)
            assert not streams[0].is_cancelled

    asyncio.run(leave())
    assert streams[0].is_cancelled
    assert answer(provider, request(max_tokens=3)).usage.completion_tokens > 0


def test_only_some_prompts_wait_with_their_pictures_decoded(
    provider: LocalProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded pictures are large: the next prompt is rendered when one has been computed."""
    sinks: list[Callable[[Item], None]] = []

    def submit(asked: GenerateRequest, sink: Callable[[Item], None], after: None) -> Stream:
        sinks.append(sink)
        return Stream(sink)

    monkeypatch.setattr(provider._engine, "submit", submit)

    async def ask() -> None:
        streams = [provider.stream(request([picture(28, 28)])) for _ in range(MEDIA_WAITING + 1)]
        steps = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
        waiting = set(steps)
        while len(waiting) > 1:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert all(isinstance(step.result(), Started) for step in done)
        [last] = waiting
        text = provider.stream(request())  # without pictures nobody waits
        assert isinstance(await anext(text), Started)
        assert not last.done()
        for sink in sinks:
            sink(Drawn(65))
        first = next(step for step in steps if step is not last)
        await anext(steps[first])
        assert isinstance(await last, Started)
        for stream in [*streams, text]:
            await stream.aclose()

    asyncio.run(ask())


class ScriptedEngine:
    """Answers with given items and remembers what was asked."""

    max_seq_len = 1000
    model = build_on_meta(TINY)
    end_ids: frozenset[int] = frozenset()

    def __init__(self, items: list[Item | int]) -> None:
        self.items = [Drawn(item) if isinstance(item, int) else item for item in items]
        self.asked: list[GenerateRequest] = []
        self.streams: list[Stream] = []

    def submit(
        self, asked: GenerateRequest, sink: Callable[[Item], None], after: Stream | None = None
    ) -> Stream:
        self.asked.append(asked)
        self.streams.append(Stream(sink))
        for item in self.items:
            sink(item)
        return self.streams[-1]

    def close(self) -> None: ...


def scripted(
    folder: Path, items: list[Item | int], defaults: SamplingDefaults | None = None
) -> tuple[LocalProvider, ScriptedEngine, Tokenizer]:
    tokenizer = Tokenizer.from_folder(folder)
    engine = ScriptedEngine(items)
    provider = LocalProvider(
        engine,  # pyright: ignore[reportArgumentType]
        tokenizer,
        ChatTemplate(tokenizer),
        ModelCard("scripted", 0, 1000, supports_reasoning=True),
        defaults or SamplingDefaults(),
    )
    return provider, engine, tokenizer


def test_thinking_and_answer_are_told_apart(folder: Path) -> None:
    _, _, tokenizer = scripted(folder, [])
    said = [*tokenizer.encode("hm"), tokenizer.id_of("</think>"), *tokenizer.encode("yes")]
    items: list[Item | int] = [*said, tokenizer.id_of("<|im_end|>"), Finished("stop")]
    provider, _, _ = scripted(folder, items)
    completion = answer(provider, request())
    assert (completion.reasoning, completion.text) == ("hm", "yes")
    assert completion.finish_reason == "stop"
    assert completion.usage.completion_tokens == 2 + 1 + 3 + 1
    assert completion.usage.reasoning_tokens == 2
    instant = answer(
        scripted(folder, [*tokenizer.encode("yes"), Finished("stop")])[0], request(thinking=False)
    )
    assert (instant.reasoning, instant.text) == ("", "yes")


def test_events_arrive_token_by_token(folder: Path) -> None:
    _, _, tokenizer = scripted(folder, [])
    items: list[Item | int] = [
        *tokenizer.encode("ab"),
        tokenizer.id_of("</think>"),
        *tokenizer.encode("cd"),
    ]
    provider, _, _ = scripted(folder, [*items, Finished("length")])

    async def events() -> list[Any]:
        return [event async for event in provider.stream(request())]

    got = asyncio.run(events())
    started, *told, _ = got
    assert started == Started(1 + 4 + 1 + 2 + 1 + 1 + 9 + 1 + 1)
    assert told == [ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("c"), TextDelta("d")]
    assert got[-1].reason == "length"


def test_a_stop_string_ends_the_generation(folder: Path) -> None:
    _, _, tokenizer = scripted(folder, [])
    items: list[Item | int] = [*tokenizer.encode("one END two"), Finished("length")]
    provider, engine, _ = scripted(folder, items)
    completion = answer(provider, request(thinking=False, stop=("END",)))
    assert (completion.text.strip(), completion.finish_reason) == ("one", "stop")
    assert engine.streams[0].is_cancelled


def test_an_error_of_the_engine_is_raised(folder: Path) -> None:
    provider, _, _ = scripted(folder, [65, EngineError("broken")])
    with pytest.raises(EngineError, match="broken"):
        answer(provider, request())


def test_sampling_defaults_depend_on_the_mode(folder: Path) -> None:
    provider, engine, _ = scripted(folder, [Finished("stop")])
    for thinking in (True, False):
        answer(provider, request(thinking=thinking, sampling=Sampling()))
    answer(provider, request(sampling=Sampling(temperature=0.3, top_p=0.5, top_k=7, seed=1)))
    used = [(a.sampling.temperature, a.sampling.top_p, a.sampling.top_k) for a in engine.asked]
    assert used == [(1.0, 0.95, 0), (0.6, 0.95, 0), (0.3, 0.5, 7)]


@pytest.mark.parametrize(
    ("content", "temperature"),
    [
        ({"do_sample": False}, 0),
        ({"temperature": 0.7, "top_p": 0.9}, 0.7),
        ({"max_length": 9}, 1.0),
    ],
)
def test_generation_config_decides(
    tmp_path: Path, content: dict[str, Any], temperature: float
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert sampling_defaults(tmp_path).thinking.temperature == temperature


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "hot"}', '{"temperature": -3}'])
def test_a_broken_generation_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        sampling_defaults(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_checkpoint(other, TINY, Model(TINY).state_dict())
    write_vocabulary(other / "tiktoken.model", [*BYTE_TOKENS, b"ab", b"cd"])
    with pytest.raises(CheckpointError, match="different models"):
        load(other, "other")


def test_a_fault_in_a_gguf_names_the_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokenizer is written to a folder first, which nobody has ever heard of."""
    from moonlet.cli.main import main

    path = tmp_path / "m.gguf"
    assert main(["convert", "nano", str(path), "--mix", "q8_0"]) == 0
    monkeypatch.setattr(
        Tokenizer, "from_folder", lambda folder: Tokenizer.from_file(folder / "gone.model")
    )
    with pytest.raises(TokenizerError, match=str(path)):
        load(path, "m")
