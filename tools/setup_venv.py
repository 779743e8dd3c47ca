"""Make `.venv` ready for the Makefile: `python3 tools/setup_venv.py run | dev`.

`run` installs what the server needs; `dev` also what tests and linters need. Standard library only, and
nothing to do when the stamp in `.venv` says that the same inputs were installed before.

The package is installed in editable form, so that edits of Python files count at once; what needs another
set-up (a dependency, a pin, C++) is in the fingerprint of the inputs. The stamp is removed first and
written last, and a lock keeps a second `make` waiting, so a set-up that was cut off is never taken for a
finished one: without a stamp, or with that of another Python, a set-up begins with an empty environment.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "moonlet-ready"
LOG = ROOT / "build" / "setup.log"
LOCK = ROOT / "build" / "setup.lock"
TARGETS = {"run": ".", "dev": ".[dev]"}
GPU_PREFIXES = ("nvidia-", "cuda-", "triton", "pytorch-triton")
Command = list[str]


class SetupError(Exception):
    """One sentence for the user."""


def main() -> None:
    profile = sys.argv[1]
    LOCK.parent.mkdir(exist_ok=True)
    try:
        with LOCK.open("w") as lock:
            _acquire(lock.fileno())
            python = f"{sys.version} in {sys.base_prefix}"
            wanted = {name: f"{name} {fingerprint()} {python}" for name in TARGETS}
            found = STAMP.read_text() if STAMP.exists() else ""
            if found not in (wanted[profile], wanted["dev"]):
                _set_up(profile, fresh=not found.endswith(python))
                STAMP.write_text(wanted[profile])
    except SetupError as error:
        sys.exit(f"moonlet: {error}")
    except KeyboardInterrupt:
        sys.exit("moonlet: set-up interrupted; the next make begins it anew")


def fingerprint() -> str:
    """Changes with every file that is compiled or resolved at installation."""
    digest = hashlib.sha256()
    names = ["pyproject.toml", "constraints.txt", "CMakeLists.txt", "tools/setup_venv.py"]
    version = ROOT / "src" / "moonlet" / "__init__.py"
    sources = sorted((ROOT / "csrc").rglob("*.cpp")) + sorted((ROOT / "csrc").rglob("*.h"))
    for path in [*(ROOT / name for name in names), version, *sources]:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def gpu_packages(names: Iterable[str]) -> list[str]:
    """Those of the distributions' `names` that exist only for a GPU build of torch."""
    return sorted(n for n in names if n.lower().replace("_", "-").startswith(GPU_PREFIXES))


def installed(venv: Path) -> list[str]:
    """Names of the distributions in `venv`."""
    paths = [str(path) for path in venv.glob("lib/python*/site-packages")]
    return [dist.metadata["Name"] for dist in distributions(path=paths)]


def _acquire(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for another make that is setting up .venv", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _set_up(profile: str, fresh: bool) -> None:
    _require_compiler()
    STAMP.unlink(missing_ok=True)
    LOG.write_text("")
    print(f"setting up .venv, once; details in {LOG.relative_to(ROOT)}", file=sys.stderr)
    if fresh:
        # The base executable, because `python3` may be the one in the .venv that is about to be emptied.
        base = getattr(sys, "_base_executable", sys.executable)
        _step("a virtual environment", [[base, "-m", "venv", "--clear", str(VENV)]])
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install"]
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(VENV / "bin" / "python")]
    # pip sees the CPU build where its configuration offers one, and always on macOS. Elsewhere uv, which
    # knows by itself where the PyTorch project publishes its CPU builds, fetches it.
    cpu_torch = [*uv, "--torch-backend=cpu", "--constraints", "constraints.txt", "torch"]
    _step(
        "PyTorch, CPU build",
        [[*pip, "torch"]],
        otherwise=[[*pip, "uv"], cpu_torch],
        hint=", and a package index that has the torch of constraints.txt must be in reach",
    )
    what = "moonlet and its kernels" + (", test tools" if profile == "dev" else "")
    _step(what, [[*pip, "--editable", TARGETS[profile]]])
    if extra := gpu_packages(installed(VENV)):
        raise SetupError(
            f"the set-up brought in GPU packages, which it never should ({', '.join(extra)}); "
            "look for the cause in pip's configuration"
        )


def _require_compiler() -> None:
    if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
        raise SetupError("no C++ compiler found: install g++ or clang++, or name one in CXX")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise SetupError(
            f"the C headers of Python are missing ({header}): install the package that has them, "
            "often named python3-dev"
        )


def _step(
    what: str, commands: list[Command], otherwise: list[Command] | None = None, hint: str = ""
) -> None:
    """Run `commands` one after another; if one fails, run those of `otherwise` in their place."""
    print(f"  {what} ...", end=" ", file=sys.stderr, flush=True)
    start = time.monotonic()
    if not _run(commands) and not (otherwise and _run(otherwise)):
        print("failed", file=sys.stderr)
        sys.stderr.write("".join(LOG.read_text().splitlines(keepends=True)[-15:]))
        raise SetupError(
            f"could not install {what}; the lines above are the end of {LOG.relative_to(ROOT)}{hint}"
        )
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


def _run(commands: list[Command]) -> bool:
    # Through the environment the pins also reach the isolated environment in which the package is built;
    # newer pips have a name of their own for that. Relative, because pip splits the value at spaces.
    pins = {"PIP_CONSTRAINT": "constraints.txt", "PIP_BUILD_CONSTRAINT": "constraints.txt"}
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    env = os.environ | pins | quiet
    with LOG.open("a") as log:
        for command in commands:
            print("$", *command, file=log, flush=True)
            run = subprocess.run(
                command,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
            if run.returncode:
                return False
    return True


if __name__ == "__main__":
    main()
