"""`moonlet verify`: what it prints and how it exits, at a real server and at none."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moonlet.cli.main import main
from moonlet.cli.verify import _without
from moonlet.server import create_app
from tests.gateway.fidelity.actor import Actor
from tests.server.running import Running, serving

KEY = "sk-secret-of-this-test"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(create_app(Actor(), api_keys=[KEY])) as running:
        yield running


def ran(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(["verify", *argv])
    out, err = capsys.readouterr()
    return status, out, err


def test_all_is_well(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ran(capsys, server.url, "--api-key", KEY, "--only", "c*t/*")
    assert status == 0
    assert "actor at" in out
    assert "0 failed" in out


def test_json_is_one_document_without_the_key(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONLET_API_KEY", KEY)
    status, out, _ = ran(capsys, server.url, "--only", "keys", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["counts"]["failed"] == 0
    assert {"id", "about", "outcome", "detail", "seconds"} == set(document["checks"][0])
    assert {"keys/missing", "keys/wrong"} <= {check["id"] for check in document["checks"]}
    assert KEY not in out


def test_a_failure_is_status_1_and_told(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    """An open server does not keep Kimi's rules."""
    status, out, _ = ran(
        capsys, server.url, "--api-key", KEY, "--profile", "kimi", "--only", "sampling/changed"
    )
    assert status == 1
    assert "failed  sampling/changed: temperature 1.1 (instant) was answered with 200" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["http://127.0.0.1:1/v1"], "cannot reach http://127.0.0.1:1/v1"),
        (["no-url"], "is no URL such as"),
        (["http://127.0.0.1:1", "--only", "nonsense"], "no check is called"),
        (["http://127.0.0.1:1", "--reference", "x"], "--reference belongs to --samples"),
        (["http://127.0.0.1:1", "--extra-body", "{}"], "--extra-body belongs to --samples"),
        (["http://127.0.0.1:1", "--samples", "/no/such"], "cannot read /no/such"),
        (["http://127.0.0.1:1", "--samples", "a", "--only", "b"], "--only chooses checks"),
        (["http://127.0.0.1:1", "--samples", "a", "--output", "a"], "is read already"),
        (["http://127.0.0.1:1", "--api-key", "é"], "the API key holds a character"),
        (["http://127.0.0.1:1/v1/chat/completions"], "leave /chat/completions out"),
    ],
)
def test_the_users_mistakes_are_status_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = ran(capsys, *argv)
    assert (status, out) == (2, "")
    assert says in err


@pytest.mark.parametrize(
    "flags",
    [
        ["--concurrency", "0"],
        ["--concurrency", "x"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--profile", "theirs"],
        ["--extra-body", "[]"],
        ["--extra-body", '{"a": NaN}'],
        ["--extra-body", '{"a": ' + "9" * 5000 + "}"],
    ],
)
def test_bad_flags_are_status_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["verify", "http://127.0.0.1:1", *flags])
    assert caught.value.code == 2


@pytest.mark.parametrize("key", [None, "sk-other"])
def test_a_wrong_key_is_status_2(
    key: str | None, server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = ran(capsys, server.url, *([] if key is None else ["--api-key", key]))
    assert status == 2
    assert "wants" in err
    assert "--api-key" in err


def test_samples_are_replayed_and_compared(
    server: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    file, output = tmp_path / "s.jsonl", tmp_path / "out.jsonl"
    lines = [
        {**ask, "tool_choice": choice, "seed": seed}
        for seed, choice in enumerate(("required", "none"))
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    argv = [server.url, "--api-key", KEY, "--samples", str(file)]
    assert ran(capsys, *argv, "--output", str(output))[0] == 0
    status, out, _ = ran(capsys, *argv, "--reference", str(output), "--json")
    document = json.loads(out)
    assert status == 0
    assert document["schema_accuracy"] == 1.0
    assert document["tool_call_f1"] == 1.0
    assert document["triggers"] == {"compared": 2, "both": 1, "only_this": 0, "only_reference": 0}
    status, out, _ = ran(
        capsys, *argv, "--output", str(output), "--extra-body", '{"temperature": 9}'
    )
    assert status == 1  # refused, and told
    assert "have no answer" in out


def test_ctrl_c_says_that_nothing_is_lost(
    server: Running,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def pressed(work: Any) -> int:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setattr("moonlet.cli.verify.asyncio.run", pressed)
    status, _, err = ran(capsys, server.url, "--samples", "s", "--output", str(tmp_path / "o"))
    assert (status, err) == (130, "stopped; the same command goes on from there\n")


def test_without_the_judge_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "moonlet.gateway.fidelity.judge", raising=False)
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    status, _, err = ran(capsys, "http://127.0.0.1:1")
    assert status == 2
    assert "needs jsonschema" in err
    assert "moonlet[verify]" in err


def test_no_samples_is_the_users_mistake(
    server: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("\n\n")
    status, _, err = ran(capsys, server.url, "--samples", str(tmp_path / "empty"))
    assert status == 2
    assert "holds no request" in err


def test_a_key_that_an_endpoint_repeats_is_not_printed() -> None:
    told = {"url": "u", "checks": [{"detail": f"the key {KEY} is wrong", "seconds": 1.0}]}
    found = _without(KEY, told)
    assert found == {"url": "u", "checks": [{"detail": "the key *** is wrong", "seconds": 1.0}]}
    assert _without(None, told) == told
