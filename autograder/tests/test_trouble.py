"""A disk that is full and a gradebook that is locked: a clear message with the way out, and nothing lost."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from autograder.judge import cycle, gradebook
from autograder.judge.course import Course
from autograder.judge.intake import load_release
from autograder.judge.tiers import machine_tier
from autograder.judge.verdict import CycleError
from autograder.labs import load_lab
from autograder.synthetic import Classroom

SETTINGS = Path(__file__).resolve().parents[2] / "course" / "nbgrader_config.py"
SCORES = {"perfect": 10, "empty": 0, "half": 4, "duplicated": 10, "markup": 10, "syntax-error": 4}
SMALL = "6m"
# Under a private mount: the course folder lies on a small disk of memory, which this script fills before each step.
FILLED = """
import errno, os, shutil, subprocess, sys
from pathlib import Path

course, disk = Path(sys.argv[1]), Path(sys.argv[2])
shutil.copytree(course, disk / "course")


def fill(free):
    with (disk / "filler").open("wb") as filler:
        try:
            while True:
                filler.write(bytes(1 << 16))
                filler.flush()
        except OSError as problem:
            assert problem.errno == errno.ENOSPC
    os.truncate(disk / "filler", max(0, (disk / "filler").stat().st_size - free))


def autograder(*line):
    line = [sys.executable, "-m", "autograder", *line, "--course", str(disk / "course")]
    made = subprocess.run(line, capture_output=True, text=True)
    print(made.stderr[-3000:], file=sys.stderr)
    return made


for step, free in (("judge", 12 << 10), ("record", 64 << 10), ("feedback", 500 << 10)):
    fill(free)
    made = autograder(step, "00")
    assert made.returncode == 2, (step, made.returncode, made.stdout)
    assert "is full. Free some space and run the same command again" in made.stderr, (step, made.stderr)
    assert "Traceback" not in made.stderr.splitlines()[-1]
    (disk / "filler").unlink()
    assert autograder(step, "00").returncode == 0, step
shutil.copytree(disk / "course", course, dirs_exist_ok=True)
"""


def private_mount() -> list[str]:
    """The command that gives a script a small disk of its own, or a skip that says what this machine refuses."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare command: a small disk cannot be mounted for the test alone")
    line = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    tried = subprocess.run(
        [*line, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    return line


@pytest.fixture
def collected(tmp_path, tiny, monkeypatch):
    """A course in which six students' notebooks wait to be judged."""
    (tmp_path / "course").mkdir()
    shutil.copy(SETTINGS, tmp_path / "course")
    (tmp_path / "course" / "course.toml").write_text(f'[grading]\nminimum_tier = "{machine_tier()}"\n')
    shutil.copytree(tiny.folder, tmp_path / "labs" / "00_tiny", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("COURSE_LABS", str(tmp_path / "labs"))
    course, lab = Course(tmp_path / "course"), load_lab(tmp_path / "labs" / "00_tiny")
    cycle.release(course, lab)
    (tmp_path / "inbox").mkdir()
    for student in Classroom(lab, load_release(lab.folder)).students():
        if student.name in SCORES:
            (tmp_path / "inbox" / f"{student.name}.ipynb").write_bytes(student.bytes())
    assert len(cycle.collect(course, lab, tmp_path / "inbox").done) == len(SCORES)
    return course, lab


def points(course, lab):
    return {student: row["score"] for student, row in cycle.scores(course, lab).items()}


@pytest.mark.slow
@pytest.mark.e2e
def test_a_full_disk_loses_nothing(collected, tmp_path):
    """In the middle of judging, of recording and of feedback, by the real commands; afterwards every grade is right."""
    course, lab = collected
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={SMALL} tmpfs {disk} && exec "$0" -c "$@"'
    line = [*private_mount(), "sh", "-c", mount, sys.executable, FILLED, str(course.root), str(disk)]
    made = subprocess.run(
        line, capture_output=True, text=True, env={**os.environ}, cwd=SETTINGS.parents[1], check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert points(Course(course.root), lab) == SCORES
    drafts = [path for path in (course.root / ".judge").rglob(".*-*") if path.is_file()]
    assert not drafts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")
def test_a_locked_gradebook_loses_nothing(collected, monkeypatch):
    """Whether the other program only writes or shuts everybody out; the run after it finds everything to do."""
    course, lab = collected
    assert len(cycle.judge(course, lab).done) == len(SCORES)
    assert len(cycle.record(course, lab, ["perfect"]).done) == 1
    monkeypatch.setattr(gradebook, "LOCK_SECONDS", 0.1)
    for lock in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"):
        holder = sqlite3.connect(course.root / "gradebook.db", isolation_level=None)
        holder.execute(lock)
        with pytest.raises(CycleError, match=r"locked by another program.*run the same command again"):
            cycle.record(course, lab)
        holder.close()
        assert points(course, lab) == {"perfect": 10}
    assert not cycle.record(course, lab).problems
    assert points(course, lab) == SCORES
