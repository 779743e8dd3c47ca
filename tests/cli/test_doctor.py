"""`moonlet doctor`: the document, the exit status, and what it advises. Never how fast anything is."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moonlet import kernels, nano
from moonlet.cli import doctor
from moonlet.cli.main import main
from moonlet.kernels import selftest


def test_a_sound_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "checking" in err
    assert found["ok"] is True
    assert set(found) == {
        "ok", "versions", "machine", "limits", "templates", "nano", "checks", "types_without_kernel", "advice",
    }  # fmt: skip
    assert set(found["versions"]) == {"moonlet", "python", "torch", "numpy"}
    assert found["machine"]["isas"] == list(kernels.supported_isas())
    assert found["machine"]["threads"] >= 1
    assert found["machine"]["memory_bytes"] >= found["machine"]["memory_available_bytes"] > 0
    for threads in ("one_thread", "all_threads"):
        assert found["limits"][threads]["read_bandwidth"] > 0
        assert set(found["limits"][threads]["arithmetic"]) == set(kernels.supported_isas())
    assert {check["isa"] for check in found["checks"]} == set(kernels.supported_isas())
    weights = (nano.folder() / "model.safetensors").read_bytes()
    assert found["nano"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def test_a_failed_check_ends_in_status_1_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [
        selftest.Check("norm", isa, 0.5, 1e-5, "it is [far] off")
        for isa in kernels.supported_isas()
    ]
    monkeypatch.setattr(selftest, "self_test", lambda: iter(checks))
    assert main(["doctor"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "norm on baseline: it is [far] off" in out
    assert "MOONLET_ISA=baseline" in out


def test_a_forced_instruction_set_that_is_not_here(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moonlet.cli.main", "doctor", "--json"]
    env = {**os.environ, "MOONLET_ISA": "avx9"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "MOONLET_ISA is avx9" in done.stderr
    assert "Traceback" not in done.stderr


def test_template_hashes_change_with_what_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    before = doctor.template_hashes()
    assert len(set(before.values())) == len(before) == 3
    monkeypatch.setattr(doctor, "CONVERSATION", [{"role": "user", "content": "Hi"}])
    after = doctor.template_hashes()
    assert all(before[style] != after[style] for style in before)


@pytest.mark.parametrize(
    ("text", "expected"), [("always [madvise] never\n", "madvise"), ("odd", None)]
)
def test_huge_pages(
    text: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "HUGE_PAGES", tmp_path / "enabled")
    assert doctor.huge_pages() is None
    (tmp_path / "enabled").write_text(text)
    assert doctor.huge_pages() == expected
