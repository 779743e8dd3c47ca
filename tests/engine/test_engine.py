"""The engine against the bare model, and its promises about order, cancelling and errors."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import moonlet.engine.engine as engine_module
import moonlet.engine.lookup as lookup_module
from moonlet.chat.media import MediaItem
from moonlet.config import preset
from moonlet.engine import DiskTier, Drawn, Engine, Finished, GenerateRequest, SamplingParams
from moonlet.errors import EngineError
from moonlet.model import Media, Model

TINY = preset("tiny")
PAD = TINY.media_placeholder_token_id
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(TINY).eval().requires_grad_(False)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    engine = Engine(model, frozenset(), 300)
    yield engine
    engine.close()


def greedy_by_hand(
    model: Model, prompt: list[int], count: int, media: Media | None = None
) -> list[int]:
    """Without a cache: the whole sequence again for every token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), media=media)[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_tokens_are_those_of_the_model(model: Model, engine: Engine) -> None:
    prompt = [5, 9, 200, 31]
    stream = engine.submit(GenerateRequest(prompt, 12, sampling=GREEDY))
    assert list(stream) == greedy_by_hand(model, prompt, 12)
    assert stream.finished == Finished("length")


def test_an_end_token_stops_and_is_the_last(model: Model) -> None:
    expected = greedy_by_hand(model, [7, 8], 6)
    end = expected[3]
    engine = Engine(model, frozenset({end}), 100)
    stream = engine.submit(GenerateRequest([7, 8], 50, sampling=GREEDY))
    assert list(stream) == expected[: expected.index(end) + 1]
    assert stream.finished == Finished("stop")
    engine.close()


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_prompts_in_chunks_with_media_across_the_borders(
    model: Model, engine: Engine, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(engine_module, "MAX_CHUNK", chunk)
    rng = np.random.default_rng(0)
    grids = [(1, 4, 4), (1, 2, 2), (2, 4, 6)]
    items = [
        MediaItem(rng.standard_normal((t * h * w, 3, 14, 14), dtype=np.float32), (t, h, w))
        for t, h, w in grids
    ]
    prompt = [1, 2, *[PAD] * 4, *[PAD] * 1, 3, 4, 5, *[PAD] * 6, 6]
    media = Media(torch.cat([torch.from_numpy(item.patches) for item in items]), grids)
    stream = engine.submit(GenerateRequest(prompt, 5, items, GREEDY))
    assert list(stream) == greedy_by_hand(model, prompt, 5, media)


def test_the_same_seed_gives_the_same_tokens(engine: Engine) -> None:
    def run(seed: int | None) -> list[int]:
        return list(engine.submit(GenerateRequest([3], 20, sampling=SamplingParams(seed=seed))))

    assert run(4) == run(4)
    assert run(4) != run(5)
    assert run(None) != run(None)


def test_requests_are_answered_in_order(model: Model, engine: Engine) -> None:
    streams = [engine.submit(GenerateRequest([i], 4, sampling=GREEDY)) for i in range(5)]
    for i, stream in reversed(list(enumerate(streams))):
        assert list(stream) == greedy_by_hand(model, [i], 4)


def test_cancelling_frees_the_engine(engine: Engine) -> None:
    long = engine.submit(GenerateRequest([1], 299))
    tokens = iter(long)
    next(tokens)
    waiting = engine.submit(GenerateRequest([2], 299))
    waiting.cancel()
    long.cancel()
    assert len(list(tokens)) < 298
    assert long.finished is not None
    assert long.finished.reason == "cancelled"
    assert list(waiting) == []
    assert list(engine.submit(GenerateRequest([3], 2))) != []


def test_a_sink_receives_tokens_and_then_the_end(model: Model, engine: Engine) -> None:
    items: list[object] = []
    done = threading.Event()

    def sink(item: object) -> None:
        items.append(item.token if isinstance(item, Drawn) else item)
        if isinstance(item, Finished):
            done.set()

    engine.submit(GenerateRequest([5], 3, sampling=GREEDY), sink)
    assert done.wait(30)
    assert items == [*greedy_by_hand(model, [5], 3), Finished("length")]


@pytest.mark.parametrize(("prompt", "count"), [([], 5), ([1], 0), ([1] * 299, 2), ([1], 10**9)])
def test_what_cannot_fit_is_refused(engine: Engine, prompt: list[int], count: int) -> None:
    with pytest.raises(EngineError, match="at most 300"):
        engine.submit(GenerateRequest(prompt, count))


def test_an_error_reaches_the_one_who_asked_and_the_engine_goes_on(engine: Engine) -> None:
    broken = engine.submit(GenerateRequest([TINY.vocab_size + 5], 3))
    with pytest.raises(EngineError, match="generation failed"):
        list(broken)
    unmatched = MediaItem(np.zeros((16, 3, 14, 14), np.float32), (1, 4, 4))
    for prompt in ([1, PAD, 2], [PAD, 1, PAD, PAD, PAD], [PAD] * 5):
        with pytest.raises(EngineError, match="placeholders"):
            engine.submit(GenerateRequest(prompt, 3, [unmatched]))
    assert len(list(engine.submit(GenerateRequest([1], 3)))) == 3


@pytest.mark.parametrize(
    "error", [TypeError, ZeroDivisionError, AssertionError, KeyError, OverflowError]
)
@pytest.mark.parametrize("part", ["prefill", "decode"])
def test_no_exception_ends_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, part: str, error: type[Exception]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, part, broken)
        with pytest.raises(EngineError, match="generation failed"):
            list(engine.submit(GenerateRequest([1], 3)))
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, "plan", broken)
        with pytest.raises(EngineError, match="the engine failed"):
            list(engine.submit(GenerateRequest([1], 3)))
    assert len(list(engine.submit(GenerateRequest([1], 3)))) == 3


def test_a_sink_that_raises_cancels_its_request_only(engine: Engine) -> None:
    def sink(_: object) -> None:
        raise ValueError("listener")

    engine.submit(GenerateRequest([1], 299), sink)
    assert len(list(engine.submit(GenerateRequest([1], 3)))) == 3


def test_closing_ends_what_waits_and_refuses_more(model: Model) -> None:
    engine = Engine(model, frozenset(), 300)
    first, second = (engine.submit(GenerateRequest([1], 299)) for _ in range(2))
    next(iter(first))
    engine.close()
    assert len(list(second)) < 299
    assert second.finished == Finished("cancelled")
    with pytest.raises(EngineError, match="closed"):
        engine.submit(GenerateRequest([1], 1))


def test_closing_ends_the_running_request(model: Model) -> None:
    engine = Engine(model, frozenset(), 300)
    stream = engine.submit(GenerateRequest([1], 299))
    next(iter(stream))
    engine.close()
    list(stream)
    assert stream.finished is not None
    assert stream.finished.reason == "cancelled"


def test_weights_that_are_not_finite_are_an_error_not_noise(model: Model) -> None:
    broken = Model(TINY).eval().requires_grad_(False)
    broken.language_model.lm_head.weight.fill_(float("nan"))
    engine = Engine(broken, frozenset(), 100)
    with pytest.raises(EngineError, match="not finite"):
        list(engine.submit(GenerateRequest([1], 3)))
    engine.close()


def test_many_together_get_what_each_gets_alone(model: Model) -> None:
    """Seeded, of different lengths, more than the pages hold at once."""
    rng = np.random.default_rng(3)
    requests = [
        GenerateRequest(
            rng.integers(1, 200, size=rng.integers(1, 40)).tolist(),
            int(rng.integers(20, 90)),
            sampling=SamplingParams(1.0, 0.95, seed=i),
        )
        for i in range(16)
    ]
    engine = Engine(model, frozenset(), 300, pages=40, page_size=16)
    alone = [list(engine.submit(request)) for request in requests]
    assert [len(tokens) for tokens in alone] == [request.max_tokens for request in requests]
    engine.close()
    engine = Engine(model, frozenset(), 300, pages=19, page_size=16)
    streams = [engine.submit(request) for request in requests]
    assert [list(stream) for stream in streams] == alone
    assert engine.stats()["preemptions"] > 0
    assert engine.stats()["cache_pages_available"] == 19
    engine.close()


def test_a_prompt_seen_before_is_not_computed_again(model: Model) -> None:
    engine = Engine(model, frozenset(), 300, page_size=16)
    prompt = list(range(50))
    first = engine.submit(GenerateRequest(prompt, 20, sampling=GREEDY))
    answer = list(first)
    assert first.finished == Finished("length", 0)
    longer = [*prompt, *answer, 7, 7, 7]
    second = engine.submit(GenerateRequest(longer, 9, sampling=GREEDY))
    assert list(second) == greedy_by_hand(model, longer, 9)
    assert second.finished == Finished("length", 64)  # of 73
    engine.close()


def test_pictures_are_known_by_their_content(model: Model) -> None:
    engine = Engine(model, frozenset(), 300, page_size=4)
    rng = np.random.default_rng(0)
    one, other = (
        MediaItem(rng.standard_normal((64, 3, 14, 14), dtype=np.float32), (1, 8, 8)) for _ in "ab"
    )
    prompt = [1, 2, *[PAD] * 16, 3, 4, 5, 6, 7, 8]
    cached = []
    for item in (one, other, one):
        stream = engine.submit(GenerateRequest(prompt, 3, [item], GREEDY))
        media = Media(torch.from_numpy(item.patches), [item.grid])
        assert list(stream) == greedy_by_hand(model, prompt, 3, media)
        assert stream.finished is not None
        cached.append(stream.finished.cached_tokens)
    assert cached == [0, 0, 20]
    engine.close()


def test_answers_to_one_prompt_compute_it_once(model: Model) -> None:
    engine = Engine(model, frozenset(), 300, page_size=16)
    params = SamplingParams(seed=1)
    first = engine.submit(GenerateRequest(list(range(40)), 12, sampling=params))
    second = engine.submit(
        GenerateRequest(list(range(40)), 12, sampling=params, choice=1), after=first
    )
    assert list(first) != list(second)
    assert second.finished == Finished("length", 32)
    engine.close()


def test_pages_on_disk_outlive_the_engine(model: Model, tmp_path: Path) -> None:
    prompt = list(range(70))
    expected = greedy_by_hand(model, prompt, 5)
    for cached in (0, 64):
        disk = DiskTier(tmp_path, "tiny", 10**8)
        engine = Engine(model, frozenset(), 300, page_size=16, disk=disk)
        stream = engine.submit(GenerateRequest(prompt, 5, sampling=GREEDY))
        assert list(stream) == expected
        assert stream.finished == Finished("length", cached, cached)
        engine.close()


def test_what_was_evicted_is_said(model: Model) -> None:
    engine = Engine(model, frozenset(), 80, pages=6, page_size=16)
    for start, evicted in ((0, False), (100, False), (0, True)):
        stream = engine.submit(GenerateRequest(list(range(start, start + 60)), 5, sampling=GREEDY))
        list(stream)
        assert stream.finished is not None
        assert stream.finished.evicted == evicted
    engine.close()


def test_a_deadline_ends_an_answer_as_its_limit_does(engine: Engine) -> None:
    stream = engine.submit(GenerateRequest([1], 299, deadline_s=1e-3))
    assert len(list(stream)) < 299
    assert stream.finished is not None
    assert stream.finished.reason == "length"


class Pattern:
    """A guide that wants the tokens 1 2 3 1 2 3 ..."""

    def __init__(self) -> None:
        self.at = 0

    def mask(self) -> np.ndarray:
        mask = np.zeros(TINY.vocab_size, np.bool_)
        mask[self.at % 3 + 1] = True
        return mask

    def accept(self, token_id: int) -> None:
        assert token_id == self.at % 3 + 1
        self.at += 1

    def fork(self) -> "Pattern":
        return Pattern()


def test_a_guide_is_followed_and_drafts_agree_with_it(model: Model) -> None:
    """What repeats is drafted: the steps are fewer than the tokens, which are the same."""
    engine = Engine(model, frozenset(), 300)
    stream = engine.submit(GenerateRequest([5], 90, guide=Pattern()))
    assert list(stream) == [1, 2, 3] * 30
    assert engine.stats()["steps"] < 90
    engine.close()


def test_drafts_change_no_token(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that repeats itself invites drafts, most of which are wrong here."""
    prompt = [3, 4, 5, 6] * 12
    for seed in range(3):
        request = GenerateRequest(prompt, 40, sampling=SamplingParams(0.7, seed=seed))
        tokens = []
        for limit in (0, 8):
            monkeypatch.setattr(lookup_module, "LONGEST", limit)
            engine = Engine(model, frozenset(), 300, page_size=16)
            tokens.append(list(engine.submit(request)))
            engine.close()
        assert tokens[0] == tokens[1]
