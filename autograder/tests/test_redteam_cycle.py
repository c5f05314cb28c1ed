"""Notebooks that are weapons themselves go through the whole cycle: collect, judge, record, feedback."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from autograder.judge import cycle
from autograder.judge.course import Course
from autograder.judge.intake import load_release
from autograder.judge.tiers import machine_tier
from autograder.labs import load_lab
from autograder.redteam.attack import all_attacks, fill, hand_in, to_bytes
from autograder.redteam.ground import SLUG, build

SETTINGS = Path(__file__).resolve().parents[2] / "course" / "nbgrader_config.py"
CANARY = "CANARY-" + "5" * 32
LIVE = re.compile(r"<script>alert|<img src=x|href=.javascript", re.IGNORECASE)

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")]


def test_hostile_notebooks_are_recorded_without_a_stolen_point_and_without_markup(tmp_path, monkeypatch):
    """In nbgrader's own gradebook nobody has more than the honest score, the neighbour has all, no page is alive."""
    build(tmp_path, CANARY)
    monkeypatch.setenv("COURSE_LABS", str(tmp_path / "labs"))
    lab, attacks = load_lab(tmp_path / "labs" / SLUG), [a for a in all_attacks() if a.kind in ("notebook", "file")]
    course = class_of(tmp_path, lab, attacks)
    cycle.release(course, lab)
    cycle.collect(course, lab, tmp_path / "class")
    cycle.judge(course, lab, jobs=2)
    cycle.record(course, lab)
    cycle.write_feedback(course, lab)
    scores = {name: row["score"] for name, row in cycle.scores(course, lab).items()}
    possible = sum(info.points for info in lab.questions.values())
    assert scores.pop("neighbour") == possible
    assert max(scores.values()) <= possible - lab.questions["softmax"].points
    pages = list((course.root / "feedback").glob(f"*/{SLUG}/*.html"))
    assert len(pages) > len(attacks) // 2
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not LIVE.search(text), page
        assert CANARY not in text, page


def class_of(folder, lab, attacks):
    """A course, and a folder in which every attacker and one honest student have handed in."""
    root, inbox = folder / "course", folder / "class"
    shutil.rmtree(root)
    root.mkdir()
    inbox.mkdir()
    shutil.copy(SETTINGS, root)
    (root / "course.toml").write_text(f'[grading]\nminimum_tier = "{machine_tier()}"\n')
    (root / "secret.txt").write_text(CANARY)
    release, solutions = load_release(lab.folder).notebook, {name: lab.solution(name) for name in lab.checks}
    honest = inbox / "neighbour.ipynb"
    honest.write_bytes(to_bytes(fill(release, solutions)))
    for attack in attacks:
        target = {"mark": "redteam-cycle", "submissions": [str(honest)]}
        hand_in(attack, release, solutions, target, inbox / f"{attack.code.__name__}.ipynb")
    assert nbformat.read(honest, as_version=4).cells
    return Course(root)
