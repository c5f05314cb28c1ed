"""Whatever a student calls the file, it is found once, under the right name, or everybody is told why not."""

import os
from types import SimpleNamespace

import nbformat
import pytest

from autograder.judge import inbox, receipt, refusals
from autograder.judge.course import Progress
from autograder.judge.inbox import collect, find
from autograder.judge.intake import Refused
from autograder.judge.receipt import load_receipt
from autograder.judge.vault import Vault
from autograder.judge.verdict import CycleError

LAB = SimpleNamespace(slug="00_tiny")


@pytest.fixture
def course(tmp_path):
    """As much of a course as collecting needs."""
    return SimpleNamespace(root=tmp_path / "course", vault=Vault(tmp_path / "course" / ".judge"))


@pytest.fixture
def text(tiny_release):
    return nbformat.writes(tiny_release.notebook)


@pytest.fixture
def hand_in(tmp_path, text):
    """Write a notebook under the names given, below the folder of submissions."""

    def write(*names, content=text):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "in"

    return write


def said(course, student):
    found = load_receipt(course.vault.folder, "00_tiny", student)
    return " ".join((*found.student, *found.staff))


def submitted(course, student):
    return course.root / "submitted" / student / "00_tiny" / "lab.ipynb"


@pytest.mark.parametrize(
    "name", ["ann/lab(1).ipynb", "ann/lab (2).ipynb", "ann/lab-Copy1.ipynb", "ann/Lab 03 final.ipynb",
             "ann/00_tiny/lab(1).ipynb", "ann(1).ipynb", "ann (12).ipynb", "ann-Copy2.ipynb", "ann - Copy.ipynb"],
)  # fmt: skip
def test_a_file_under_another_name_is_taken_and_the_student_told(course, hand_in, name, text):
    """A browser's second download is honest work."""
    progress = collect(course, LAB, hand_in(name))
    assert progress.done == ["ann"] and submitted(course, "ann").read_text() == text
    assert name.rpartition("/")[2] in said(course, "ann") and "Hand in lab.ipynb next time" in said(course, "ann")


def test_the_right_name_counts_before_all_others(course, hand_in, text):
    """And the student reads which one was graded."""
    hand_in("ann/lab.ipynb", "ben.ipynb")
    progress = collect(course, LAB, hand_in("ann/lab(1).ipynb", "ben(1).ipynb", content="{}"))
    assert progress.done == ["ann", "ben"] and submitted(course, "ann").read_text() == text
    assert "we graded lab.ipynb" in said(course, "ann") and "not graded: ben(1).ipynb" in said(course, "ben")


def test_two_files_of_which_none_has_the_right_name_are_a_question(course, hand_in):
    """Nobody guesses: the student and staff are asked, in their own words."""
    progress = collect(course, LAB, hand_in("ann/a.ipynb", "ann/b.ipynb"))
    assert "ask which one counts" in progress.problems["ann"] and not submitted(course, "ann").exists()
    assert "none is called lab.ipynb: hand in one" in load_receipt(course.vault.folder, "00_tiny", "ann").student[0]


def test_checkpoints_and_what_archives_leave_are_no_submissions(hand_in):
    """They would be second files of the same student, or students who do not exist."""
    folder = hand_in(
        "ann/.ipynb_checkpoints/lab-checkpoint.ipynb", ".ipynb_checkpoints/lab.ipynb", "__MACOSX/lab.ipynb",
        "ann/._lab.ipynb", "ann/lab-checkpoint.ipynb", "ann-checkpoint.ipynb", "ann/lab.ipynb",
    )  # fmt: skip
    found = find(folder, "00_tiny")
    assert list(found) == ["ann"] and not found["ann"].others


@pytest.mark.parametrize("name", ["lab.ipynb", "lab(1).ipynb", "Untitled.ipynb", "a b.ipynb"])
def test_a_file_that_belongs_to_nobody_is_named_to_staff(course, hand_in, name):
    """A folder of downloads without names is no class."""
    progress = collect(course, LAB, hand_in(name))
    (problem,) = progress.problems.values()
    assert "whose is it?" in problem and name in problem and "<student>" in problem


def test_a_mended_file_is_stored_clean_and_its_original_kept(course, hand_in, text):
    """nbgrader reads the stored one by itself and stops at a byte order mark."""
    original = b"\xef\xbb\xbf" + text.encode()
    folder = hand_in("ann.ipynb", content=original)
    assert collect(course, LAB, folder).done == ["ann"]
    assert submitted(course, "ann").read_text() == text + "\n"
    assert (course.vault.folder / "originals" / "00_tiny" / "ann.ipynb").read_bytes() == original
    assert "another editor" in said(course, "ann")
    assert collect(course, LAB, folder).kept == ["ann"]


def test_a_link_gets_a_receipt_and_no_copy(course, hand_in, tmp_path):
    """What staff read names the path, what the student reads does not."""
    folder = hand_in("ben/lab.ipynb")
    (folder / "ann").symlink_to(folder / "ben")
    (folder / "cyd.ipynb").symlink_to(tmp_path / "secret")
    progress = collect(course, LAB, folder)
    assert progress.done == ["ben"] and set(progress.problems) == {"ann", "cyd"}
    told = load_receipt(course.vault.folder, "00_tiny", "ann").student[0]
    assert "no plain file" in told and str(tmp_path) not in told and str(tmp_path) in progress.problems["ann"]


def test_a_time_of_submission_travels_and_an_odd_one_does_not(course, hand_in):
    """nbgrader alone stops at a time that is none, with that student's grade."""
    folder = hand_in("ann/lab.ipynb", "ben/lab.ipynb")
    (folder / "ann" / "timestamp.txt").write_text("2026-01-01 00:00:00 UTC\n")
    (folder / "ben" / "timestamp.txt").write_text("yesterday, I swear")
    collect(course, LAB, folder)
    assert submitted(course, "ann").with_name("timestamp.txt").read_text() == "2026-01-01 00:00:00 UTC"
    assert not submitted(course, "ben").with_name("timestamp.txt").exists() and "is no time" in said(course, "ben")
    (folder / "ann" / "timestamp.txt").write_text("2026-01-02 00:00:00 UTC\n")
    assert collect(course, LAB, folder).done == ["ann"]


def test_a_new_receipt_makes_the_feedback_page_anew(course, hand_in):
    """Nothing else says that the page is out of date; the same receipt again leaves it alone."""
    folder = hand_in("ann/lab(1).ipynb")
    collect(course, LAB, folder)
    marker = course.vault.page_path("00_tiny", "ann")
    marker.parent.mkdir(parents=True)
    marker.write_text("made")
    collect(course, LAB, folder)
    assert marker.exists()
    (folder / "ann" / "lab(1).ipynb").write_text("{}")
    assert "not a valid notebook" in collect(course, LAB, folder).problems["ann"] and not marker.exists()


def test_an_unreadable_file_is_one_students_problem(course, hand_in, monkeypatch):
    """A disk error on one file; a full disk is everybody's and ends the run."""

    def broken(number):
        def take_over(*arguments):
            raise OSError(number, os.strerror(number))

        return take_over

    monkeypatch.setattr(inbox, "take_over", broken(5))
    assert "collect again" in collect(course, LAB, hand_in("ann.ipynb")).problems["ann"]
    monkeypatch.setattr(inbox, "take_over", broken(28))
    with pytest.raises(CycleError, match="full"):
        collect(course, LAB, hand_in("ann.ipynb"))


def test_a_refused_student_gets_a_page_once(tmp_path):
    """Escaped; not over a grade that exists, and not again while it says the same."""
    receipt.save_receipt(tmp_path, "00_tiny", "ann", receipt.refused("<b>.ipynb", Refused("no <i>notebook</i>", "x")))
    arguments = (tmp_path / "feedback", tmp_path, "00_tiny")
    assert refusals.write_pages(*arguments, graded=["ann"], wanted=set()) == []
    assert refusals.write_pages(*arguments, graded=[], wanted={"ben"}) == []
    assert refusals.write_pages(*arguments, graded=[], wanted=set()) == ["ann"]
    assert refusals.write_pages(*arguments, graded=[], wanted=set()) == []
    page = (tmp_path / "feedback" / "ann" / "00_tiny" / "lab.html").read_text()
    assert "no &lt;i&gt;notebook&lt;/i&gt;" in page and "<b>" not in page


def test_a_receipt_that_cannot_be_read_is_none(tmp_path):
    """Half a file, or one of another form."""
    path = receipt.receipt_path(tmp_path, "00_tiny", "ann")
    path.parent.mkdir(parents=True)
    for content in ("{", "[]", '{"state": "taken"}'):
        path.write_text(content)
        assert load_receipt(tmp_path, "00_tiny", "ann") is None


# --- nbgrader's exchange --------------------------------------------------------------------------------


@pytest.fixture
def exchange(course, tmp_path, text):
    """A course whose exchange holds submissions, and nbgrader's collect in its simplest form: a copy that follows."""
    import shutil

    inbound = tmp_path / "exchange" / "c" / "inbound"
    inbound.mkdir(parents=True)

    def collect_all(slug):
        for box in inbound.iterdir():
            shutil.copytree(box, course.root / "submitted" / box.name.split("+")[0] / slug, dirs_exist_ok=True)
        return {"success": True}

    course.api = SimpleNamespace(course_id="c", collect=collect_all)
    course.config = SimpleNamespace(Exchange={"root": str(tmp_path / "exchange")})

    def box(student, name="lab.ipynb", content=text):
        folder = inbound / f"{student}+00_tiny+2026-01-02 00:00:00 UTC+abc"
        folder.mkdir(exist_ok=True)
        (folder / "timestamp.txt").write_text("2026-01-02 00:00:00 UTC")
        (folder / name).write_text(content)
        return folder

    return box


def test_what_lies_beside_a_notebook_in_the_exchange_stays_there(course, exchange):
    """A page of the student's own would be served beside formgrader, with the instructor's rights."""
    exchange("ann")
    exchange("ann", "evil.html", "<script>")
    assert collect(course, LAB).done == ["ann"] and collect(course, LAB).kept == ["ann"]
    assert sorted(path.name for path in submitted(course, "ann").parent.iterdir()) == ["lab.ipynb", "timestamp.txt"]


def test_a_link_in_the_exchange_does_not_bring_a_classmates_work(course, exchange):
    """nbgrader's copy follows it; the collected file goes aside, and the student reads why."""
    classmate = exchange("ben")
    box = exchange("ann")
    (box / "lab.ipynb").unlink()
    (box / "lab.ipynb").symlink_to(classmate / "lab.ipynb")
    progress = collect(course, LAB)
    assert progress.done == ["ben"] and "link" in progress.problems["ann"]
    assert not submitted(course, "ann").exists() and "no plain file" in said(course, "ann")


def test_a_renamed_notebook_in_the_exchange_is_taken(course, exchange):
    """nbgrader would say that it is missing."""
    exchange("ann", "lab(1).ipynb")
    assert collect(course, LAB).done == ["ann"] and submitted(course, "ann").is_file()


def test_an_empty_box_is_said(course, exchange):
    """Nothing to grade, and a reason."""
    (exchange("ann") / "lab.ipynb").unlink()
    assert "is missing" in collect(course, LAB).problems["ann"]


def test_a_course_without_an_exchange_folder_goes_by_the_collected_copy(course, exchange):
    """A service in its place (ngshare) has no folder of ours to look into."""
    exchange("ann")
    course.config = SimpleNamespace(Exchange={})
    assert isinstance(collect(course, LAB), Progress) and submitted(course, "ann").is_file()
