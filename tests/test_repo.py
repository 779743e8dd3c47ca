"""What holds for the repository as a whole: one version, exact pins, a README that tells the truth."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import moonlet
from tools.setup_venv import VENV, gpu_packages, installed

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "moonlet"
README = (ROOT / "README.md").read_text()
# Brackets keep the patterns from finding themselves.
REGISTRY_HOSTS = (
    r"py[p]i\.org|pythonhos[t]ed\.org|registry\.npm[j]s|deb\.deb[i]an|download\.pytor[c]h"
)
MACHINE_PATHS = r"(?<![\w.])/(?:home|Users|root|work|opt|mnt|farm)/\w|/tmp/[w]/"
LONGEST_FILE = 450  # lines; the aim is 60 to 350

in_own_venv = pytest.mark.skipif(
    Path(sys.prefix) != VENV, reason="only the environment that make sets up is pinned"
)


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows or would add, as absolute paths."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for line in done.stdout.splitlines() if (path := ROOT / line).is_file()]


def texts() -> dict[str, str]:
    found = {}
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found[str(path.relative_to(ROOT))] = data.decode(errors="replace")
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, set[str]]:
    """Distribution -> its pinned versions (torch has two: one for Linux, one for elsewhere)."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.+]+)( ; .+)?", line)
            assert match, f"constraints.txt has a line that is no exact pin: {line}"
            found.setdefault(normal(match[1]), set()).add(match[2])
    return found


def test_the_version_stands_in_one_place() -> None:
    assert importlib.metadata.version("moonlet") == moonlet.__version__
    holders = [name for name, text in texts().items() if moonlet.__version__ in text]
    assert holders == ["src/moonlet/__init__.py"]


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {normal(re.split(r"[\[<>=]", spec)[0]) for group in groups for spec in group}
    names -= {"moonlet"}
    assert names <= pins().keys()


def test_torch_on_linux_can_only_be_the_cpu_build() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    linux = [line for line in lines if line.startswith("torch==") and '== "linux"' in line]
    assert len(linux) == 1
    assert "+cpu ;" in linux[0]


@in_own_venv
def test_what_is_installed_is_what_is_pinned() -> None:
    pinned = pins()
    for name in {normal(name) for name in installed(VENV)} - {"moonlet", "pip"}:
        assert importlib.metadata.version(name) in pinned.get(name, set()), name


@in_own_venv
def test_no_gpu_packages_are_installed() -> None:
    assert gpu_packages(installed(VENV)) == []


@pytest.mark.parametrize("name", ["nvidia-cublas", "nvidia_cudnn_cu13", "cuda-toolkit", "triton"])
def test_gpu_packages_are_recognised(name: str) -> None:
    assert gpu_packages(["torch", name, "numpy"]) == [name]


def test_readme_opens_with_the_two_commands() -> None:
    assert re.findall(r"^make ([\w-]+)", README.split("```")[1], re.MULTILINE) == ["serve", "test"]


def test_readme_names_only_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md"):
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert named <= targets, name


def test_make_help_lists_what_the_readme_names() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^make ([a-z-]+) +\S", done.stdout, re.MULTILINE))
    assert {"serve", "test", "test-all", "lint", "bench", "help"} <= listed
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= listed


def test_readme_maps_every_unit_and_nothing_else() -> None:
    mapped = set(re.findall(r"^\| `src/moonlet/([\w.]+?)/?` ", README, re.MULTILINE))
    units = {path.name for path in SRC.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    units |= {path.name for path in SRC.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert mapped == units


def test_every_path_in_the_readme_exists() -> None:
    paths = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"^\| `([^`]+)`", README, re.MULTILINE
    )
    missing = [path for path in paths if "/" in path and not (ROOT / path).exists()]
    assert not missing


def test_nothing_names_a_registry_or_a_machine() -> None:
    wrong = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(f"{REGISTRY_HOSTS}|{MACHINE_PATHS}", line)
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short_enough_to_have_one_subject() -> None:
    files = tracked("src/*.py", "tools/*.py", "csrc/*.cpp", "csrc/*.h")
    lengths = {path: len(path.read_text().splitlines()) for path in files}
    long = [f"{path.relative_to(ROOT)}: {n}" for path, n in lengths.items() if n > LONGEST_FILE]
    assert not long, "\n".join(long)


@pytest.mark.slow
def test_the_wheel_is_small_and_holds_every_file_of_the_package(tmp_path: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
    ]
    subprocess.run([*pip, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).infolist()
    held = {file.filename for file in files if file.filename.startswith("moonlet/")}
    without_nano = [file for file in files if not file.filename.startswith("moonlet/nano/weights/")]
    packed_bytes = sum(file.compress_size for file in without_nano)
    print(f"the wheel without nano's weights: {packed_bytes / 1e6:.1f} MB")
    assert packed_bytes < 5e6
    extension = {name for name in held if re.fullmatch(r"moonlet/kernels/_kernels\..*so", name)}
    assert len(extension) == 1
    wanted = {str(path.relative_to(ROOT / "src")) for path in tracked("src/moonlet")}
    assert held - extension == wanted
