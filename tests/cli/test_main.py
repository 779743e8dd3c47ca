"""The command line as a contract: its flags, its exit statuses, and that it starts without torch."""

import json
import os
import subprocess
import sys
from argparse import Namespace, _SubParsersAction

import pytest

import moonlet
from moonlet.cli import inspect
from moonlet.cli.commands import build_parser
from moonlet.cli.main import main
from moonlet.errors import CheckpointError, ConfigError, EngineError, MoonletError

# Frozen: a new knob belongs into a configuration first. Change this list only on purpose.
FLAGS = {
    "serve": [
        "[MODEL]",
        "--api-key",
        "--budget",
        "--cache-dir",
        "--cache-gb",
        "--compat",
        "--cors",
        "--fetch-urls",
        "--files",
        "--help",
        "--host",
        "--json",
        "--keep-floats",
        "--ledger",
        "--max-waiting",
        "--otel",
        "--port",
        "--prices",
        "--upstream",
    ],
    "chat": ["[MODEL_OR_URL]", "--help", "--json", "--keep-floats", "--model"],
    "inspect": ["[MODEL]", "--help", "--json"],
    "convert": [
        "--dtype",
        "--help",
        "--imatrix",
        "--json",
        "--mix",
        "--overwrite",
        "--to",
        "DST",
        "SRC",
    ],
    "imatrix": ["--help", "--json", "--out", "MODEL", "TEXT"],
    "bench": [
        "[MODEL]",
        "--batch",
        "--depth",
        "--help",
        "--json",
        "--layers",
        "--prefill",
        "--repeat",
    ],
    "doctor": ["--help", "--json"],
    "verify": [
        "--api-key",
        "--concurrency",
        "--extra-body",
        "--help",
        "--json",
        "--model",
        "--only",
        "--output",
        "--profile",
        "--reference",
        "--samples",
        "--timeout",
        "URL",
    ],
    "plan": [
        "--accepted",
        "--answer",
        "--batch",
        "--cache",
        "--cached",
        "--check-claims",
        "--context",
        "--cores",
        "--cpu",
        "--cpu-bandwidth",
        "--disk",
        "--draft",
        "--engine",
        "--expert-hits",
        "--fp8-activations",
        "--gpu",
        "--help",
        "--json",
        "--kwh",
        "--measure",
        "--micro-batch",
        "--network",
        "--nodes",
        "--nvme",
        "--offload",
        "--plot",
        "--price",
        "--prices",
        "--prompt",
        "--quantization",
        "--ram",
        "--recompute",
        "--region",
        "--sequence",
        "--sockets",
        "--streams",
        "--tokens",
        "--train",
        "--watts",
        "[MODEL]",
    ],
    "train": ["--help", "--json", "--out", "RECIPE"],
}


def test_flags_are_frozen() -> None:
    commands = next(a for a in build_parser()._actions if isinstance(a, _SubParsersAction))
    found = {
        name: sorted(
            max(action.option_strings, key=len)
            if action.option_strings
            else f"[{action.metavar}]"
            if action.nargs == "?"
            else str(action.metavar)
            for action in parser._actions
        )
        for name, parser in commands.choices.items()
    }
    assert found == {name: sorted(flags) for name, flags in FLAGS.items()}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"moonlet {moonlet.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["fly"], ["inspect", "--fast"], ["serve", "--port", "x"]])
def test_wrong_usage_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: moonlet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("a bad config"), 2),
        (CheckpointError("a bad file"), 2),
        (EngineError("the engine broke"), 1),
        (MoonletError("something broke"), 1),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_failures_become_statuses(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_args: Namespace) -> int:
        raise error

    monkeypatch.setattr(inspect, "run", fail)
    assert main(["inspect"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("" if status == 130 else f"moonlet: {error}\n")


def test_messages_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "no\x1b[2J\ud800"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_starting_loads_nothing_heavy() -> None:
    code = (
        "import sys; from moonlet.cli.commands import build_parser; build_parser()\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tiktoken', 'PIL', 'fastapi', 'uvicorn', 'rich', "
        "'huggingface_hub', 'httpx2', 'jsonschema'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_reader_that_leaves_is_no_traceback() -> None:
    code = "import sys; from moonlet.cli.main import main; sys.exit(main(['inspect', 'kimi-k2.5', '--json']))"
    with subprocess.Popen(
        [sys.executable, "-c", f"input()\n{code}"],
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()  # before the command writes: it waits for the line on stdin
        process.stdout = None
        _, err = process.communicate(b"\n")
    assert b"Traceback" not in err
    assert process.returncode == 1


RUN = "import sys; from moonlet.cli.main import main; sys.exit(main(sys.argv[1:]))"
FAKE = """
import sys
from moonlet.chat.fake import FakeProvider, says
from moonlet.cli import chat
from moonlet.cli.main import main
chat.load_provider = lambda model, keep_floats: FakeProvider(says("caf\\u00e9 \\u6708"))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("closed", "code", "argv"),
    [
        (">&-", RUN, "inspect tiny --json"),
        (">&-", RUN, "inspect tiny"),
        (">&- 2>&-", RUN, "inspect tiny"),
        ("<&-", FAKE, "chat"),
        ("<&- >&-", FAKE, "chat --json"),
    ],
)
def test_streams_that_are_closed(closed: str, code: str, argv: str) -> None:
    """They are as if nobody listened and nobody typed."""
    command = ["sh", "-c", f'"$0" -c "$1" {argv} {closed}', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_terminal_that_knows_only_ascii(flags: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAKE, "chat", *flags],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        input="hi\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if flags:
        assert json.loads(done.stdout)["turns"][0]["answer"] == "caf\u00e9 \u6708"
    else:
        assert done.stdout == "caf? ?\n"


@pytest.mark.parametrize("module", ["argparse", "moonlet.cli.chat", "asyncio"])
def test_ctrl_c_while_the_commands_load_is_no_traceback(module: str) -> None:
    code = f"""
import sys
import moonlet.cli.main
class Pressed:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
sys.exit(moonlet.cli.main.main(["inspect", "tiny"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_entry_point_is_small() -> None:
    """What it imports before it can catch Ctrl-C is next to nothing."""
    code = "import sys, moonlet.cli.main; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    ours = [name for name in loaded if name.startswith("moonlet")]
    assert ours == ["moonlet", "moonlet.cli", "moonlet.cli.main"]
    assert "argparse" not in loaded
