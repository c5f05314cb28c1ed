"""Grades reach nbgrader's gradebook whole or not at all, once, and trouble with disk or database says its way out."""

import errno
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from nbgrader.api import Gradebook
from sqlalchemy import text

from autograder.judge import gradebook, record, trouble
from autograder.judge.course import Course
from autograder.judge.gradebook import OneVisit
from autograder.judge.locks import try_lock
from autograder.judge.vault import write_atomically
from autograder.judge.verdict import CycleError

pytestmark = pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A gradebook with its tables and one student; nbgrader takes seconds to make one."""
    path = tmp_path_factory.mktemp("made") / "gradebook.db"
    with pytest.MonkeyPatch.context() as patch:  # nbgrader calls alembic by name
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        with Gradebook(f"sqlite:///{path}") as book:
            book.add_student("ann")
    return path


@pytest.fixture
def url(tmp_path, made):
    return f"sqlite:///{shutil.copy(made, tmp_path / 'gradebook.db')}"


def students(url):
    with Gradebook(url) as book:
        return {student.id for student in book.students}


def add(url, name, success=True):
    """What nbgrader does: open, change, commit, close, and open again."""

    def step():
        with Gradebook(url) as book:
            book.add_student(name)
        with Gradebook(url) as book:
            assert book.find_student(name).id == name
        return {"success": success}

    return step


def test_what_a_step_commits_is_there_when_the_step_succeeds(url):
    """Through as many Gradebooks as it likes."""
    with OneVisit(url) as visit:
        assert visit.run(add(url, "ben"))["success"]
    assert students(url) == {"ann", "ben"}


def test_a_step_that_fails_or_dies_leaves_nothing(url):
    """Although nbgrader committed: its commits were savepoints in one transaction."""
    with OneVisit(url) as visit:
        visit.run(add(url, "ben", success=False))

        def dies():
            add(url, "cyd")()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            visit.run(dies)
    assert students(url) == {"ann"}
    assert Gradebook.__init__.__module__ == "nbgrader.api"


def test_another_gradebook_is_opened_as_ever(url, made, tmp_path):
    """Only the one being recorded is shared."""
    other = f"sqlite:///{shutil.copy(made, tmp_path / 'other.db')}"
    with OneVisit(url) as visit:
        visit.run(add(other, "zoe", success=False))
    assert students(other) == {"ann", "zoe"}


def test_a_gradebook_that_another_program_holds_is_said_before_anything_changes(url, tmp_path, monkeypatch):
    """After the time that we wait; nbgrader itself would advise to upgrade the database."""
    monkeypatch.setattr(gradebook, "LOCK_SECONDS", 0.1)
    holder = sqlite3.connect(tmp_path / "gradebook.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ran = []
    with OneVisit(url) as visit:
        with pytest.raises(CycleError, match=r"is locked by another program.*run the same command again"):
            visit.run(lambda: ran.append(1) or {"success": True})
        holder.execute("ROLLBACK")
        holder.close()
        assert not ran and visit.run(add(url, "ben"))["success"]


def test_an_error_that_nbgrader_hides_is_told_as_it_was(url):
    """The database's own words, and no password."""
    with OneVisit(url) as visit:

        def step():
            with Gradebook(url) as book, pytest.raises(Exception, match="no such table"):
                book.db.execute(text("SELECT * FROM nowhere"))
            return {"success": False}

        with pytest.raises(CycleError, match="no such table: nowhere"):
            visit.run(step)


def test_a_full_disk_and_a_lock_have_messages_of_their_own():
    """Whatever the database calls them."""
    full = trouble.database_trouble(sqlite3.OperationalError("database or disk is full"), "sqlite:///g.db")
    assert "Free some space" in str(full)
    assert "does not answer (ValueError)" in str(trouble.database_trouble(ValueError(), "postgresql://host"))
    assert trouble.says_full("OSError: [Errno 28] No space left on device") and not trouble.says_full("all well")


def test_a_disk_that_fills_up_leaves_no_draft(tmp_path, monkeypatch):
    """The old file stays, and what was written of the new one goes."""
    target = tmp_path / "a.json"
    write_atomically(target, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CycleError, match="is full"), trouble.space_in(tmp_path):
        write_atomically(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and target.read_text() == "old"


def test_two_processes_do_not_record_at_once(tmp_path):
    """The second says so and changes nothing."""
    (tmp_path / "nbgrader_config.py").write_text("c = get_config()\n")
    course = Course(tmp_path)
    with (
        try_lock(course.vault.folder / "record.lock"),
        pytest.raises(CycleError, match="another process is recording"),
        record.recording(course),
    ):
        pass
