"""A class goes through nbgrader: every step restarts, one student stops nobody, and nothing is given away."""

import shutil
from pathlib import Path

import nbformat
import pytest

from autograder.judge import cycle, workers
from autograder.judge.cycle import Course, Progress
from autograder.judge.vault import Vault
from autograder.judge.verdict import CycleError, load
from autograder.judge.workers import Job, Worker, in_worker, start_worker
from autograder.labs import load_lab
from autograder.synthetic import Classroom

SETTINGS = Path(__file__).resolve().parents[2] / "course" / "nbgrader_config.py"
CLASS = ("perfect", "empty", "duplicated", "markup", "no-notebook")

pytestmark = pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """A course folder, a copy of the tiny lab, and an inbox with five students."""
    folder = tmp_path_factory.mktemp("class")
    (folder / "course").mkdir()
    shutil.copy(SETTINGS, folder / "course")
    (folder / "course" / "course.toml").write_text(
        '[grading]\nminimum_tier = "T0"\n[deadlines]\n"00_tiny" = 2030-01-01T00:00:00Z\n'
    )
    shutil.copytree(tiny.folder, folder / "labs" / "00_tiny", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "inbox").mkdir()
    return folder


@pytest.fixture(autouse=True)
def labs(monkeypatch, place):
    monkeypatch.setenv("COURSE_LABS", str(place / "labs"))


@pytest.fixture(scope="module")
def lab(place):
    return load_lab(place / "labs" / "00_tiny")


@pytest.fixture(scope="module")
def course(place):
    return Course(place / "course")


@pytest.fixture(scope="module")
def released(course, lab):
    return cycle.release(course, lab)


@pytest.fixture(scope="module")
def collected(place, course, lab, released, tiny_release):
    for student in Classroom(lab, tiny_release).students():
        if student.name in CLASS:
            (place / "inbox" / f"{student.name}.ipynb").write_bytes(student.bytes())
    return cycle.collect(course, lab, place / "inbox")


@pytest.fixture(scope="module")
def judged(course, lab, collected):
    return cycle.judge(course, lab, jobs=1)


@pytest.fixture(scope="module")
def recorded(course, lab, judged):
    return cycle.record(course, lab)


def test_the_release_is_the_labs_own_notebook(released, lab):
    """Byte for byte."""
    assert released.read_bytes() == (lab.folder / "lab.ipynb").read_bytes()


def test_the_deadline_stands_in_the_gradebook(course, lab, released):
    """Where nbgrader's late policy reads it."""
    with course.api.gradebook as gradebook:
        assert gradebook.find_assignment("00_tiny").duedate.year == 2030


def test_what_is_no_notebook_is_reported_and_the_others_are_taken(collected):
    """By name, with a reason for staff, and one for the student in a receipt."""
    assert set(collected.done) == set(CLASS) - {"no-notebook"}
    assert "nested deeper" in collected.problems["no-notebook"]
    assert collected.text == "4 done, 0 unchanged, 1 with problems"


def test_collecting_again_changes_nothing(place, course, lab, collected):
    """A newer file replaces an older one; the same file is left alone."""
    again = cycle.collect(course, lab, place / "inbox")
    assert set(again.kept) == set(CLASS) - {"no-notebook"} and not again.done


def test_everybody_gets_a_verdict_once(course, lab, judged):
    """A second run finds nothing to do."""
    assert len(judged.done) == 4 and not judged.problems
    again = cycle.judge(course, lab, jobs=1)
    assert len(again.kept) == 4 and not again.done


def test_the_gradebook_has_the_points(course, lab, recorded):
    """And the written answer of nobody waits, since nobody wrote one."""
    assert len(recorded.done) == 4 and not recorded.problems
    scores = {student: row["score"] for student, row in cycle.scores(course, lab).items()}
    assert scores == {"perfect": 10, "empty": 0, "duplicated": 10, "markup": 10}


def test_recording_again_changes_nothing(course, lab, recorded):
    """A kept grade is not touched."""
    assert len(cycle.record(course, lab).kept) == 4


def test_feedback_shows_the_judges_words_and_no_markup(course, lab, recorded):
    """One page each; made again only where a grade is newer, or when asked for."""
    assert len(cycle.write_feedback(course, lab, fresh=False).done) == 5  # with the one who was refused
    assert len(cycle.write_feedback(course, lab, fresh=False).kept) == 4
    assert cycle.write_feedback(course, lab, ["markup"]).done == ["markup"]
    page = (course.root / "feedback" / "markup" / "00_tiny" / "lab.html").read_text()
    assert "<script>alert" not in page and "<img src=x" not in page and 'href="javascript' not in page
    assert "spread: passed" in page
    refused = (course.root / "feedback" / "no-notebook" / "00_tiny" / "lab.html").read_text()
    assert "not graded yet" in refused and "nested deeper than" in refused
    duplicated = (course.root / "feedback" / "duplicated" / "00_tiny" / "lab.html").read_text()
    assert "was there twice" in duplicated


def test_a_verdict_that_vanished_costs_the_points_and_is_reported(course, lab, recorded):
    """Fails closed: recorded as zero, named, and mended by the next run."""
    course.vault.verdict_path("00_tiny", "perfect").unlink()
    again = cycle.record(course, lab, ["perfect"])
    assert "no verdict" in again.problems["perfect"] and cycle.scores(course, lab)["perfect"]["score"] == 0
    assert cycle.judge(course, lab, jobs=1, students=["perfect"]).done == ["perfect"]
    assert cycle.record(course, lab, ["perfect"]).done == ["perfect"]
    assert cycle.scores(course, lab)["perfect"]["score"] == 10


def test_a_submission_that_went_bad_takes_its_verdict_with_it(course, lab, recorded):
    """A newer file that is no notebook must not live on the older one's points."""
    path = course.root / "submitted" / "empty" / "00_tiny" / "lab.ipynb"
    good = path.read_text()
    path.write_text("{}")
    try:
        assert "not a valid notebook" in cycle.judge(course, lab, jobs=1).problems["empty"]
        problems = cycle.record(course, lab).problems
        assert "empty" in problems and not course.vault.verdict_path("00_tiny", "empty").exists()
    finally:
        path.write_text(good)
    cycle.judge(course, lab, jobs=1)
    cycle.record(course, lab)


def test_a_new_seed_regrades_everybody(course, lab, recorded):
    """Only when asked for: the old draw is gone from the verdicts."""
    before = load("00_tiny", "perfect", course.vault).draw
    assert len(cycle.judge(course, lab, jobs=2, new_seed=True).done) == 4
    assert load("00_tiny", "perfect", course.vault).draw != before


def test_other_checks_regrade_everybody(course, lab, recorded):
    """The bank version decides."""
    with (lab.folder / "checks.py").open("a") as file:
        file.write("# a new remark\n")
    changed = load_lab(lab.folder)
    assert "checks" in cycle.record(course, changed).problems["perfect"]
    assert len(cycle.judge(course, changed, jobs=1).done) == 4
    assert not cycle.record(course, changed).problems


# --- what cannot be done ----------------------------------------------------------------------------------


def test_a_folder_without_nbgraders_configuration_is_no_course(tmp_path):
    """With the option that names one."""
    with pytest.raises(CycleError, match="--course"):
        Course(tmp_path)


def test_a_stale_notebook_is_not_released(course, lab, released):
    """What students get must be what the lab holds."""
    path = lab.folder / "lab.ipynb"
    good = path.read_text()
    path.write_text(good.replace("How far apart", "How near"))
    try:
        with pytest.raises(CycleError, match="course notebooks"):
            cycle.release(course, lab)
    finally:
        path.write_text(good)


def test_a_lab_that_cannot_be_built_says_why(course, lab, monkeypatch):
    """In the builder's words."""
    monkeypatch.setattr(cycle, "WRITE_SOURCE", "raise SystemExit('the stub is not closed')")
    with pytest.raises(CycleError, match="the stub is not closed"):
        cycle.release(course, lab)


def test_the_exchange_takes_releases_and_gives_submissions(course, lab, released, tiny_release):
    """nbgrader's own way: published for students, collected with the time of submission."""
    with pytest.raises(CycleError, match="or name a folder with --from"):
        cycle.collect(course, lab)
    cycle.release(course, lab, publish=True)
    exchange = course.root / "exchange" / course.api.course_id
    assert (exchange / "outbound" / "00_tiny" / "lab.ipynb").is_file()
    box = exchange / "inbound" / "dora+00_tiny+2026-01-02 00:00:00 UTC+abc"
    box.mkdir()
    (box / "lab.ipynb").write_text(nbformat.writes(tiny_release.notebook))
    (box / "timestamp.txt").write_text("2026-01-02 00:00:00 UTC")
    try:
        assert "dora" in cycle.collect(course, lab).done
        assert (course.root / "submitted" / "dora" / "00_tiny" / "timestamp.txt").is_file()
    finally:
        shutil.rmtree(course.root / "submitted" / "dora", ignore_errors=True)
        shutil.rmtree(course.root / "exchange")


def test_collecting_from_nothing_is_said(course, lab, tmp_path):
    """A mistyped folder is no empty class."""
    with pytest.raises(CycleError, match="no folder"):
        cycle.collect(course, lab, tmp_path / "nowhere")


def test_a_course_that_asks_for_a_stronger_tier_is_not_judged_here(course, lab, released, monkeypatch):
    """Before anything runs, with the way out."""
    monkeypatch.setenv("AUTOGRADER_TIER", "T0")
    path = course.root / "course.toml"
    good = path.read_text()
    path.write_text(good.replace("T0", "T1"))
    try:
        with pytest.raises(CycleError, match=r'minimum_tier = "T0"'):
            cycle.judge(course, lab)
    finally:
        path.write_text(good)


def test_submissions_are_found_in_three_layouts(tmp_path, course, lab, tiny_release):
    """Files by student, folders by student, and nbgrader's own; timestamps travel; odd names do not."""
    text = nbformat.writes(tiny_release.notebook)
    for path in ("ann.ipynb", "ben/lab.ipynb", "cyd/00_tiny/lab.ipynb", "a b.ipynb"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "ben" / "timestamp.txt").write_text("2026-01-01 00:00:00 UTC")
    other = Course(shutil.copytree(course.root, tmp_path / "other", ignore=shutil.ignore_patterns("submitted")))
    progress = cycle.collect(other, lab, tmp_path)
    assert sorted(progress.done) == ["ann", "ben", "cyd"] and "no student id" in progress.problems["a b"]
    assert (other.root / "submitted" / "ben" / "00_tiny" / "timestamp.txt").is_file()


def test_a_failure_of_nbgrader_is_one_students_problem(course, lab, recorded, monkeypatch):
    """Its last line is the message."""
    failed = {"success": False, "error": "Traceback\nValueError: odd"}
    monkeypatch.setattr(type(course.api), "autograde", lambda *args, **kwargs: failed)
    monkeypatch.setattr(type(course.api), "generate_feedback", lambda *args, **kwargs: failed)
    course.vault.recorded_path("00_tiny", "markup").unlink(missing_ok=True)
    lab = load_lab(lab.folder)  # a test above changes its checks, and a loaded lab keeps the version it was read with
    cycle.judge(course, lab, jobs=1, students=["markup"])
    assert cycle.record(course, lab, ["markup"]).problems == {"markup": "ValueError: odd"}
    assert cycle.write_feedback(course, lab, ["markup"]).problems == {"markup": "ValueError: odd"}


# --- workers --------------------------------------------------------------------------------------------


@pytest.fixture
def job(lab, course, tmp_path, tiny_release):
    path = tmp_path / "lab.ipynb"
    path.write_text(nbformat.writes(tiny_release.notebook))
    return Job(lab.folder, path, "ann", 1, "draw", tmp_path / ".judge")


def test_a_worker_survives_a_submission_that_cannot_be_judged(job, tmp_path):
    """The next one gets a new zygote and its verdict."""
    with Worker() as worker:
        missing = Job(**{**vars(job), "notebook": tmp_path / "gone.ipynb"})
        assert worker.judge(job) == ""
        assert "Refused" in worker.judge(missing) and not worker.zygotes
        assert worker.judge(job) == ""
    assert load("00_tiny", "ann", Vault(job.vault)).earned == 0


def test_a_worker_process_judges_as_this_one_does(job, monkeypatch):
    """What runs in the pool, run here."""
    calls = []
    monkeypatch.setattr(workers.ctypes, "CDLL", lambda name: type("C", (), {"prctl": lambda *a: calls.append(a)})())
    for name in ("signal.signal", "Finalize"):  # this process goes on, and Ctrl-C must still end it
        monkeypatch.setattr(f"autograder.judge.workers.{name}", lambda *args, **options: calls.append(args))
    start_worker()
    try:
        assert in_worker(job) == "" and len(calls) == 3
    finally:
        workers._worker.__exit__()
        monkeypatch.setattr(workers, "_worker", None)


def test_there_is_at_least_one_worker():
    """Also where the number of cores is unknown."""
    assert cycle.default_jobs() >= 1 and Progress().text == "0 done, 0 unchanged, 0 with problems"
