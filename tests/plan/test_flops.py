"""Operations of a step, against hand arithmetic and what the K2 report says of heads."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.config import preset
from moonlet.errors import ConfigError
from moonlet.plan.flops import decode_flops, prefill_flops, vision_flops

K25 = preset("kimi-k2.5")
K25_128 = replace(K25, num_attention_heads=128)
CONTEXT = 131072


def total(work: dict[str, float]) -> float:
    return sum(work.values())


def test_a_token_of_k25_by_hand() -> None:
    work = decode_flops(K25, 0)
    assert total(work) / 1e9 == pytest.approx(2 * 31.687, rel=1e-4)
    assert work["experts"] == 2 * 60 * 8 * 3 * 7168 * 2048
    assert work["shared_experts"] == 2 * 60 * 3 * 7168 * 2048
    assert work["dense"] == 2 * 3 * 7168 * 18432
    assert work["head"] == 2 * 163840 * 7168
    assert work["attention"] == 2 * 61 * (
        7168 * 1536 + 1536 * 64 * 192 + 7168 * 576 + 512 * 64 * 256 + 64 * 128 * 7168
    )
    assert work["scores"] == 0


def test_scores_of_k25_by_hand() -> None:
    assert decode_flops(K25, 1000)["scores"] == 61 * 64 * (2 * 512 + 64) * 2 * 1000
    assert decode_flops(K25, 1000, streams=4)["scores"] == 4 * 61 * 64 * 1088 * 2 * 1000
    assert prefill_flops(K25, 3)["scores"] == 61 * 64 * (128 + 64 + 128) * 2 * (1 + 2 + 3)
    assert prefill_flops(K25, 2, past=10)["scores"] == 61 * 64 * 320 * 2 * (11 + 12)


def test_twice_the_heads_cost_what_the_k2_report_says() -> None:
    """arXiv 2507.20534, section 2.3: 128 heads in place of 64 at 128k take 83 % more operations."""

    def more(one: dict[str, float], other: dict[str, float]) -> float:
        return 100 * (total(other) / total(one) - 1)

    prefill = more(prefill_flops(K25, CONTEXT), prefill_flops(K25_128, CONTEXT))
    # A token at the end of a prompt, plain: what the last token of the prefill adds.
    last = [prefill_flops(c, 1, past=CONTEXT - 1) for c in (K25, K25_128)]
    for work, config in zip(last, (K25, K25_128), strict=True):
        work["attention"] = decode_flops(config, 0)["attention"]
    plain = more(*last)
    assert prefill < 83 < plain
    assert plain == pytest.approx(86.5, abs=0.1)
    # Logits of every token, as an average over a prefill counts them.
    every = [prefill_flops(c, CONTEXT, logits=CONTEXT) for c in (K25, K25_128)]
    assert more(*every) == pytest.approx(76.7, abs=0.1)
    absorbed = more(decode_flops(K25, CONTEXT), decode_flops(K25_128, CONTEXT))
    half = more(decode_flops(K25, CONTEXT / 2), decode_flops(K25_128, CONTEXT / 2))
    assert 91 < half < absorbed < 96


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_a_prompt_in_two_pieces(first: int, second: int) -> None:
    """Costs the same in scores, and in projections what expanding the first piece once more takes."""
    whole = prefill_flops(K25, first + second, logits=0)
    pieces = [prefill_flops(K25, first, logits=0), prefill_flops(K25, second, past=first, logits=0)]
    assert sum(p["scores"] for p in pieces) == pytest.approx(whole["scores"])
    again = 2 * 61 * 64 * 256 * 512 * first * (second > 0)
    assert sum(p["attention"] for p in pieces) == pytest.approx(whole["attention"] + again)


def test_chunks_expand_what_came_before_again() -> None:
    chunks = [prefill_flops(K25, 512, past=512 * i) for i in range(3)] + [
        prefill_flops(K25, 100, past=3 * 512)
    ]
    whole = prefill_flops(K25, 3 * 512 + 100, chunk=512)
    assert whole["attention"] == pytest.approx(sum(c["attention"] for c in chunks))
    assert whole["scores"] == pytest.approx(sum(c["scores"] for c in chunks))


def test_vision_of_k25_by_hand() -> None:
    patches = 4096
    linear = 27 * (3 * 1152**2 + 1152**2 + 2 * 1152 * 4304) + 3 * 14 * 14 * 1152
    attention = 27 * 2 * patches * 1152
    projector = (4608 * 4608 + 4608 * 7168) / 4
    assert vision_flops(K25, patches) == pytest.approx(
        2 * patches * (linear + attention + projector)
    )
    assert vision_flops(preset("kimi-k2"), patches) == 0


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ConfigError):
        prefill_flops(K25, -1)
