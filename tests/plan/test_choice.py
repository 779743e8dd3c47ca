"""Which quantization each engine is planned with, and which engine comes first."""

from dataclasses import replace

import pytest

from moonlet.config import ModelConfig, preset
from moonlet.plan.advice import nearest
from moonlet.plan.answer import Answer, Question, answer
from moonlet.plan.choice import best, candidates, rank
from moonlet.plan.describe import describe_machine
from moonlet.plan.engines import engine

K25, MOONLIGHT = preset("kimi-k2.5"), preset("moonlight-16b-a3b")
V3 = preset("deepseek-v3")
H200S, _ = describe_machine(["8xh200"])
CARD, _ = describe_machine(["1xrtx4090"])
HOME, _ = describe_machine(["1xrtx4090"], ram_gb=256)
SMALL, _ = describe_machine(["1xrtx4090"], ram_gb=128)


@pytest.mark.parametrize(
    ("config", "name", "wanted"),
    [
        # By size: q8_0 1,092, q4_k_m 622, native 595, q2_k_xl 377, ud-tq1_0 241 GB. What is above native is of no
        # use to who runs native; llama.cpp does not, and takes q8_0 of 713 GB where native is 673 GB.
        (K25, "moonlet", ["native", "q2_k_xl", "ud-tq1_0"]),
        (V3, "llama.cpp", ["q8_0", "q4_k_m", "q2_k_xl", "ud-tq1_0"]),
        # Published in bfloat16, which FP8 halves; INT4 and FP8 models gain nothing by it.
        (MOONLIGHT, "vllm", ["native", "fp8", "nvfp4"]),
        (MOONLIGHT, "sglang", ["native", "fp8", "nvfp4"]),
        (K25, "vllm", ["native"]),
        (V3, "vllm", ["native", "nvfp4"]),
    ],
)  # fmt: skip
def test_candidates_come_by_size_and_end_at_what_loses_nothing(
    config: ModelConfig, name: str, wanted: list[str]
) -> None:
    assert candidates(Question(config, "native", H200S, 4096), engine(name)) == wanted


def test_codes_of_int4_experts_may_go_into_a_gguf_file_as_they_are() -> None:
    """For an engine that runs such a file nothing larger is of use; of other models it would only lose."""
    question = Question(K25, "native", H200S, 4096)
    without = replace(engine("llama.cpp"), quantizations=("q*", "ud-*"))
    assert candidates(question, without) == ["q8_0", "q4_k_m", "q2_k_xl", "ud-tq1_0"]
    reads = replace(engine("llama.cpp"), quantizations=("*",))
    assert candidates(question, reads) == ["native-int4", "q2_k_xl", "ud-tq1_0"]
    names = candidates(Question(MOONLIGHT, "native", H200S, 4096), reads)
    assert names == ["q8_0", "q4_k_m", "q2_k_xl", "ud-tq1_0"]


def test_a_model_in_bfloat16_is_planned_in_fp8_where_it_is_too_large() -> None:
    found = best(Question(MOONLIGHT, "native", CARD, 8192), engine("vllm"))
    assert (found.fits, found.question.quantization) == (True, "fp8")


def test_larger_than_published_fits_too() -> None:
    found = best(Question(K25, "native", H200S, 4096), engine("llama.cpp"))
    assert found.fits
    assert found.weights.total_bytes > 590e9


def test_memory_goes_before_the_disk() -> None:
    """377 GB need the drive here, 241 GB do not; with half the memory nothing else is left, and the largest is taken."""
    question = Question(K25, "native", HOME, 32_768)
    on_disk = answer(replace(question, quantization="q2_k_xl"), engine("llama.cpp"))
    assert on_disk.fits
    assert on_disk.reads_disk
    found = best(question, engine("llama.cpp"))
    assert (found.fits, found.reads_disk) == (True, False)
    assert found.question.quantization == "ud-tq1_0"
    slow = best(replace(question, machine=SMALL), engine("llama.cpp"))
    assert slow.reads_disk
    assert slow.weights.total_bytes > 377e9


def test_the_refusal_is_that_of_the_smallest() -> None:
    machine, _ = describe_machine(ram_gb=64, nvme=0)
    found = best(Question(K25, "native", machine, 4096), engine("llama.cpp"))
    assert not found.fits
    assert found.question.quantization == "ud-tq1_0"


def ranked(*keys: Answer) -> list[str]:
    return [one.engine.name for one in sorted(keys, key=rank)]


@pytest.mark.parametrize(
    ("kind", "order"),
    [("nvfp4", ["ktransformers", "vllm", "mlx"]), ("fp8", ["vllm", "ktransformers", "mlx"])],
)
def test_what_loses_nothing_is_before_what_is_faster(kind: str, order: list[str]) -> None:
    """Four bits lose something, eight do not."""
    whole = best(Question(MOONLIGHT, "native", CARD, 8192), engine("ktransformers"))
    fewer = answer(Question(MOONLIGHT, kind, CARD, 8192), engine("vllm"))
    refused = best(Question(MOONLIGHT, "native", CARD, 8192), engine("mlx"))
    assert whole.each_tok_s is not None
    assert fewer.each_tok_s is not None
    assert whole.each_tok_s.value < fewer.each_tok_s.value
    assert ranked(refused, fewer, whole) == order


def test_what_can_be_started_is_before_what_is_only_faster() -> None:
    fast, slow = (answer(Question(K25, "native", H200S, 4096), engine(n)) for n in ("vllm", "moonlet"))  # fmt: skip
    assert rank(fast) < rank(slow)
    assert rank(slow, starts=True) < rank(fast, starts=False)
    halved = answer(Question(MOONLIGHT, "nvfp4", H200S, 4096), engine("vllm"))
    assert rank(fast, starts=False) < rank(halved, starts=True)  # to lose something is worse


@pytest.mark.parametrize("name", ["moonlet", "ktransformers"])
def test_engines_of_one_node_are_refused_on_several(name: str) -> None:
    machine, _ = describe_machine(["8xh200"], nodes=2)
    found = best(Question(K25, "native", machine, 4096), engine(name))
    assert found.refusal is not None
    assert found.refusal.missing_bytes == 0
    assert found.refusal.reason == f"{name} is planned for one node only"


def test_the_nearest_needs_no_disk_if_that_can_be() -> None:
    question = Question(K25, "native", HOME, 32_768)
    near = nearest(answer(question, engine("ktransformers")))
    assert near is not None
    assert not near.plan.reads_disk
    assert near.change == "llama.cpp with ud-tq1_0"


def test_a_drive_that_is_too_small_is_named() -> None:
    machine, _ = describe_machine(ram_gb=22, disk_gb=100)
    refused = best(Question(K25, "native", machine, 32_768), engine("llama.cpp"))
    near = nearest(refused)
    assert near is not None
    assert near.change == "llama.cpp with ud-tq1_0 and 241 GB free on the drive"
    assert near.plan.reads_disk
    assert near.plan.weights.total_bytes <= 241e9
    bare, _ = describe_machine(ram_gb=22, nvme=0)
    assert nearest(best(Question(K25, "native", bare, 32_768), engine("llama.cpp"))) is None
