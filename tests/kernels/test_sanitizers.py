"""The tests of the kernels again, on a build that stops at the first stray access or undefined operation."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Puts the sanitized module where the package looks for its own, then runs what is asked for.
RUN = """
import importlib.util, sys
name = "moonlet.kernels._kernels"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def cmake() -> str:
    """The program, from the path or from the wheel of that name."""
    found = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("cmake is not installed")
    return found


def runtime_libraries() -> str:
    """What has to come first in a process whose own program is neither sanitized nor written in C++."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or ""
    if "g++" not in Path(compiler).name:
        pytest.skip("the run-time libraries are looked for as g++ names them")
    asked = [[compiler, f"-print-file-name={name}.so"] for name in ("libasan", "libstdc++")]
    found = (subprocess.run(one, capture_output=True, text=True, check=True) for one in asked)
    return " ".join(one.stdout.strip() for one in found)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension, built with MOONLET_SANITIZE."""
    build = tmp_path_factory.mktemp("sanitized")
    nanobind = importlib.util.find_spec("nanobind")
    if nanobind is None or nanobind.origin is None:
        pytest.skip("nanobind is not installed")
    options = {
        "MOONLET_SANITIZE": "ON",
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "Python_EXECUTABLE": sys.executable,
        "nanobind_DIR": Path(nanobind.origin).parent / "cmake",
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    for command in (["-S", ROOT, "-B", build, *defined], ["--build", build, "--parallel", "2"]):
        done = subprocess.run([cmake(), *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return build / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kernels_are_clean(sanitized: Path) -> None:
    tests = [
        str(path) for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)
    ]
    environment = os.environ | {
        "LD_PRELOAD": runtime_libraries(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself keeps much until it ends
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-c",
        RUN,
        str(sanitized),
        "-q",
        "-x",
        "-s",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "-m", "not slow", *tests],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[:6000]
