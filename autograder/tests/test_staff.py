"""What an instructor does beside the cycle: class lists, extensions, exports, requests, regrades, explanations."""

import csv
import io
import json
import os
import re
import shutil
from datetime import timedelta
from pathlib import Path

import nbformat
import pytest

from autograder.judge import cycle
from autograder.judge.cells import grade_id
from autograder.judge.course import Course
from autograder.judge.vault import Vault
from autograder.judge.verdict import CycleError, save
from autograder.labs import load_lab
from autograder.staff import explain, exports, history, late, log, regrade, requests, roster
from autograder.staff.grades import Person, Row, total
from autograder.synthetic import Classroom

SETTINGS = Path(__file__).resolve().parents[2] / "course" / "nbgrader_config.py"
TOML = """[grading]
minimum_tier = "T0"
[deadlines]
"00_tiny" = 2030-01-01T00:00:00Z
[late]
grace_minutes = 0
penalty_per_day = 0.1
days = 4
[weights]
"00_tiny" = 2.0
"""

pytestmark = pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """A course folder, a copy of the tiny lab with a rubric, and an inbox."""
    folder = tmp_path_factory.mktemp("staff")
    (folder / "course").mkdir()
    shutil.copy(SETTINGS, folder / "course")
    (folder / "course" / "course.toml").write_text(TOML)
    shutil.copytree(tiny.folder, folder / "labs" / "00_tiny", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(autouse=True)
def labs(monkeypatch, place):
    monkeypatch.setenv("COURSE_LABS", str(place / "labs"))


@pytest.fixture(scope="module")
def lab(place):
    toml = place / "labs" / "00_tiny" / "lab.toml"
    toml.write_text(toml.read_text() + 'rubric = ["1 claim: said first", "1 cause: which elements decide"]\n')
    return load_lab(place / "labs" / "00_tiny")


@pytest.fixture(scope="module")
def course(place, lab, tiny_release):
    """Graded: `perfect` with a written answer, a day late; `empty`; `broken`, whose file was refused."""
    os.environ["COURSE_LABS"] = str(place / "labs")
    found = Course(place / "course")
    cycle.release(found, lab)
    for student in Classroom(lab, tiny_release).students():
        if student.name in ("perfect", "empty"):
            if student.name == "perfect":
                why = next(cell for cell in student.notebook.cells if grade_id(cell) == "why")
                why.source = "Because of two elements."
            box = place / "inbox" / student.name
            box.mkdir(parents=True)
            (box / "lab(1).ipynb").write_bytes(student.bytes())
            (box / "timestamp.txt").write_text("2030-01-01 12:00:00 UTC")
    (place / "inbox" / "broken.ipynb").write_text("{}")
    cycle.collect(found, lab, place / "inbox")
    cycle.judge(found, lab, jobs=1)
    cycle.record(found, lab)
    late.settle(found)
    cycle.write_feedback(found, lab)
    return found


def told(verb, *arguments, course):
    """What a verb prints."""
    return verb.main([*arguments, "--course", str(course.root)])


def mark(course, points):
    """What a person does in formgrader, or undoes."""
    with course.api.gradebook as gradebook:
        grade = gradebook.find_grade("why", "lab", "00_tiny", "perfect")
        grade.manual_score, grade.needs_manual_grade = points, points is None
        gradebook.db.commit()


@pytest.fixture
def marked(course, tmp_path):
    """Two points for the written answer, a name for the student, penalties up to date. Any order of tests will do."""
    file = tmp_path / "class.csv"
    file.write_text(CANVAS)
    roster.enter(course, roster.read(file))
    mark(course, 2.0)
    late.settle(course)
    return course


# --- rubrics --------------------------------------------------------------------------------------------


def test_the_rubric_stands_before_the_answer_and_in_feedback_only_once_it_was_marked(course, lab):
    """formgrader shows the stored notebook: whoever marks reads the marks and the answer together."""
    stored = nbformat.read(course.root / "autograded" / "perfect" / "00_tiny" / "lab.ipynb", as_version=4)
    index = next(i for i, cell in enumerate(stored.cells) if grade_id(cell) == "why")
    assert "**1** claim: said first" in stored.cells[index - 1].source
    page = course.root / "feedback" / "perfect" / "00_tiny" / "lab.html"
    mark(course, None)
    cycle.write_feedback(course, lab, ["perfect"])
    assert "said first" not in page.read_text() and "has not been marked yet" in page.read_text()
    mark(course, 1.0)
    cycle.write_feedback(course, lab, ["perfect"])
    assert "said first" in page.read_text() and "has not been marked yet" not in page.read_text()


def test_a_receipt_stands_on_top_of_the_feedback(course):
    """Who handed in `lab(1).ipynb` reads that it was taken."""
    page = (course.root / "feedback" / "perfect" / "00_tiny" / "lab.html").read_text()
    assert "we took it" in page and page.index("we took it") < page.index("Code questions")


# --- late work ------------------------------------------------------------------------------------------


def penalty_of(course, student="perfect"):
    with course.api.gradebook as gradebook:
        return gradebook.find_submission("00_tiny", student).late_submission_penalty


def test_a_mark_given_later_is_part_of_what_lateness_costs(course):
    """nbgrader counts a penalty when it autogrades, before any person has marked."""
    mark(course, 2.0)
    late.settle(course)
    assert penalty_of(course) == pytest.approx(0.1 * 12)
    assert late.settle(course) == []


def test_an_extension_is_granted_and_taken_back_by_the_file_alone(course):
    """Recording again needs no command; the reason stands beside it, and the page is made anew."""
    file = course.root / "extensions.csv"
    late.settle(course)
    before = penalty_of(course)
    assert before > 0
    for until in ("2030-01-02T00:00Z", "2030-01-02T01:00+01:00", "1", "0.5"):
        file.write_text(f"student,lab,until,why\nperfect,00_tiny,{until},ill\nempty,all,3,ill\n")
        late.settle(course)
        assert not penalty_of(course), until
    assert not course.vault.page_path("00_tiny", "perfect").exists()
    file.unlink()
    assert "00_tiny/perfect" in late.settle(course) and penalty_of(course) == before


def test_recording_again_keeps_an_extension(course, lab):
    """nbgrader's own step counts with what the gradebook holds."""
    (course.root / "extensions.csv").write_text("student,lab,until,why\nperfect,00_tiny,5,ill\n")
    late.settle(course)
    course.vault.recorded_path("00_tiny", "perfect").unlink()
    assert cycle.record(course, lab, ["perfect"]).done == ["perfect"] and not penalty_of(course)
    (course.root / "extensions.csv").unlink()
    late.settle(course)


def test_a_time_that_was_taken_back_makes_nobody_late(course):
    """nbgrader keeps the old one for ever."""
    stamp = course.root / "submitted" / "perfect" / "00_tiny" / "timestamp.txt"
    text = stamp.read_text()
    stamp.unlink()
    late.settle(course)
    assert not penalty_of(course)
    stamp.write_text(text)
    course.vault.recorded_path("00_tiny", "perfect").unlink()
    cycle.record(course, load_lab(Path(os.environ["COURSE_LABS"]) / "00_tiny"), ["perfect"])
    late.settle(course)
    assert penalty_of(course) > 0


def test_every_fault_of_the_file_is_named_with_its_line(course):
    """A misspelt lab must not pass for no extension."""
    file = course.root / "extensions.csv"
    file.write_text("student,lab,until,why\nann,03,2,ill\nben,00_tiny,soon,ill\ncyd,00_tiny,2,\n")
    try:
        with pytest.raises(CycleError, match=r"(?s)line 2: no lab '03'.*line 3: .*soon.*line 4: student and why"):
            late.settle(course)
        file.write_text("who,when\n")
        with pytest.raises(CycleError, match="columns are who, when"):
            late.settle(course)
    finally:
        file.unlink()


def test_the_longest_extension_counts_and_an_early_one_takes_nothing_away():
    """Two reasons may overlap."""
    due = late.datetime(2030, 1, 1, tzinfo=late.UTC)
    early = late.Extension("ann", "x", due - timedelta(days=3), 0, "typo")
    two = late.Extension("ann", "all", None, 2, "ill")
    assert late.extension_for([early, two], "ann", "x", due) == timedelta(days=2)
    assert late.extension_for([early], "ann", "x", due) is None and late.extension_for([two], "ben", "x", due) is None


# --- class lists ----------------------------------------------------------------------------------------

CANVAS = """Student,ID,SIS User ID,SIS Login ID,Section,Lab (123)
    Points Possible,,,,,10
"Lovelace, Ada",101,S1,perfect,A,
"Student, Test",999,,test,A,
"""


def test_a_class_list_goes_in_once_and_again_without_change(course, tmp_path, capsys):
    """From Canvas's own export; the row of points and the test student are no people."""
    file = tmp_path / "canvas.csv"
    file.write_text(CANVAS, encoding="utf-8-sig")
    with course.api.gradebook as gradebook:
        gradebook.update_or_create_student("perfect", first_name="", lms_user_id=None)
    assert told(roster, str(file), course=course) == 0
    out = capsys.readouterr().out
    assert "0 added, 1 changed, 0 unchanged" in out and "not in the file" in out and "empty" in out
    assert told(roster, str(file), course=course) == 0
    assert "0 added, 0 changed, 1 unchanged" in capsys.readouterr().out
    with course.api.gradebook as gradebook:
        ada = gradebook.find_student("perfect")
        assert (ada.first_name, ada.last_name, ada.lms_user_id) == ("Ada", "Lovelace", "101")
    assert roster.extras(course)["perfect"] == {"sis_id": "S1", "section": "A"}


FAULTS = {
    "id\nann\nann\n": r"lines 2 and 3: the same id 'ann'",
    "id,email\nann,A@b.c\nben,a@B.c\n": r"lines 2 and 3: the same email",
    "id,lms_id\nann,7\nben,7\n": "the same lms_id",
    "id\nann b\n": "line 2: 'ann b' is no student id",
    "id,last name\nann,<script>\n": "line 2: last_name holds a character that no name has",
    "id,last name\nann," + "x" * 200 + "\n": "longer than 120",
    "name,section\nAnn,1\n": "no column for the student id",
    "": "no column",
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_a_faulty_class_list_changes_nothing_and_names_its_lines(tmp_path, text):
    """All of them at once."""
    file = tmp_path / "roster.csv"
    file.write_text(text)
    with pytest.raises(CycleError, match=FAULTS[text]):
        roster.read(file)


def test_a_class_list_with_semicolons_and_plain_names_is_read(tmp_path):
    """As spreadsheets in many countries write it; one column for both names."""
    file = tmp_path / "roster.csv"
    file.write_text("Username;Full name;Email address\nann;Ann van Dam;a@b.c\n")
    (ann,) = roster.read(file)
    assert (ann["id"], ann["first_name"], ann["last_name"], ann["email"]) == ("ann", "Ann van", "Dam", "a@b.c")


# --- exports --------------------------------------------------------------------------------------------


def read_back(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_canvas_reads_its_own_columns_back(marked, tmp_path):
    """Points possible in the second row; nothing for who handed nothing in, so that no grade there is overwritten."""
    exports.export(marked, tmp_path / "c.csv", "canvas")
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0] == "Student,ID,SIS User ID,SIS Login ID,Section,00_tiny,Course total (percent)"
    assert lines[1] == "Points Possible,,,,,12,100"
    table = {row["SIS Login ID"]: row for row in read_back(tmp_path / "c.csv")[1:]}
    assert table["perfect"]["00_tiny"] == "10.8" and table["perfect"]["Course total (percent)"] == "90"
    assert table["perfect"]["Student"] == "Lovelace, Ada" and table["perfect"]["ID"] == "101"


def test_moodle_reads_its_own_columns_back(marked, tmp_path):
    """`(Real)` says points."""
    exports.export(marked, tmp_path / "m.csv", "moodle")
    table = {row["Username"]: row for row in read_back(tmp_path / "m.csv")}
    assert table["perfect"]["Assignment: 00_tiny (Real)"] == "10.8" and table["perfect"]["Last name"] == "Lovelace"
    assert table["empty"]["Assignment: 00_tiny (Real)"] == "0"


def test_the_long_form_has_every_penalty_and_a_total(marked, tmp_path):
    """With nbgrader's columns first, and weights of course.toml."""
    exports.export(marked, tmp_path / "g.csv")
    table = {(row["student_id"], row["assignment"]): row for row in read_back(tmp_path / "g.csv")}
    mine = table["perfect", "00_tiny"]
    assert (mine["raw_score"], mine["late_submission_penalty"], mine["score"], mine["weight"]) == (
        "12",
        "1.2",
        "10.8",
        "2",
    )
    assert table["perfect", exports.TOTAL]["score"] == "90"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "=cmd|' /C calc'!A0"])
def test_no_cell_begins_like_a_formula(text):
    """A name chosen by a student is opened in an instructor's spreadsheet."""
    (row,) = csv.reader(io.StringIO(exports.as_csv([[text, -1.5, 2, "a,b", 'c"d', "e\nf", None]])))
    assert row[0].startswith("'") and row[0].strip("'").strip() == text.strip()
    assert row[1:] == ["-1.5", "2", "a,b", 'c"d', "e f", ""]


def test_weights_count_in_the_total():
    """A lab of weight 3 counts thrice as much as one of weight 1; what is not handed in counts as nothing."""
    ann = Person("ann")
    own = {"a": Row(ann, "a", 10.0, raw=10.0, handed_in=True), "b": Row(ann, "b", 4.0, raw=2.0, penalty=1.0)}
    assert total(own, {"a": 3.0}) == pytest.approx(100 * (3 * 1 + 1 * 0.25) / 4)
    assert total({}, {}) == 0.0


def test_a_file_that_is_there_is_kept_under_its_date(tmp_path):
    """Results are never lost, and the same result makes no second file."""
    file = tmp_path / "grades.csv"
    assert exports.write_keeping(file, "one") == f"{file}: written"
    assert "unchanged" in exports.write_keeping(file, "one") and len(list(tmp_path.iterdir())) == 1
    for number, text in enumerate(("two", "three", "four"), start=2):
        os.utime(file, (1_900_000_000, 1_900_000_000))
        assert "the one of before is grades-2030-03-17-174640" in exports.write_keeping(file, text)
        assert len(list(tmp_path.iterdir())) == number
    assert {path.read_text() for path in tmp_path.iterdir()} == {"one", "two", "three", "four"}


# --- explanations ---------------------------------------------------------------------------------------


def test_explain_tells_what_was_run_and_how_each_case_went(course, capsys):
    """For staff: tier, cells, cases with weights, notes of the intake. Nothing hidden, and no judge is started."""
    assert told(explain, "00", "perfect", course=course) == 0
    out = capsys.readouterr().out
    assert "runs " in out and "spread (" in out and "in tier T" in out and "weight 1" in out
    assert "'lab(1).ipynb' taken as lab.ipynb" in out and "spread: passed, 4 of 4 points" in out
    assert "read by a person" in out and "PROBLEM" not in out


def test_explain_names_every_reason_for_no_points(course, capsys, monkeypatch):
    """A refused file, a stranger, a verdict about something older, a tier that does not count."""
    told(explain, "00", "broken", course=course)
    assert "refused" in capsys.readouterr().out
    told(explain, "00", "nobody", course=course)
    assert "no valid verdict" in capsys.readouterr().out
    path = course.root / "submitted" / "perfect" / "00_tiny" / "lab.ipynb"
    good = path.read_text()
    try:
        path.write_text(good.replace("def spread", "def  spread"))
        monkeypatch.setattr(explain, "at_least", lambda tier, minimum: False)
        told(explain, "00", "perfect", course=course)
        out = capsys.readouterr().out
        assert "handed in something newer" in out and "PROBLEM: course.toml asks for T0" in out
    finally:
        path.write_text(good)


# --- requests, regrades, history ------------------------------------------------------------------------


def test_a_request_is_listed_with_the_judges_words_until_it_is_answered(course, capsys):
    """The student's words cannot act in a terminal; the answer goes to the log."""
    (course.root / "requests.csv").write_text(
        "student,lab,question,why\nempty,00_tiny,spread,\x1b[2Jit works on my machine\nperfect,01,other,x\n"
    )
    assert told(requests, "00", course=course) == 0
    out = capsys.readouterr().out
    assert "1 open requests" in out and "it works on my machine" in out and "\x1b" not in out
    assert "| spread: not attempted yet" in out
    with pytest.raises(CycleError, match="needs --why"):
        told(requests, "00", "--answer", "empty", "spread", course=course)
    with pytest.raises(CycleError, match="no open request"):
        told(requests, "00", "--answer", "perfect", "spread", "--why", "no", course=course)
    told(requests, "00", "--answer", "empty", "spread", "--why", "the cell is untouched", course=course)
    told(requests, "00", course=course)
    assert "0 open requests" in capsys.readouterr().out


def test_a_faulty_file_of_requests_is_named(course, lab, tmp_path):
    """Missing, without its columns, about no question."""
    file = tmp_path / "requests.csv"
    with pytest.raises(CycleError, match="does not exist"):
        requests.read(file, lab)
    file.write_text("a,b\n")
    with pytest.raises(CycleError, match="needed: student"):
        requests.read(file, lab)
    file.write_text("student,lab,question,why\nann,00,sprad,x\n")
    with pytest.raises(CycleError, match="line 2: no question 'sprad'"):
        requests.read(file, lab)


def test_a_grade_that_would_fall_is_named_and_not_written(course, lab, place, capsys):
    """Not without --lower; and with --dry-run nothing at all is written."""
    before = course.vault.verdict_path("00_tiny", "perfect").read_bytes()
    same = ["00", "--why", "spread counted too little", "--jobs", "1", "--course", str(course.root)]
    toml = place / "labs" / "00_tiny" / "lab.toml"
    good = toml.read_text()
    toml.write_text(good.replace("points = 4", "points = 3", 1))
    try:
        assert regrade.main(same) == 1
    finally:
        toml.write_text(good)
    out = capsys.readouterr().out
    assert re.search(r"perfect +10 -> 9 .*spread 4 -> 3   FALLS", out) and "1 grades would fall (perfect)" in out
    assert regrade.main([*same, "--student", "perfect", "--dry-run"]) == 0
    assert "every grade stays as it is" in capsys.readouterr().out
    assert course.vault.verdict_path("00_tiny", "perfect").read_bytes() == before
    assert not list(course.vault.folder.glob("regrade-*")) and not (course.vault.folder / "replaced").exists()


def test_a_grade_that_rises_is_written_recorded_and_told(marked, capsys):
    """From a verdict that was too low, as a wrong check makes it, to the gradebook, the page and the history."""
    course = marked
    vault, path = course.vault, course.vault.verdict_path("00_tiny", "perfect")
    verdict = cycle.load("00_tiny", "perfect", vault)
    verdict.questions["spread"]["earned"] = 1.0
    save(verdict, vault)
    assert json.loads(path.read_text())["questions"]["spread"]["earned"] == 1.0
    assert regrade.main(["00", "--why", "first row", "--student", "perfect", "--course", str(course.root)]) == 0
    assert re.search(r"perfect +7 -> 10 +spread 1 -> 4\n", capsys.readouterr().out)
    page = (course.root / "feedback" / "perfect" / "00_tiny" / "lab.html").read_text()
    assert "spread: passed" in page and "said first" in page and "has not been marked" not in page
    entry = log.read(vault)[-1]
    assert (entry["student"], entry["old"], entry["new"], entry["questions"]) == (
        "perfect",
        7.0,
        10.0,
        [["spread", 1.0, 4.0]],
    )
    assert told(history, "00", "perfect", course=course) == 0
    out = capsys.readouterr().out
    assert "regrade, 7 -> 10, because: first row" in out and "replaced verdict" in out and "late penalty 1.2" in out
    assert "why: 2 of 2, by a person, to be looked at again" in out and "check-spread: 4 of 4, by the judge" in out
    told(history, "00", "nobody", course=course)
    assert "not in the gradebook" in capsys.readouterr().out


def test_a_regrade_without_a_reason_is_none(course):
    """Students will ask."""
    with pytest.raises(CycleError, match="--why is empty"):
        regrade.main(["00", "--why", " ", "--course", str(course.root)])


SPOILT = {
    "removed": lambda lines: lines[1:],
    "edited": lambda lines: [lines[0].replace('"why": "a"', '"why": "z"'), *lines[1:]],
    "added": lambda lines: [*lines, "{}"],
    "reordered": lambda lines: lines[::-1],
    "repeated": lambda lines: [*lines, lines[-1]],
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_log_that_was_touched_is_not_believed(tmp_path, spoil):
    """Each line signs the one before."""
    vault = Vault(tmp_path)
    assert log.read(vault) == []
    log.write(vault, [{"why": "a"}, {"why": "b"}])
    log.write(vault, [{"why": "b"}])
    assert [entry["why"] for entry in log.read(vault)] == ["a", "b", "b"]
    log.path_of(vault).write_text("\n".join(spoil(log.lines_of(vault))) + "\n")
    with pytest.raises(CycleError, match="not what was written"):
        log.read(vault)
