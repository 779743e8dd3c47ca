"""The extension is there, is typed, and tells the truth about this CPU."""

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from moonlet import kernels
from moonlet.kernels import _kernels

STUB = Path(kernels.__file__).with_name("_kernels.pyi")
KNOWN = {
    "x86_64": ("baseline", "avx2", "avx512_vnni", "avx512_bf16"),
    "aarch64": ("baseline", "neon_dotprod"),
    "arm64": ("baseline", "neon_dotprod"),
}
# What the Linux kernel calls the features that a name stands for.
CPU_FLAGS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512_vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "avx512_bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"},
    "neon_dotprod": {"asimddp"},
}


def test_isas_are_a_beginning_of_the_known_list() -> None:
    found = kernels.supported_isas()
    known = KNOWN.get(platform.machine(), ("baseline",))
    assert found == known[: len(found)]
    assert found[0] == "baseline"
    assert kernels.isa() == found[-1]


def test_isas_agree_with_the_operating_system() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("only Linux lists the features of its CPU in a file")
    flags = {
        flag
        for line in cpuinfo.read_text().splitlines()
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }
    for name in KNOWN.get(platform.machine(), ("baseline",))[1:]:
        assert (name in kernels.supported_isas()) == (flags >= CPU_FLAGS[name]), name


def test_the_stub_names_what_the_extension_has() -> None:
    body = ast.parse(STUB.read_text()).body
    stubbed = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert stubbed == {name for name in dir(_kernels) if not name.startswith("_")}


def test_more_threads_than_anybody_has_are_refused() -> None:
    with pytest.raises(ValueError, match="1025 threads, wanted at most 1024"):
        kernels.set_num_threads(1025)


@pytest.mark.parametrize(
    ("value", "said"), [("1", "1"), ("3", "3"), ("", None), ("0", "from 1"), ("two", "from 1")]
)
def test_the_environment_sets_the_threads(value: str, said: str | None) -> None:
    code = "from moonlet import kernels; print(kernels.num_threads())"
    environment = os.environ | {"MOONLET_THREADS": value}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    if said is None:
        assert int(done.stdout) >= 1
    else:
        assert said in done.stdout + done.stderr
    assert (done.returncode == 0) == (said != "from 1")
