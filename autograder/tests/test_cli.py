"""The commands: every verb has help, finds the course and the lab, and says with its exit status how it went."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autograder import cli, doctor
from autograder.judge import cycle, session, tiers
from autograder.judge.cycle import Progress
from autograder.judge.intake import Refused
from autograder.judge.receipt import refused, save_receipt
from autograder.judge.session import Outcome, Problem
from autograder.judge.verdict import CycleError
from autograder.judge.zygote import SandboxError
from autograder.staff import exports, late

OURS = ("release", "grade", "judge", "record", "feedback", "export")


@pytest.fixture
def course(tmp_path, tiny, monkeypatch):
    """A course folder, the tiny lab, and no step that does anything."""
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "nbgrader_config.py").write_text("c = get_config()\n")
    monkeypatch.setenv("COURSE_LABS", str(tiny.folder.parent))
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(late, "settle", lambda course, slugs=None: calls.append(("settle", slugs, {})))
    steps = dict.fromkeys(("release", "collect", "judge", "record", "write_feedback"), cycle)
    for name, module in {**steps, "export": exports}.items():
        monkeypatch.setattr(
            module, name, lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)) or Progress()
        )
    monkeypatch.setattr(
        cycle, "scores", lambda course, lab: {"ann": {"score": 4.0, "max_score": 12.0, "needs_manual_grade": True}}
    )
    return calls


def test_every_verb_has_help(capsys):
    """A verb without help is a riddle."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    assert all(verb in listed for verb in (*OURS, *cli.ELSEWHERE))
    for verb in OURS:
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        assert "--course" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("release 00", ["release"]),
        ("judge 00_tiny --jobs 2 --new-seed --student ann", ["judge"]),
        ("record 00", ["record", "settle"]),
        ("feedback 00", ["settle", "write_feedback"]),
        ("export --to g.csv", ["settle", "export"]),
        ("export --format canvas", ["settle", "export"]),
        ("grade 00 --from inbox", ["collect", "judge", "record", "settle", "write_feedback", "export"]),
    ],
)
def test_a_verb_calls_its_steps(course, line, steps):
    """In order, with the options given."""
    assert cli.main(line.split()) == 0
    assert [name for name, _, _ in course] == steps
    if "canvas" in line:
        assert course[1][1][1:] == (Path("grades-canvas.csv"), "canvas")
    if line.startswith("judge"):
        assert course[0][2] == {"jobs": 2, "new_seed": True, "students": ["ann"]}


def test_grade_shows_who_waits_for_a_person_and_whose_file_was_refused(course, monkeypatch, capsys, tmp_path):
    """The last thing an instructor reads."""
    monkeypatch.setenv("AUTOGRADER_TIER", "T0")
    save_receipt(tmp_path / "course" / ".judge", "00_tiny", "dan", refused("dan.ipynb", Refused("x", "no cells")))
    cli.main(["grade", "00"])
    out = capsys.readouterr().out
    assert re.search(r"dan +-  refused: no cells", out)
    assert "ann" in out and "waits for a person" in out and "T0: not for grades" in out


def test_a_problem_with_one_submission_is_exit_status_one(course, monkeypatch, capsys):
    """And the other steps still run."""
    monkeypatch.setattr(cycle, "collect", lambda *args, **kwargs: Progress(problems={"ben": "is a link"}))
    assert cli.main(["grade", "00"]) == 1
    assert "ben: is a link" in capsys.readouterr().err
    assert [name for name, _, _ in course][-1] == "export"


@pytest.mark.parametrize("error", [CycleError("no exchange"), SandboxError("no zygote"), FileNotFoundError("gone")])
def test_what_an_instructor_can_mend_is_a_message(course, monkeypatch, capsys, error):
    """Exit status 2, one line, no traceback."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(cycle, "record", fail)
    assert cli.main(["record", "00"]) == 2
    assert capsys.readouterr().err.startswith(f"autograder record: {error}")


def test_an_unknown_lab_is_named_with_those_there_are(course, capsys):
    """A typo costs one reading."""
    assert cli.main(["judge", "00_tyni"]) == 2
    assert "00_tiny" in capsys.readouterr().err


def test_the_course_folder_is_found_from_inside(course, monkeypatch, tmp_path):
    """./course, the folder itself, or one above; --course wins; elsewhere the message names the option."""
    nothing = SimpleNamespace(course=None)
    assert cli.open_course(nothing).root == tmp_path / "course"
    (tmp_path / "course" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "course" / "deep")
    assert cli.open_course(nothing).root == tmp_path / "course"
    assert cli.open_course(SimpleNamespace(course=tmp_path / "course")).root == tmp_path / "course"
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(CycleError, match="--course"):
        cli.open_course(nothing)


def test_labs_can_be_named(course, tmp_path, monkeypatch):
    """--labs is what COURSE_LABS says."""
    monkeypatch.delenv("COURSE_LABS")
    assert cli.main(["record", "00", "--labs", str(tmp_path)]) == 2


@pytest.mark.parametrize("verb", cli.ELSEWHERE)
def test_verbs_of_other_modules_are_loaded_when_called(monkeypatch, verb):
    """With the rest of the line, and their exit status."""
    seen = []
    module = SimpleNamespace(main=lambda rest: seen.extend(rest) or 3)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module if name == cli.ELSEWHERE[verb][0] else None)
    assert cli.main([verb, "a", "--b"]) == 3 and seen == ["a", "--b"]


def test_the_module_runs_as_a_command(monkeypatch, capsys):
    """python -m autograder."""
    monkeypatch.setattr(sys, "argv", ["autograder"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("autograder", run_name="__main__")
    assert ended.value.code == 2 and "VERB" in capsys.readouterr().err


# --- doctor ---------------------------------------------------------------------------------------------


def test_the_doctor_tells_the_tier_and_finds_this_machine_fit(monkeypatch, capsys):
    """As text for people and as JSON for `course doctor`."""
    monkeypatch.setenv("AUTOGRADER_TIER", "T0")
    assert doctor.main([]) == 0
    assert "T0: not for grades" in capsys.readouterr().out
    assert doctor.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tier"] == "T0"


def test_the_doctor_says_what_a_stronger_tier_lacks_and_how_to_get_it(monkeypatch):
    """The step that failed, in the kernel's words, and one remedy; what costs no tier is said as well."""
    said = {"T2": "OSError: [Errno 1] unshare(0x1): Operation not permitted", "T1": ""}
    limits = {"memory": [], "own_account": False, "landlock": 3, "kept": 4}
    for module in (doctor, tiers):
        monkeypatch.setattr(module, "why_not", said.get)
        monkeypatch.setattr(module, "probe", lambda tier: {"limits": limits})
    monkeypatch.delenv("AUTOGRADER_TIER", raising=False)
    text = "\n".join(doctor.tier_lines(doctor.tier_report()))
    assert "T1: Landlock" in text and "not T2: OSError" in text and "fix: let ordinary users make" in text
    assert "no control group" in text and "signals are left to seccomp" in text and "only root may enter" in text
    assert doctor.remedy("something new") == "see course/staff/tiers.md"
    monkeypatch.setenv("AUTOGRADER_TIER", "T0")
    assert "lowered by" in doctor.tier_report()["notes"][0]


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (Outcome(problem=Problem("crash")), "came back as"),
        (Outcome(1.0), "cannot be measured"),
        (Outcome(1.0, peak_bytes=5), "cannot be trusted"),
    ],
)
def test_a_sandbox_that_misbehaves_is_a_problem(monkeypatch, zygote, outcome, says):
    """Each with its remedy."""
    monkeypatch.setattr(session.Session, "call", lambda *args, **kwargs: outcome)
    finding = doctor.check_sandbox()
    assert not finding.ok and says in finding.says and finding.fix
    assert "PROBLEM" in doctor.line(finding) and finding.fix in doctor.line(finding)


def test_a_sandbox_that_does_not_start_is_a_problem(monkeypatch):
    """In its own words."""

    def fail(*args):
        raise SandboxError("no zygote")

    monkeypatch.setattr(doctor, "Zygote", fail)
    assert doctor.check_sandbox().says == "no zygote"


def test_missing_packages_are_problems(monkeypatch):
    """nbgrader, its tool, triton."""
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert not doctor.check_nbgrader().ok and not doctor.check_triton().ok
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: 1)
    monkeypatch.setattr(doctor.sys, "executable", "/nowhere/python")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "alembic" in doctor.check_nbgrader().says
    assert Path(sys.executable).name
