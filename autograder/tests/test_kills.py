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
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")


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


# --- one blow, at a command that only writes files ------------------------------------------------------

# One verdict after another, with a child that has a zygote's command line and ends with its parent, or does not.
COMMAND = """
import pathlib, subprocess, sys, time
folder, students, cling, old = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "cling", sys.argv[4]
wait = "import time; time.sleep(30)" if cling else "import sys; sys.stdin.read()"
zygote = subprocess.Popen([sys.executable, "-c", wait, "sandbox/" + "zygote.py"], stdin=subprocess.PIPE)
folder.mkdir(parents=True, exist_ok=True)
for number in range(students):
    if (path := folder / f"s{number:03d}.json").exists() and old == "kept":
        continue
    path.write_text(f"{{}} {time.time()}")
    time.sleep(0.05)
    if zygote.poll() is not None and old == "dies":
        raise SystemExit("no zygote")
zygote.terminate()
"""


@pytest.fixture
def fired(tmp_path, monkeypatch):
    """A function that makes a siege of twelve students whose command behaves as it is told."""

    def siege(cling="leaves", old="kept"):
        lab = type("L", (), {"slug": "x"})
        course = type("C", (), {"root": tmp_path / "course"})
        course.root.mkdir()
        (course.root / "gradebook-before.db").write_text("empty")
        run = Rehearsal(course, lab, 1, students=[None] * 12)
        made = Siege(run, random.Random(4))

        def start(run):
            line = [sys.executable, "-c", COMMAND, str(made.verdicts), "12", cling, old]
            kills.words(run).write_text("no zygote")
            return subprocess.Popen(line, stderr=subprocess.DEVNULL)

        monkeypatch.setattr(kills, "start", start)
        monkeypatch.setattr(kills, "JITTER", 0.05)
        monkeypatch.setattr(kills, "look_at_gradebook", lambda *arguments, whole: None)
        monkeypatch.setattr(kills, "left_behind", lambda family: left_behind(family, seconds=2.0))
        return made

    return siege


@linux
def test_a_command_that_is_run_again_keeps_what_was_finished(fired):
    """Two blows without a fault, and verdicts are only added; the next one begins anew once all are there."""
    siege = fired()
    assert kills.strike(siege, "judge")
    before = siege.finished("judge")
    while not kills.strike(siege, "zygote"):
        pass
    assert siege.run.faults == [] and len(siege.log) == 2 and 0 < before <= siege.finished("judge")
    kills.undo(siege, "judge")
    assert siege.finished("judge") == 0 and (siege.run.course.root / "gradebook.db").read_text() == "empty"


@linux
@pytest.mark.parametrize(
    ("behaviour", "phase", "fault"),
    [
        ({"cling": "cling"}, "judge", "processes left behind"),
        ({"old": "overwritten"}, "judge", "finished verdicts lost or changed"),
        ({"old": "dies"}, "zygote", "did not survive the death of a zygote: no zygote"),
    ],
    ids=["a child stays", "verdicts change", "ends with its zygote"],
)
def test_each_kind_of_damage_is_a_fault(fired, behaviour, phase, fault):
    """Seen from outside, after the blow."""
    siege = fired(**behaviour)
    if phase == "judge":  # something must be there to be lost
        siege.verdicts.mkdir(parents=True)
        (siege.verdicts / "s000.json").write_text("finished")
    while not kills.strike(siege, phase) and not siege.run.faults:
        pass
    assert any(fault in said for said in siege.run.faults)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.siege
@linux
def test_a_class_under_fire_ends_with_every_grade_once(tiny):
    """Twenty SIGKILLs among fifty students, with real processes; a failure names the seed that replays it."""
    line = [sys.executable, "-m", "autograder", "rehearse", "--lab", "00_tiny", "--kills", "20", "--jobs", "2"]
    environment = {**os.environ, "COURSE_LABS": str(tiny.folder.parent)}
    made = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=COURSE, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "20 kills" in made.stdout and "every grade is there once, as in peace" in made.stdout
