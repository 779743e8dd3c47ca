"""`moonlet serve --upstream`: what the command line says becomes providers, a ledger and budgets."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from moonlet.chat.fake import FakeProvider, says
from moonlet.cli import serve
from moonlet.cli.main import main
from moonlet.server.auth import short_digest
from tests.gateway.endpoint import FakeEndpoint, text
from tests.server.running import Running
from tests.server.running import serving as running

FAKE = """
import sys
from moonlet.chat.fake import FakeProvider, says
from moonlet.cli import serve
from moonlet.cli.main import main
serve.load_provider = lambda *_: FakeProvider(says("from here"))
serve.SHUTDOWN_S = 0
sys.exit(main(["serve", "--port", "0", "--json", *sys.argv[1:]]))
"""
PRICES = "[kimi]\ninput = 1\noutput = 10\n"


@contextmanager
def started(
    *flags: str, **environment: str
) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """A server's document, and its process."""
    with subprocess.Popen(
        [sys.executable, "-c", FAKE, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            assert process.stdout is not None
            document = ""
            while not document.endswith("}\n"):
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                document += line
            yield json.loads(document), process
        finally:
            process.kill()


@pytest.fixture
def endpoint() -> Iterator[tuple[FakeEndpoint, Running]]:
    fake = FakeEndpoint(text("from afar", 1000, 50), models={"data": [{"id": "theirs"}]})
    with running(fake) as server:  # type: ignore[arg-type]
        yield fake, server


def asked(url: str, model: str, key: str = "none") -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def said(answer: Any) -> str:
    return answer["choices"][0]["message"]["content"]


def test_a_model_and_an_upstream(endpoint: tuple[FakeEndpoint, Running], tmp_path: Path) -> None:
    fake, server = endpoint
    prices, ledger = tmp_path / "prices.toml", tmp_path / "ledger.sqlite"
    prices.write_text(PRICES)
    flags = [
        "--upstream",
        f"kimi={server.url}/v1",
        "--prices",
        str(prices),
        "--ledger",
        str(ledger),
    ]
    flags += ["--api-key", "sk-one", "--budget", "sk-one=0.001"]
    with started(*flags, MOONLET_UPSTREAM_KEY_KIMI="sk-there") as (ready, process):
        assert (ready["model"], ready["models"]) == ("fake", ["fake", "kimi"])
        assert said(asked(ready["url"], "fake", "sk-one")) == "from here"
        answer = asked(ready["url"], "kimi", "sk-one")
        assert (said(answer), answer["usage"]["cost"]) == ("from afar", pytest.approx(0.0015))
        with pytest.raises(urllib.error.HTTPError, match="429") as caught:
            asked(ready["url"], "kimi", "sk-one")
        caught.value.close()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert (process.returncode, "Traceback" in errors, "sk-" in errors) == (130, False, False)
    assert fake.headers[-1]["authorization"] == "Bearer sk-there"
    assert fake.bodies[0]["model"] == "theirs"
    with closing(sqlite3.connect(ledger)) as database:
        found = database.execute("SELECT model, asked_by, status, cost FROM requests").fetchall()
    digest = short_digest("sk-one")
    assert found == [("fake", digest, "ok", 0.0), ("kimi", digest, "ok", pytest.approx(0.0015))]


def test_upstreams_alone_and_the_ledger_of_the_user(
    endpoint: tuple[FakeEndpoint, Running], tmp_path: Path
) -> None:
    _, server = endpoint
    flags = ["none", "--upstream", f"a={server.url}/v1", "--upstream", "b=http://127.0.0.1:9/v1"]
    flags += ["--upstream", f"b={server.url}/v1"]
    with started(*flags, XDG_DATA_HOME=str(tmp_path)) as (ready, process):
        assert ready["models"] == ["a", "b"]
        assert said(asked(ready["url"], "a")) == "from afar"
        assert said(asked(ready["url"], "b")) == "from afar"  # at the second place
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert "the upstream b at 127.0.0.1:9 cannot be reached" in errors
    assert "no price is known of" in errors
    with closing(sqlite3.connect(tmp_path / "moonlet" / "ledger.sqlite")) as database:
        found = database.execute("SELECT model, attempts, status, cost FROM requests").fetchall()
    assert found == [("a", 1, "ok", None), ("b", 4, "ok", None)]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["none"], "MODEL is none"),
        (["--upstream", "x"], "takes NAME=URL"),
        (["--upstream", "a=http://h/v1#x=1"], "behind the # stands"),
        (["--budget", "sk-1=2"], "need a --ledger"),
        (["--prices", "p.toml"], "need a --ledger"),
        (["--ledger", "LEDGER", "--prices", "p.toml"], "p.toml cannot be read"),
        (["--ledger", "LEDGER", "--api-key", "sk-1", "--budget", "sk-1"], "takes KEY=USD"),
        (["--ledger", "LEDGER", "--api-key", "sk-1", "--budget", "sk-1=x"], "takes KEY=USD"),
        (["--ledger", "LEDGER", "--api-key", "sk-1", "--budget", "sk-1=nan"], "takes KEY=USD"),
        (["--ledger", "LEDGER", "--budget", "sk-9=1"], "this server does not have"),
        (["--ledger", "/dev/null/ledger"], "cannot be used"),
    ],
)
def test_settings_that_cannot_be(
    flags: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(serve, "load_provider", lambda *_: pytest.fail("it was loaded"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    flags = [str(tmp_path / "ledger.sqlite") if flag == "LEDGER" else flag for flag in flags]
    assert main(["serve", "--port", "0", *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "sk-9" not in error


def test_a_name_that_is_taken(
    endpoint: tuple[FakeEndpoint, Running],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, server = endpoint
    monkeypatch.setattr(serve, "load_provider", lambda *_: FakeProvider(says("ok")))
    flags = ["--upstream", f"fake={server.url}/v1", "--ledger", str(tmp_path / "ledger")]
    assert main(["serve", "--port", "0", *flags]) == 2
    assert "are both called fake" in capsys.readouterr().err


def test_a_budget_may_be_for_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moonlet.cli.upstreams import _limits

    digest = short_digest("sk-1")
    assert _limits([f"{digest}=2", "sk=2=0.5"], ["sk-1", "sk=2"]) == {
        digest: 2.0,
        short_digest("sk=2"): 0.5,
    }
