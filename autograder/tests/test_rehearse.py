"""The rehearsal finds what it looks for: a wrong grade, a lost verdict, a leaked number."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autograder import cli, rehearsal, rehearse
from autograder.hidden import hidden_numbers, secret_texts, significant, visible
from autograder.judge import cycle
from autograder.labs import load_lab
from autograder.rehearsal import Rehearsal, kill_when
from autograder.rehearse import faults_of_page
from autograder.synthetic import Classroom, Student, expected

SETTINGS = Path(__file__).resolve().parents[2] / "course"
SEED = 5


@pytest.fixture
def students(tiny, tiny_release):
    return {student.name: student for student in Classroom(tiny, tiny_release).students()}


# --- the class ------------------------------------------------------------------------------------------


def test_the_class_has_every_kind_of_student(students):
    """At least twelve; those that the course promises are among them."""
    promised = (
        "perfect empty half mistakes-first syntax-error infinite-loop crash deleted duplicated renamed edited-check"
    )
    assert len(students) >= 12 and {*promised.split(), "cheat-oracle", "no-notebook"} <= set(students)


def test_expected_scores_come_from_the_lab(tiny, students):
    """Full, none, or a direct evaluation: the second mistake of `spread` keeps the case it gets right."""
    worth = {name: sum(expected(tiny, student, SEED).values()) for name, student in students.items()}
    assert (worth["perfect"], worth["empty"], worth["half"], worth["renamed"]) == (10, 0, 4, 4)
    assert worth["mistakes-last"] == 3


def test_every_lab_is_rehearsed_and_the_largest_with_the_whole_class(tiny, monkeypatch):
    """More labs must not make `make grade` a coffee break; a lab that is named gets everything."""
    labs = [replace(tiny, slug=str(n), questions=dict.fromkeys(range(n))) for n in (3, 1, 2, 4)]
    monkeypatch.setattr(rehearse, "all_labs", lambda: labs)
    assert rehearse.choose(rehearse.parser().parse_args([])) == (labs, {"3", "4"})
    monkeypatch.setattr(rehearse, "find_lab", lambda name: tiny)
    assert rehearse.choose(rehearse.parser().parse_args(["--lab", "00"])) == ([tiny], {"00_tiny"})


# --- what must not be shown -----------------------------------------------------------------------------


def test_a_hidden_number_is_recognised_in_any_spelling():
    """Sign, exponent, position of the point and further digits do not hide it; short numbers are nobody's."""
    assert set(significant("x=-1.234567, 0.001234567e5 and 1234567890")) == {"123456"}
    assert not set(significant("12345 3.14 v2.0.1 100"))


def test_inputs_and_expected_values_are_searched_for(tiny):
    """And the seed, digit by digit."""
    numbers = hidden_numbers(tiny, 1234567890123456789)
    case = next(case for _, case in tiny.checks["spread"].draw(1234567890123456789))
    x = case.args[0]
    for value in (x[0, 0].item(), (x.amax(-1) - x.amin(-1))[0].item()):
        assert set(significant(f"{value:.9f}")) <= numbers
    assert "1234567890123456789" in numbers


def test_a_page_that_tells_too_much_is_a_fault(tiny, students, monkeypatch):
    """A number, a line of checks.py, live markup, a missing tier; what the student wrote is the student's."""
    monkeypatch.setattr(rehearse, "machine_tier", lambda: "T0")
    number, line = "0.7654321", secret_texts(tiny)[0]
    clean = "<p>T0: not for grades</p>"
    student = students["empty"]
    assert list(faults_of_page(clean, student, {"765432"}, [line])) == []
    found = [f"{clean}{number}", f"{clean}{line}", f"{clean}<script>alert(1)</script>", "<p>nothing</p>"]
    says = ["hidden numbers", "check source", "live markup", "not for grades"]
    for page, word in zip(found, says, strict=True):
        (fault,) = faults_of_page(page, student, {"765432"}, [line])
        assert word in fault
    own = Student("own", "", content=f"{number} {json.dumps(line)[1:-1]}".encode())
    assert list(faults_of_page(f"{clean}{number} {line}", own, {"765432"}, [line])) == []


def test_a_page_says_that_it_is_not_for_grades_where_it_is_not(students, monkeypatch):
    """In T0, and nowhere else: a warning that is always there is read by nobody."""
    for tier, page, faults in (
        ("T2", "<p>fine</p>", 0),
        ("T2", "<p>T0: not for grades</p>", 1),
        ("T0", "<p>fine</p>", 1),
    ):
        monkeypatch.setattr(rehearse, "machine_tier", lambda tier=tier: tier)
        assert len(list(faults_of_page(page, students["empty"], set(), []))) == faults


def test_only_what_a_reader_sees_is_searched():
    """Styles and scripts of the page are nbconvert's, full of numbers of their own."""
    assert visible("<style>a{b:0.123456}</style><p>a &lt; b</p><script>1</script>").split() == ["a", "<", "b"]


def test_secret_lines_are_those_that_students_do_not_have(tiny):
    """What stands in the notebook anyway is no secret."""
    secrets = secret_texts(tiny)
    assert ".judge" in secrets and any("torch.randn" in line for line in secrets)


# --- the whole, with the real commands in this process ----------------------------------------------------


@pytest.fixture
def in_process(monkeypatch, capsys):
    """`autograder …` as a function call; the killed runs are cut short by their own kind of death."""

    def command(run, *arguments):
        capsys.readouterr()
        status = cli.main([*arguments, "--course", str(run.course.root)])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, out, err)

    def kill(run, ready):
        lab = load_lab(run.lab.folder)
        if not list((run.course.root / "submitted").glob("*")):
            cycle.collect(run.course, lab, run.inbox)
            cycle.judge(run.course, lab, students=["perfect", "empty", "half"])
        assert ready() or list((run.course.root / ".judge").glob("verdicts/*/*"))

    monkeypatch.setattr(rehearse, "command", command)
    monkeypatch.setattr(rehearse, "kill_when", kill)
    monkeypatch.setattr(rehearsal, "SECONDS", 2)
    monkeypatch.setattr(rehearse, "plain_nbgrader", lambda run: None)
    monkeypatch.setenv("COURSE_LABS", "")


@pytest.fixture
def short_class(monkeypatch):
    wanted = {"perfect", "empty", "half", "mistakes-last", "no-notebook"}
    make = Classroom.students
    monkeypatch.setattr(Classroom, "students", lambda self, whole: [s for s in make(self, whole) if s.name in wanted])


@pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")
def test_a_rehearsal_without_faults_ends_with_zero(in_process, short_class, tiny, monkeypatch, capsys):
    """A table with expected and recorded scores, and the tier's worth."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("COURSE_LABS", str(tiny.folder.parent))
    monkeypatch.setenv("AUTOGRADER_TIER", "T0")
    monkeypatch.setattr(rehearse, "open_course", lambda arguments: Rehearsal_settings)
    status = rehearse.main(["--lab", "00_tiny", "--jobs", "1"])
    torch.set_num_threads(threads)
    out, err = capsys.readouterr()
    assert status == 0, err
    assert "every score is as expected" in out and "T0: not for grades" in out and "mistakes-last" in out


class Rehearsal_settings:  # noqa: N801  (stands for a Course: only its root is asked for)
    root = SETTINGS


@pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")
def test_a_rehearsal_with_a_wrong_expectation_ends_with_one(
    in_process, short_class, tiny, monkeypatch, tmp_path, capsys
):
    """Whatever disagrees is named: the student, both scores."""
    monkeypatch.setattr(rehearse, "expected", lambda lab, student, seed: {"spread": 1.0, "stream_sum": 0.0})
    assert rehearse.rehearse(tmp_path, [tiny], set(), SETTINGS, 1) == 1
    out, err = capsys.readouterr()
    assert (
        "FAULT 00_tiny: perfect: gradebook {'spread': 4.0, 'stream_sum': 6.0}, expected" in err and "<-- FAULT" in out
    )


def test_a_run_is_killed_once_it_is_ready(tmp_path, monkeypatch):
    """SIGKILL, and the process is gone when the function returns."""
    run = Rehearsal(None, None, 1)
    monkeypatch.setattr(rehearsal, "grade_arguments", lambda run: ["doctor"])
    monkeypatch.setattr(rehearsal, "environment", lambda run: {})
    run.course = Rehearsal_settings
    start = time.monotonic()
    kill_when(run, lambda: True)
    assert time.monotonic() - start < 5


@pytest.mark.slow
@pytest.mark.e2e
def test_the_whole_rehearsal_as_a_command(tiny):
    """As `make grade` runs it, with real processes, real kills, and nbgrader's own Execute."""
    line = [sys.executable, "-m", "autograder", "rehearse", "--lab", "00_tiny", "--jobs", "2"]
    environment = {"COURSE_LABS": str(tiny.folder.parent)}
    made = subprocess.run(
        line, capture_output=True, text=True, env={**os.environ, **environment}, cwd=SETTINGS.parent, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "every score is as expected" in made.stdout
