"""Claims about models: those that moonlet ships, by hand; what flips a verdict; files that are none."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.errors import ConfigError
from moonlet.plan.claimed_speed import _meets
from moonlet.plan.claims import judge
from moonlet.plan.claims_file import EXAMPLES, read_claims
from moonlet.plan.judged import Judged, within

GIB = 2**30
SHIPPED = [judge(claim) for claim in read_claims(EXAMPLES["k25"])]
FP16, ON_A100, ON_H100, Q2, TQ1, MLA, ACTIVE, PRICE = SHIPPED

# K2.5 by hand: 60 layers of 384 experts of three matrices of 7168 x 2048, and what the papers call 1026.4 B.
EXPERTS = 60 * 384 * 3 * 7168 * 2048
TOTAL = 1026.408e9
VISION = (416.87e6 + 54.28e6) * 2  # tower and projector, in bfloat16

# Router, vision and the down projections of attention (7168 x (1536 + 576)), which tensor parallelism does not cut.
WHOLE = (60 * 384 * 7168 + 61 * 7168 * (1536 + 576)) * 2 + VISION


def parts(judged: Judged) -> dict[str, str]:
    return {part.what: part.verdict for part in judged.parts}


def text(judged: Judged) -> str:
    return "\n".join(judged.arithmetic)


def _needed(sentence: str) -> float:
    """What a sentence says that weights, cache and buffers take."""
    number = sentence.partition("buffers are ")[2].partition(" GB")[0]
    return float(number.replace(",", "")) * 1e9


def written(path: Path, *claims: Mapping[str, Any]) -> Path:
    """A file with those claims. JSON is TOML as long as there are no tables in it."""
    lines = []
    for claim in claims:
        lines += ["[[claim]]", *(f"{name} = {json.dumps(value)}" for name, value in claim.items())]
    path.write_text("\n".join(lines), "utf-8")
    return path


def judged(tmp_path: Path, kind: str, **fields: Any) -> Judged:
    claim = {"text": "somebody says", "kind": kind, "model": "kimi-k2.5"} | fields
    (found,) = read_claims(written(tmp_path / "claims.toml", claim))
    return judge(found)


def test_the_verdicts_on_what_circulates() -> None:
    assert [(one.verdict, parts(one)) for one in SHIPPED] == [
        ("does not hold", {"size": "holds", "fit": "does not hold"}),
        ("does not hold", {"size": "does not hold", "fit": "cannot be judged"}),
        (
            "does not hold",
            {"size": "does not hold", "fit": "does not hold", "speed": "does not hold"},
        ),
        ("holds", {"size": "holds", "fit": "holds"}),
        ("does not hold", {"size": "holds", "fit": "holds", "speed": "does not hold"}),
        ("does not hold", {"cache": "does not hold"}),
        ("holds", {"active share": "holds"}),
        ("holds", {"price": "holds"}),
    ]


def test_fp16_is_two_terabytes_and_eight_cards_have_a_third_of_it() -> None:
    assert FP16.figures["bytes"] == pytest.approx(2 * TOTAL + VISION, rel=1e-4)
    assert FP16.figures["memory_bytes"] == 8 * 81559 * 2**20
    short = FP16.figures["bytes"] - FP16.figures["memory_bytes"]
    assert f"{short / 1e9:,.1f} GB are missing before" in text(FP16)
    # llama.cpp leaves the most of a card to weights, 95 %; a gigabyte or two are cache and buffers.
    # What is left over goes to the host's memory, of which the system and llama.cpp want some, too.
    kept = 8 * (0.05 * 81559 * 2**20 + 0.6e9)
    assert FP16.figures["missing_bytes"] == pytest.approx((short + kept) / 0.97, abs=6e9)
    assert "names no memory of the host" in text(FP16)
    said = next(line for line in FP16.arithmetic if line.startswith("vllm"))
    assert _needed(said) == pytest.approx(2 * TOTAL + VISION + 7 * WHOLE + 8 * 1e9, abs=2e9)


def test_int4_is_595_gigabytes_whatever_the_guides_say() -> None:
    by_hand = EXPERTS * 4.5 / 8 + (TOTAL - EXPERTS) * 2 + VISION
    for one in (ON_A100, ON_H100):
        assert one.figures["bytes"] == pytest.approx(by_hand, rel=1e-4)
        assert "595.1 GB" in text(one)
        assert "5.9 % more" in text(one)  # 630 / 595.1


def test_int4_fits_eight_a100_only_if_an_engine_takes_more_than_usual() -> None:
    left = ON_A100.figures["memory_bytes"] - ON_A100.figures["weight_bytes"]
    assert left == pytest.approx(8 * 80 * GIB - 595.15e9, abs=0.1e9)
    # Each card holds its eighth, and some things whole.
    card = (595.15e9 + 7 * WHOLE) / 8
    assert card + 2.5e9 < 0.95 * 80 * GIB  # with vLLM's runtime
    assert (
        card + 2.5e9 + 4096 * 70272 + 0.7e9 > 0.92 * 80 * GIB
    )  # and cache and buffers: its usual share
    usual, said = (line for line in ON_A100.arithmetic if line.startswith("vllm"))
    assert _needed(usual) == pytest.approx(8 * (card + 4096 * 70272 + 0.7e9), abs=2e9)
    assert "(95 % of each card" in said
    more = int(said.partition("room for ")[2].partition(" ")[0].replace(",", ""))
    assert 0 < more < (0.95 * 80 * GIB - 2.5e9 - card) / 70272 - 4096
    assert "At the claimed 630.0 GB it would not fit: vllm lacks" in text(ON_A100)


def test_what_fits_only_so_may_have_its_speed(tmp_path: Path) -> None:
    fields = {"precision": "int4", "gpu": "8xa100"}
    found = parts(judged(tmp_path, "deployment", **fields, tok_s=[40, 80]))
    assert found == {"fit": "cannot be judged", "speed": "holds"}
    found = parts(judged(tmp_path, "deployment", **fields, tok_s=9000))
    assert found == {"fit": "cannot be judged", "speed": "does not hold"}


def test_two_h100_are_424_gigabytes_short() -> None:
    short = 595.15e9 - 2 * 81559 * 2**20
    assert short == pytest.approx(424.1e9, abs=0.1e9)
    assert "424.1 GB are missing before" in text(ON_H100)
    assert ON_H100.figures["missing_bytes"] > short
    assert "What does not fit has no speed." in text(ON_H100)
    assert "With 512 GB of memory beside them" in text(ON_H100)


def test_q2_fits_four_a100_and_256_gigabytes() -> None:
    assert Q2.figures["memory_bytes"] == (4 * 80 + 256) * GIB
    left = (4 * 80 + 256) * GIB - Q2.figures["bytes"]
    assert f"{left / 1e9:.1f} GB remain before" in text(Q2)
    assert "only the size is known" in text(Q2)  # it is the publisher's figure, not ours


def test_tq1_fits_and_is_faster_than_claimed_on_any_host_that_has_the_memory() -> None:
    assert TQ1.figures["memory_bytes"] == 24564 * 2**20 + 256 * GIB
    assert 2 < TQ1.figures["predicted_tok_s_low"] < TQ1.figures["predicted_tok_s_high"]
    said = text(TQ1)
    assert "memory reads 58 GB/s" in said
    assert "is below all that is predicted" in said
    guidance = next(line for line in TQ1.arithmetic if line.startswith("Published guidance"))
    assert all(figure in guidance for figure in ("1 to 2 (", "5 (", "10 (", "no measurement"))


def test_ten_times_less_cache_is_against_nothing_that_exists() -> None:
    figures = MLA.figures
    assert figures["latent_bytes_per_token"] == 61 * 576 * 2
    assert figures["times_64_groups"] == pytest.approx(64 * 320 / 576)  # 35.6
    assert figures["times_8_groups"] == pytest.approx(8 * 320 / 576)  # 4.4
    assert "It would take 18.0 groups" in text(MLA)
    assert "16 would make it 8.9 times" in text(MLA)


def test_the_active_share_by_both_ways_of_counting() -> None:
    assert ACTIVE.figures["active_share_with_embedding"] == pytest.approx(32.862 / 1026.408, 1e-4)
    assert ACTIVE.figures["active_share"] == pytest.approx(31.687 / 1026.408, 1e-4)
    assert "3.20 %" in text(ACTIVE)
    assert "3.09 %" in text(ACTIVE)


def test_the_price_has_a_date_and_a_third_figure() -> None:
    assert PRICE.figures == {"usd_input": 0.6, "usd_cached_input": 0.1, "usd_output": 3.0}
    assert "2026-02-01" in text(PRICE)
    assert "lower price of cached prompts" in text(PRICE)


INT4 = {"precision": "int4", "size_gb": 595, "gpu": "8xh200"}
FLIPPED = [
    ("size", {"precision": "bf16", "size_gb": 2000}, {"size": "holds"}),
    ("size", {"precision": "bf16", "size_gb": 1000}, {"size": "does not hold"}),
    ("size", {"precision": "fp8", "size_gb": 1029}, {"size": "holds"}),
    ("deployment", INT4, {"size": "holds", "fit": "holds"}),
    ("deployment", INT4 | {"gpu": "8xa100"}, {"size": "holds", "fit": "cannot be judged"}),
    ("deployment", INT4 | {"gpu": "8xa100 40gb"}, {"size": "holds", "fit": "does not hold"}),
    (
        "deployment",
        INT4 | {"gpu": "8xa100", "context": 131072},
        {"size": "holds", "fit": "does not hold"},
    ),
    ("deployment", {"precision": "fp16", "gpu": "8xh100", "nodes": 4}, {"fit": "holds"}),
    # Memory and drives count where they are named.
    ("deployment", {"precision": "bf16", "gpu": "8xh100"}, {"fit": "does not hold"}),
    ("deployment", {"precision": "bf16", "gpu": "8xh100", "ram": 2048}, {"fit": "holds"}),
    ("deployment", {"precision": "bf16", "gpu": "8xh100", "ram": 512}, {"fit": "does not hold"}),
    ("deployment", {"precision": "bf16", "gpu": "8xh100", "nvme": 7, "ram": 512}, {"fit": "holds"}),
    ("deployment", {"precision": "int4", "ram": 768}, {"fit": "holds"}),
    ("deployment", {"precision": "int4", "ram": 512}, {"fit": "does not hold"}),
    (
        "deployment",
        {"precision": "ud-q2_k_xl", "gpu": "4xa100", "ram": 32},
        {"fit": "does not hold"},
    ),
    ("deployment", {"precision": "3.5bpw", "gpu": "m3-ultra-512"}, {"fit": "holds"}),
    ("deployment", {"precision": "4.5bpw", "gpu": "m3-ultra-512"}, {"fit": "does not hold"}),
    # 514 GB of 550: more than MLX takes by itself, and no flag makes it take more.
    ("deployment", {"precision": "4bpw", "gpu": "m3-ultra-512"}, {"fit": "does not hold"}),
    ("deployment", {"precision": "3.5bpw", "gpu": "8xh200"}, {"fit": "does not hold"}),
    # Without a precision the bytes may fit, but nothing tells which engine runs them.
    ("deployment", {"size_gb": 595, "gpu": "8xh200"}, {"fit": "cannot be judged"}),
    ("deployment", {"size_gb": 595, "gpu": "4xh100"}, {"fit": "does not hold"}),
    (
        "deployment",
        {"size_gb": 595, "gpu": "8xh200", "tok_s": 50},
        {"fit": "cannot be judged", "speed": "cannot be judged"},
    ),
    # 108 tokens/s were measured there (SGLang's cookbook, 0.5.6.post2).
    ("deployment", INT4 | {"tok_s": 108}, {"size": "holds", "fit": "holds", "speed": "holds"}),
    (
        "deployment",
        INT4 | {"tok_s": [5000, 6000]},
        {"size": "holds", "fit": "holds", "speed": "does not hold"},
    ),
    ("cache", {"times": 35.6, "against": "mha"}, {"cache": "holds"}),
    ("cache", {"times": 35.6, "against": "gqa8"}, {"cache": "does not hold"}),
    ("cache", {"times": 4.4, "against": "GQA8"}, {"cache": "holds"}),
    ("cache", {"times": 8.9, "against": "gqa16"}, {"cache": "holds"}),
    ("cache", {"times": 10, "against": "gqa16"}, {"cache": "does not hold"}),
    ("cache", {"times": 35.6}, {"cache": "cannot be judged"}),
    ("active", {"percent": 3.0}, {"active share": "holds"}),  # without the embedding
    ("active", {"percent": 3.5}, {"active share": "does not hold"}),
    ("price", {"input": 0.5, "output": 3}, {"price": "does not hold"}),
    ("price", {"input": 0.6, "output": 2.5}, {"price": "does not hold"}),
    ("price", {"input": 0.6, "output": 3, "cached_input": 0.1}, {"price": "holds"}),
    ("price", {"input": 0.6, "output": 3, "cached_input": 0}, {"price": "does not hold"}),
    ("price", {"input": 0.6, "output": 3, "model": "kimi-k2"}, {"price": "cannot be judged"}),
]


@pytest.mark.parametrize(("kind", "fields", "verdicts"), FLIPPED)
def test_what_flips_a_verdict(
    tmp_path: Path, kind: str, fields: dict[str, Any], verdicts: dict[str, str]
) -> None:
    found = judged(tmp_path, kind, **fields)
    assert parts(found) == verdicts
    assert all(line.endswith((".", "!")) for line in found.arithmetic), found.arithmetic


def test_engines_of_other_machines_are_not_asked(tmp_path: Path) -> None:
    found = judged(tmp_path, "deployment", precision="3.5bpw", gpu="8xh200")
    assert "No engine that moonlet knows runs 3.5bpw there." in found.arithmetic
    others = text(judged(tmp_path, "deployment", precision="int4", gpu="8xh200"))
    assert "mlx" not in others
    assert "ktransformers" not in others  # which shares the work with a host that is not named
    assert "mlx can fill" in text(judged(tmp_path, "deployment", precision="int4", gpu="m3-ultra"))


def test_a_claim_holds_only_if_all_its_parts_do(tmp_path: Path) -> None:
    whole = {"precision": "int4", "gpu": "8xh200", "tok_s": 100}
    assert judged(tmp_path, "deployment", size_gb=595, **whole).verdict == "holds"
    assert judged(tmp_path, "deployment", size_gb=700, **whole).verdict == "does not hold"
    open_ = judged(tmp_path, "deployment", size_gb=595, gpu="8xh200")
    assert open_.verdict == "cannot be judged"


def test_a_speed_is_open_where_it_hangs_on_memory_that_is_not_described(tmp_path: Path) -> None:
    fields = {"precision": "ud-tq1_0", "gpu": "1xrtx3090", "ram": 256}
    known = judged(tmp_path, "deployment", **fields, tok_s=1).figures
    low, high = known["predicted_tok_s_low"], known["predicted_tok_s_high"]

    def speed(tok_s: list[float], **more: Any) -> str:
        return parts(judged(tmp_path, "deployment", tok_s=tok_s, **fields, **more))["speed"]

    assert speed([low / 2, low * 0.99]) == "does not hold"
    assert speed([high * 1.01, high * 2]) == "does not hold"
    assert speed([low, high]) == "holds"
    assert speed([high * 0.98, high * 0.99]) == "cannot be judged"
    assert speed([low * 1.01, low * 1.02]) == "cannot be judged"
    fast = {"cpu": "epyc 9354"}
    assert speed([high * 0.98, high * 0.99], **fast) == "holds"
    assert speed([low * 1.01, low * 1.02], **fast) == "does not hold"


def test_a_speed_between_what_engines_give() -> None:
    assert _meets((5, 6), (1, 10), [False])[0] == "does not hold"
    assert _meets((5, 6), (1, 10), [False, False])[0] == "cannot be judged"  # some memory gives it
    assert _meets((5, 6), (1, 10), [True])[0] == "holds"


def test_a_size_may_be_off_by_a_twentieth_of_the_truth() -> None:
    assert within(95.01, 100)
    assert within(104.99, 100)
    assert not within(94.99, 100)
    assert not within(105.01, 100)


GOOD = {"text": "x", "kind": "active", "model": "kimi-k2.5", "percent": 3.2}
RUNS = {"text": "x", "kind": "deployment", "model": "kimi-k2.5", "precision": "int4", "gpu": "h200"}


@pytest.mark.parametrize(
    ("claim", "wanted"),
    [
        (GOOD | {"kind": "rumour"}, "kind is 'rumour', but it must be one of size, deployment"),
        (GOOD | {"kind": ["active"]}, "kind is"),
        (
            GOOD | {"percnt": 3},
            "'percnt' is no field of the kind 'active': did you mean 'percent'?",
        ),
        (GOOD | {"gpu": "h200"}, "'gpu' is no field of the kind 'active'"),
        (GOOD | {"percent": "3.2"}, "percent is '3.2', but it must be a number above 0"),
        (GOOD | {"percent": True}, "percent is True"),
        (GOOD | {"percent": 101}, "at most 100"),
        (GOOD | {"percent": 0}, "number above 0"),
        (GOOD | {"text": "  "}, "text is '  '"),
        (GOOD | {"text": "x" * 501}, "1 to 500 letters"),
        (GOOD | {"model": "gpt-9"}, "model is 'gpt-9', but it must be one of kimi-k2.5"),
        ({"text": "x", "kind": "active", "model": "kimi-k2.5"}, "'percent' is missing"),
        (RUNS | {"precision": "q9_z"}, "'q9_z' is no quantization"),
        (RUNS | {"precision": "/etc/mix.toml"}, "must be the name of a quantization"),
        (RUNS | {"gpu": "8xvoodoo2"}, "no accelerator 'voodoo2'"),
        (RUNS | {"gpu": 8}, "gpu is 8, but it must be text"),
        (RUNS | {"gpu": []}, "nothing is said of the machine"),
        (RUNS | {"nodes": 2.5}, "whole number from 1"),
        (RUNS | {"ram": -1}, "ram is -1"),
        (RUNS | {"context": 300000}, "at most 262144"),
        (RUNS | {"tok_s": [100, 50]}, "write the lower number first"),
        (RUNS | {"tok_s": [1, 2, 3]}, "a number or [lowest, highest]"),
        (RUNS | {"published": "5 tokens/s"}, "tables with tok_s and source"),
        (
            {"text": "x", "kind": "deployment", "model": "kimi-k2.5", "precision": "int4"},
            "neither gpu nor ram",
        ),
        ({"text": "x", "kind": "deployment", "model": "kimi-k2.5", "ram": 9}, "neither precision"),
        (
            {"text": "x", "kind": "cache", "model": "kimi-k2.5", "times": 9, "against": "gqa7"},
            "64 heads cannot be split so",
        ),
        (
            {"text": "x", "kind": "cache", "model": "kimi-k2.5", "times": 9, "against": "mqa"},
            '"mha", or "gqa8"',
        ),
        (
            {"text": "x", "kind": "price", "model": "kimi-k2.5", "input": -1, "output": 3},
            "input is",
        ),
    ],
)
def test_a_wrong_claim_is_named(tmp_path: Path, claim: dict[str, Any], wanted: str) -> None:
    path = written(tmp_path / "claims.toml", GOOD, claim)
    with pytest.raises(ConfigError) as caught:
        read_claims(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, claim 2: ")
    assert wanted in message
    assert len(message) < 500
    assert "\n" not in message


ONE = "[[claim]]\nkind = 'active'\nmodel = 'nano'\ntext = 'x'\npercent = "
LIST = "must be a list of tables"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", LIST),
        ("[claim]\ntext = 1", LIST),
        ("claim = []", LIST),
        (f"other = 1\n{ONE}5", LIST),
        ("claim = [1]", "claim 1: it is 1, but it must be a table"),
        ("[[claim]", "cannot be read"),
        ("\0" * 100, "cannot be read"),
        ("a = " + "[" * 900, "cannot be read"),
        ("a = [\n" + ("[" * 100 + "\n") * 100, "cannot be read"),
        ("a." * 20_000 + "a = 1", "a line of 40005 bytes"),  # takes the parser a minute
        (f"{ONE}5\n" * 201, "201 claims"),
        ("#\n" * 50_001, "longer than 100 kB"),
        (f"{ONE}0x{'f' * 900}", f"percent is {str(16**900 - 1)[:40]}"),
        (f"{ONE}nan", "percent is nan"),
        (f"{ONE}inf", "percent is inf"),
        (f"{ONE}1979-05-27", "percent is datetime.date"),
    ],
)
def test_files_that_are_no_claims(tmp_path: Path, content: str, wanted: str) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_claims(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert wanted in message
    assert len(message) < 500


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_claims(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # nobody writes into it: opening it would wait for ever
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none", Path("\0"), Path("/dev/zero")):
        with pytest.raises(
            ConfigError,
            match=r"cannot be read as a table of claims, of which moonlet has one \(k25\)",
        ):
            read_claims(path)


NAMES = (
    "kind", "model", "precision", "size_gb", "gpu", "ram", "cpu", "cpu_bandwidth", "cores", "sockets", "nvme",
    "disk", "nodes", "network", "context", "tok_s", "times", "against", "percent", "input", "output",
)  # fmt: skip
WORDS = ("deployment", "size", "nano", "glm-4.7-flash", "kimi-k2.5", "int4", "bf16", "tq1_0", "3bpw", "8xh100",
         "m3-ultra", "x:1@1", "128xa100", "xeon-8488c", "mha", "gqa1", "")  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-2, 2**64),
    st.floats(1e-9, 1e12),
    st.lists(st.one_of(st.sampled_from(WORDS), st.integers(1, 100)), max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), st.sampled_from([GOOD, RUNS]))
def test_whatever_a_file_says_is_judged_or_refused(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], base: dict[str, Any]
) -> None:
    path = written(tmp_path_factory.mktemp("claims") / "claims.toml", base | fields)
    try:
        (claim,) = read_claims(path)
    except ConfigError as error:
        said = [str(error)]
    else:
        said = list(judge(claim).arithmetic)
    assert said
    assert all(said)


CARDS = ("8xh100", "2xrtx4090", "4xa100", "16xh200", "m3-ultra-512", "2xm3-ultra-512", "x:48GB@900")
DEPLOYMENTS = st.fixed_dictionaries(
    {
        "gpu": st.sampled_from(CARDS),
        "model": st.sampled_from(["kimi-k2.5", "glm-4.7-flash", "nano"]),
    },
    optional={
        "precision": st.sampled_from(["int4", "fp8", "bf16", "q4_k_m", "tq1_0", "3bpw", "nvfp4"]),
        "size_gb": st.floats(1e-3, 5000),
        "ram": st.sampled_from([8, 256, 1024]),
        "nvme": st.sampled_from([0, 7]),
        "cpu": st.sampled_from(["epyc-9354", "xeon-8488c"]),
        "nodes": st.integers(1, 4),
        "context": st.integers(1, 262144),
        "tok_s": st.floats(0.1, 1000),
    },
)


@settings(max_examples=100, deadline=None)
@given(DEPLOYMENTS)
def test_nothing_fits_into_less_than_it_takes(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    try:
        found = judged(tmp_path_factory.mktemp("claims"), "deployment", **fields)
    except ConfigError:
        apple = fields["gpu"].endswith("m3-ultra-512") and "cpu" in fields  # has its own
        assert apple or not fields.keys() & {"precision", "size_gb"} or "context" in fields
        return
    fit, figures = parts(found)["fit"], found.figures
    if fit != "does not hold" and not fields.get("nvme"):
        assert figures["weight_bytes"] < figures["memory_bytes"]
    if fit == "does not hold" and "tok_s" in fields:
        assert parts(found)["speed"] == "does not hold"
    assert fit in ("holds", "does not hold", "cannot be judged")
    assert ("precision" in fields) or fit != "holds"
