"""A class under fire: the siege would show a lost, doubled or different grade, and a process left over."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from autograder import kills
from autograder.kills import PHASES, Siege, birth, descendants, left_behind, plan
from autograder.rehearsal import Rehearsal

COURSE = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("count", [4, 20, 33])
def test_every_phase_gets_its_share_of_the_kills(count):
    """All of them, in the order of the work."""
    order = plan(count)
    assert len(order) == count and set(order) == set(PHASES)
    assert order[-1] == "feedback" and order.index("record") > order.index("zygote")


def test_a_process_that_stays_is_found_and_one_that_went_is_not():
    """By number and time of birth, since numbers come again."""
    line = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert process.pid in descendants(os.getpid())
        family = {(process.pid, birth(process.pid)), (process.pid, 1)}
        (found,) = left_behind(family, seconds=0.1)
        assert str(process.pid) in found and "sys.stdin.read" in found
        process.kill()
        process.wait()
        assert left_behind(family, seconds=0.1) == []


def test_a_grade_that_differs_or_is_missing_is_a_fault(monkeypatch):
    """Half a student's grades are a difference, too."""

    class Opened:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def assignment_submissions(self, slug):
            student = type("S", (), {"id": "ann"})
            return [type("R", (), {"student": student})] * 2

    lab = type("L", (), {"slug": "x"})
    run = Rehearsal(type("C", (), {"api": type("A", (), {"gradebook": Opened()})}), lab, 1)
    siege = Siege(run, random.Random(1), {"ann": {"q": 1.0}, "ben": {"q": 1.0}})
    monkeypatch.setattr(kills, "gradebook", lambda run: {"ann": {"q": 0.0}})
    kills.look_at_gradebook(siege, "now", whole=True)
    assert [fault.split(": ")[1] for fault in run.faults] == [
        "a student stands twice in the gradebook",
        "grades differ from the undisturbed run's",
        "1 grades are missing",
    ]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.siege
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_a_class_under_fire_ends_with_every_grade_once(tiny):
    """Twenty SIGKILLs among fifty students, with real processes; a failure names the seed that replays it."""
    line = [sys.executable, "-m", "autograder", "rehearse", "--lab", "00_tiny", "--kills", "20", "--jobs", "2"]
    environment = {**os.environ, "COURSE_LABS": str(tiny.folder.parent)}
    made = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=COURSE, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "20 kills" in made.stdout and "every grade is there once, as in peace" in made.stdout
