"""The weights that ship: complete, small enough, and as good as their card says."""

import re
from pathlib import Path

import pytest

from moonlet.checkpoint import open_checkpoint
from moonlet.config import preset
from moonlet.nano import folder
from moonlet.nano.card import FILE
from moonlet.nano.evaluate import evaluate
from moonlet.nano.recipe import FILES
from moonlet.nano.skills import SKILLS

MAX_BYTES = 16 * 10**6
WANTED = {"sum_thinking": 0.95, "digits_thinking": 0.90, "digits_instant": 0.90}


def figures() -> dict[str, tuple[int, int]]:
    card = (folder() / FILE).read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\d+) of (\d+) \|", card, re.MULTILINE)
    return {skill: (int(correct), int(cases)) for skill, correct, cases in rows}


def test_the_folder_is_a_complete_checkpoint_of_the_preset() -> None:
    checkpoint = open_checkpoint(folder())
    checkpoint.validate()
    assert checkpoint.config == preset("nano")
    assert {FILE, *FILES} <= {path.name for path in folder().iterdir()}
    assert sum(path.stat().st_size for path in folder().iterdir()) <= MAX_BYTES


def test_the_card_shows_every_skill_and_what_was_asked_of_it() -> None:
    shown = figures()
    assert set(shown) == set(SKILLS)
    for skill, (correct, cases) in shown.items():
        assert cases >= 500
        assert correct / cases >= WANTED.get(skill, 0.0), skill


def test_a_few_fresh_cases_come_out_as_the_card_says() -> None:
    pytest.importorskip("sklearn")
    for score in evaluate(folder(), cases=24, seed=99):
        assert score.accuracy >= 0.8, (score.skill, score.mistakes)


def test_the_readme_quotes_the_card() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for skill in ("sum_thinking", "digits_thinking", "identity"):
        correct, cases = figures()[skill]
        assert f"{correct / cases:.1%}".replace("%", " %") in readme, skill


@pytest.mark.slow
def test_the_command_of_the_card_still_prints_its_figures() -> None:
    pytest.importorskip("sklearn")
    seed = int(re.findall(r"--seed (\d+)", (folder() / FILE).read_text())[0])
    shown = figures()
    cases = shown[SKILLS[0]][1]
    for score in evaluate(folder(), cases, seed):
        # Another processor may round a tie differently.
        assert abs(score.correct - shown[score.skill][0]) <= 0.01 * cases, score.skill
