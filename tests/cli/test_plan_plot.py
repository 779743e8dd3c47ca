"""`moonlet plan --plot`: the picture is whole, says what the document says, and is refused in one sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moonlet.cli import plan_plot
from moonlet.cli.main import main
from moonlet.cli.plan_plot import own_usd, speed_over_context
from moonlet.config import preset
from moonlet.plan.answer import Answer, Question, answer
from moonlet.plan.cost import Running, Speed, agent_mix, usd_per_day
from moonlet.plan.describe import describe_machine
from moonlet.plan.engines import engine

H200 = ["plan", "kimi-k2.5", "--gpu", "8xh200"]
STARTS = {".png": b"\x89PNG\r\n", ".pdf": b"%PDF-", ".svg": b"<?xml"}


def texts(monkeypatch: pytest.MonkeyPatch, path: Path, *argv: str) -> str:
    """The picture as SVG with its words as text."""
    mpl = pytest.importorskip("matplotlib")
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    assert main([*argv, "--plot", str(path)]) == 0
    return re.sub(r"<!--.*?-->", "", path.read_text("utf-8"), flags=re.DOTALL)  # which repeat words


@pytest.mark.parametrize("suffix", STARTS)
def test_a_picture_by_suffix(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plan{suffix.upper()}"
    path.write_text("old")
    assert main([*H200, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(STARTS[suffix])
    assert list(tmp_path.iterdir()) == [path]  # nothing is left beside it
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_three_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = texts(monkeypatch, tmp_path / "a.svg", *H200)
    for words in (
        "moonshotai/Kimi-K2.5 on 8xh200 + 2x EPYC 9654", "memory by tier", "routed experts", "speed over context",
        "vllm, native", "cost over use", "api.moonshot.ai/kimi-k2.5", "break-even", "its most",
    ):  # fmt: skip
        assert words in found, words


def test_two_panels_without_a_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["plan", "kimi-k2.5", "--gpu", "8x$mine_{0}$:141GB@4800"]
    found = texts(monkeypatch, tmp_path / "a.svg", *argv)
    assert "speed over context" in found
    assert "cost over use" not in found
    assert "$mine_{0}$" in found  # no formula


def test_the_same_plan_is_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = texts(monkeypatch, tmp_path / "a.svg", *H200)
    assert texts(monkeypatch, tmp_path / "b.svg", *H200) == first


def test_no_display_is_needed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code = "import sys; from moonlet.cli.main import main; status = main(sys.argv[1:])\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules; sys.exit(status)"
    env = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    path = tmp_path / "a.png"
    command = [sys.executable, "-c", code, *H200, "--plot", str(path)]
    subprocess.run(command, check=True, capture_output=True, env={**env, "MPLBACKEND": "tkagg"})
    assert path.stat().st_size > 10_000


def test_a_home_that_cannot_be_written_is_no_news(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPL"))}
    command = [sys.executable, "-m", "moonlet", *H200, "--plot", str(tmp_path / "a.svg")]
    home = str(tmp_path / "file" / "home")
    done = subprocess.run(command, check=True, capture_output=True, env={**env, "HOME": home})
    assert done.stderr == b""
    assert (tmp_path / "a.svg").exists()


def one_sentence(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main([*argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("moonlet: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", ["a.gif", "a", ".png", "a.png.bak", "svg"])
def test_other_suffixes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = one_sentence(capsys, *H200, "--plot", str(tmp_path / name))
    assert "must end in .svg, .png, .pdf" in told
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for place in ("no/a.png", "folder.png", "file/a.png", "n" * 300 + ".png", "a\0.png"):
        told = one_sentence(capsys, *H200, "--plot", str(tmp_path / place))
        assert "cannot be written" in told, place
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = one_sentence(capsys, *H200, "--plot", str(tmp_path / "a.png"))
    assert "pip install 'moonlet[plot]'" in told
    assert list(tmp_path.iterdir()) == []


def test_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal is the answer, and there is no picture of it."""
    argv = ["plan", "kimi-k2.5", "--gpu", "2xh100", "--engine", "vllm"]
    assert main([*argv, "--plot", str(tmp_path / "a.png")]) == 1
    out, err = capsys.readouterr()
    assert "does not fit" in out
    assert "nothing to draw" in err
    assert list(tmp_path.iterdir()) == []


def asked(context: int, **hardware: Any) -> Answer:
    machine, _ = describe_machine(**hardware)
    question = Question(preset("kimi-k2.5"), "native", machine, context)
    return answer(question, engine("vllm"))


def test_the_curve_ends_where_the_cache_does_not_fit() -> None:
    """Tensor parallelism keeps a copy of the cache on each GPU; 8 of 83 GB hold the weights and little more."""
    large = list(speed_over_context(asked(4096, gpu=["8xh200"])))
    small = list(speed_over_context(asked(4096, gpu=["8xmine:83GB@4800"], ram_gb=1024)))
    assert large[0][0] == small[0][0] == 1024
    assert large[-1][0] == 262_144
    assert 4096 <= small[-1][0] < 262_144
    speeds = [each.value for _, each in large]
    assert speeds == sorted(speeds, reverse=True)


def test_a_point_of_the_curve_is_the_answer_there() -> None:
    plan = asked(32_768, gpu=["8xh200"])
    curve = dict(speed_over_context(plan))
    there = Question(preset("kimi-k2.5"), "native", plan.question.machine, 262_144, prompt=262_144, answer=0)  # fmt: skip
    found = answer(there, engine("vllm")).each_tok_s
    assert found is not None
    assert curve[262_144] == found


def test_dollars_of_a_day() -> None:
    """The line of the picture against `usd_per_day`."""
    running, speed, mix = Running(6000.0, 250_000.0, 0.2), Speed(10_000.0, 800.0), agent_mix()
    cost = {
        "hardware_usd_per_day": running.hardware_usd_per_day,
        "idle_usd_per_day": running.idle_usd_per_day,
        "usd_per_million_more": mix.seconds_per_million(speed) * running.extra_usd_per_s,
    }
    for tokens in (0.0, 1e6, 3e8):
        assert own_usd(cost, tokens) == pytest.approx(usd_per_day(running, speed, mix, tokens))


def test_nothing_is_drawn_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(plan_plot, "draw", refuse)
    assert main(H200) == 0
