"""The limits of a machine are positive, and what cannot be asked is refused. Never how large they are."""

import pytest

from moonlet import kernels
from moonlet.kernels import _kernels
from moonlet.kernels.limits import Arithmetic, Bandwidth, arithmetic, available_bytes


@pytest.mark.parametrize("all_threads", [False, True])
def test_bandwidth_is_positive(all_threads: bool) -> None:
    assert Bandwidth(8 << 20).read(all_threads, passes=2) > 0


def test_the_buffer_holds_whole_pieces_and_never_nothing() -> None:
    for asked, held in ((0, 2 << 20), (1, 2 << 20), (5 << 20, 6 << 20)):
        assert _kernels.ReadBuffer(asked).nbytes == held


def test_a_buffer_beyond_all_memory_is_refused() -> None:
    with pytest.raises(MemoryError):
        Bandwidth(1 << 60)


@pytest.mark.parametrize("isa", kernels.supported_isas())
@pytest.mark.parametrize("all_threads", [False, True])
def test_every_instruction_set_has_its_peaks(isa: str, all_threads: bool) -> None:
    found = arithmetic(isa, all_threads)
    assert found.int8_dot is not None
    assert found.int8_dot > 0
    assert found.float_multiply_add is not None
    assert found.float_multiply_add > 0
    assert (found.bf16_dot is not None) == (isa == "avx512_bf16")


def test_an_instruction_set_that_is_not_here_has_none() -> None:
    assert arithmetic("avx9") == Arithmetic(None, None, None)


def test_an_operation_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no operation float4_dot"):
        _kernels.peak("baseline", "float4_dot", False)


def test_some_memory_is_available() -> None:
    assert available_bytes() > 0
