"""The self-test passes here, and says so when a kernel is wrong."""

from dataclasses import replace

import numpy as np
import pytest

from moonlet import kernels
from moonlet.kernels import reference, selftest


def test_every_kernel_passes_on_every_instruction_set() -> None:
    checks = list(selftest.self_test())
    assert [check for check in checks if check.problem] == []
    named = {check.kernel for check in checks}
    assert {"linear Q4_0, 1 token", "routed feed-forward INT4", "norm", "rotary"} <= named
    assert {"latent attention, bfloat16", "latent attention, 8 bits", "router, groups"} <= named
    for kernel in named:
        isas = [check.isa for check in checks if check.kernel == kernel]
        assert tuple(isas) == kernels.supported_isas()


def test_a_wrong_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.rms_norm
    monkeypatch.setattr(reference, "rms_norm", lambda *args: right(*args) * 1.001)
    check, _ = selftest._check(selftest._norm(), "baseline", None)
    assert check.problem is not None
    assert "from its reference" in check.problem


def test_nan_is_no_agreement() -> None:
    case = replace(selftest._norm(), run=lambda isa: np.full((5, 77), np.nan, np.float32))
    assert selftest._check(case, "baseline", None)[0].problem is not None


def test_other_bits_than_the_baseline_are_told() -> None:
    case = selftest._norm()
    found = case.run("baseline")
    check, _ = selftest._check(case, "baseline", np.nextafter(found, 9))
    assert check.problem == "its bits are not those of the baseline"


def test_a_kernel_that_refuses_is_told() -> None:
    check, found = selftest._check(selftest._norm(), "avx9", None)
    assert found is None
    assert check.problem is not None
    assert "does not run avx9" in check.problem
