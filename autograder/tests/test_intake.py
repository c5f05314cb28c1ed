"""Submissions come in as plain notebooks or not at all, and an honest slip costs nothing."""

import copy
import json
import os
import pwd

import nbformat
import pytest

from autograder.judge import intake
from autograder.judge.cells import fingerprint, grade_id, kind, plain_python, runnable
from autograder.judge.intake import Refused, load_release, parse, read_bytes, repair, take_in


@pytest.fixture
def notebook(tiny_release):
    return copy.deepcopy(tiny_release.notebook)


@pytest.fixture
def handed_in(tmp_path):
    """Write a notebook as a student would hand it in."""

    def write(notebook):
        path = tmp_path / "lab.ipynb"
        path.write_text(nbformat.writes(notebook))
        return path

    return write


def ids(notebook):
    return [grade_id(cell) for cell in notebook.cells if grade_id(cell)]


def find(notebook, name):
    return next(cell for cell in notebook.cells if grade_id(cell) == name)


# --- reading --------------------------------------------------------------------------------------------


def test_an_untouched_release_needs_no_repair(tiny_release, notebook, handed_in):
    """No notes, and nothing to run but setup and stubs."""
    submission = take_in(handed_in(notebook), tiny_release)
    assert submission.notes == ()
    assert [cell.name for cell in runnable(submission.notebook, tiny_release)] == [
        "cell 2",
        "cell 3",
        "spread",
        "stream_sum",
    ]


def test_a_link_is_refused(tmp_path, handed_in, notebook):
    """A link could name another student's notebook, or a file of the grader's."""
    handed_in(notebook)
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "lab.ipynb")
    with pytest.raises(Refused, match="link"):
        read_bytes(tmp_path / "link.ipynb")
    (tmp_path / "folder").symlink_to(tmp_path)
    with pytest.raises(Refused, match="no plain file"):
        read_bytes(tmp_path / "folder" / "lab.ipynb")


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, make):
    """And nobody waits for a pipe."""
    make(tmp_path / "lab.ipynb")
    with pytest.raises(Refused, match=r"no plain file|cannot be read"):
        read_bytes(tmp_path / "lab.ipynb")


def test_a_missing_file_is_said(tmp_path):
    """By its name, not by a traceback."""
    with pytest.raises(Refused, match=r"lab\.ipynb is missing"):
        read_bytes(tmp_path / "lab.ipynb")


def test_a_huge_file_is_refused_unread(tmp_path):
    """With the limit and the way out."""
    with (tmp_path / "lab.ipynb").open("wb") as file:
        file.truncate(intake.MAX_BYTES + 1)
    with pytest.raises(Refused, match="clear its outputs"):
        read_bytes(tmp_path / "lab.ipynb")


def test_the_owner_must_be_the_student_where_that_is_an_account(monkeypatch, handed_in, notebook):
    """A student may not hand in another's file; ids that are no accounts say nothing about owners."""
    path = handed_in(notebook)
    somebody = next(entry for entry in pwd.getpwall() if entry.pw_uid != 0)
    monkeypatch.setattr(intake.os, "getuid", lambda: -1)
    monkeypatch.setattr(intake, "_ALWAYS", ())
    with pytest.raises(Refused, match="another account"):
        read_bytes(path, somebody.pw_name)
    assert read_bytes(path, "no-such-account-here")
    assert read_bytes(path, pwd.getpwuid(path.stat().st_uid).pw_name)


@pytest.mark.parametrize(
    "text",
    [b"", b"not json", b"[]", b"{}", b'{"nbformat": 4}', b"\xff\xfe", b"[" * 100, b'{"a":' * 70 + b"1" + b"}" * 70,
     b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "odd"}]}',
     b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}'],
)  # fmt: skip
def test_what_is_no_notebook_is_refused(text):
    """Whatever is wrong, the answer is one kind of error that a student can act on."""
    with pytest.raises(Refused, match="not a"):
        parse(text)


def test_an_old_notebook_without_cell_ids_is_read(notebook):
    """Some editors write format 4.4."""
    data = json.loads(nbformat.writes(notebook))
    data["nbformat_minor"] = 4
    for cell in data["cells"]:
        del cell["id"]
    assert len(parse(json.dumps(data).encode()).cells) == len(notebook.cells)


def test_a_missing_release_says_how_to_build_it(tmp_path):
    """The grader's mistake, not the student's."""
    with pytest.raises(FileNotFoundError, match="course notebooks"):
        load_release(tmp_path)


# --- repair ---------------------------------------------------------------------------------------------


def repaired(notebook, release):
    """The repaired notebook and what the student is told; repairing it again must change nothing."""
    result, notes = repair(notebook, release)
    again, more = repair(result, release)
    assert nbformat.writes(again) == nbformat.writes(result) and not more
    assert ids(result) == list(release.graded) and all(
        kind(find(result, n)) == kind(release.graded[n]) for n in ids(result)
    )
    return result, " ".join(note.student for note in notes)


def test_a_pasted_copy_of_a_graded_cell_stays_as_plain_code(tiny_release, notebook):
    """nbgrader alone stops the whole class at such a notebook. The copy runs; the original is graded."""
    index = notebook.cells.index(find(notebook, "spread"))
    pasted = copy.deepcopy(notebook.cells[index])
    pasted["id"], pasted.source = "pasted", "def spread(x):\n    return 1"
    notebook.cells.insert(index, pasted)
    result, told = repaired(notebook, tiny_release)
    assert "`spread` was there twice" in told
    assert [c.name for c in runnable(result, tiny_release)][2:4] == [f"cell {index + 1}", "spread"]


@pytest.mark.parametrize("name", ["check-spread", "spread", "why", "check-stream_sum"])
def test_a_deleted_graded_cell_is_put_back(tiny_release, notebook, name):
    """In its place; an answer's stub does not come back, since the answer may stand elsewhere."""
    notebook.cells.remove(find(notebook, name))
    result, told = repaired(notebook, tiny_release)
    assert f"`{name}` was missing" in told
    assert "NotImplementedError" not in find(result, name).source or name != "spread"


def test_deleting_everything_is_repaired_too(tiny_release, notebook):
    """Even nbgrader's own repair needs the cell before."""
    notebook.cells = []
    repaired(notebook, tiny_release)


def test_an_edited_check_cell_gets_its_text_back(tiny_release, notebook):
    """Points do not come from it, and staff should see what was released."""
    find(notebook, "check-spread").source = "4.0"
    result, told = repaired(notebook, tiny_release)
    assert find(result, "check-spread").source == 'lab.check("spread")' and "You changed the cell" in told


def test_a_graded_cell_of_another_type_becomes_what_it_was(tiny_release, notebook):
    """Code turned into prose cannot be graded as code; the text stays the student's."""
    cell = find(notebook, "spread")
    cell.cell_type, cell.source = "markdown", "def spread(x):\n    return 7"
    del cell["outputs"], cell["execution_count"]
    result, _ = repaired(notebook, tiny_release)
    assert find(result, "spread").cell_type == "code" and "return 7" in find(result, "spread").source


def test_edited_labels_do_not_count(tiny_release, notebook):
    """Points and locks are the release's."""
    find(notebook, "check-spread").metadata["nbgrader"].update(points=1000, locked=False)
    result, told = repaired(notebook, tiny_release)
    assert find(result, "check-spread").metadata["nbgrader"]["points"] == 4 and "label" in told


def test_unknown_labels_are_dropped(tiny_release, notebook):
    """An invented graded cell would stop nbgrader; a label that is no dictionary, too."""
    invented = copy.deepcopy(find(notebook, "check-spread"))
    invented["id"], invented.metadata["nbgrader"]["grade_id"] = "invented", "bonus"
    odd = nbformat.v4.new_code_cell("1", metadata={"nbgrader": "x"}, id="odd")
    notebook.cells += [invented, odd]
    result, told = repaired(notebook, tiny_release)
    assert "bonus" not in told and "nbgrader" not in result.cells[-1].metadata


def test_lost_labels_are_found_again_by_id_or_text(tiny_release, notebook):
    """Some editors drop metadata, some drop ids."""
    for name in ("spread", "check-stream_sum"):
        cell = find(notebook, name)
        del cell.metadata["nbgrader"]
        if name.startswith("check"):
            cell["id"] = "random"
    _, told = repaired(notebook, tiny_release)
    assert told.count("lost its label") == 2


# --- what runs ------------------------------------------------------------------------------------------


def test_explore_cells_run_only_when_they_were_changed(tiny_release, notebook):
    """Unchanged ones are skipped by text; a changed one is the student's own code. Check cells never run."""
    before = runnable(notebook, tiny_release)
    explore = next(cell for cell in notebook.cells if "explore" in cell.metadata.get("tags", []))
    explore.source += "\nhelper = 3"
    notebook.cells.append(nbformat.v4.new_code_cell("mine = 1"))
    notebook.cells.append(nbformat.v4.new_code_cell("   "))
    after = runnable(notebook, tiny_release)
    assert next(c.source for c in after if c not in before).endswith("helper = 3\n")
    assert after[-1].source == "mine = 1\n" and len(after) == len(before) + 2
    assert not any("lab.check" in cell.source for cell in after)


def test_the_fingerprint_is_of_what_runs(tiny_release, notebook):
    """Prose and outputs do not matter to a verdict; one character of code does."""
    before = fingerprint(runnable(notebook, tiny_release))
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("hello"))
    find(notebook, "why").source = "because"
    assert fingerprint(runnable(notebook, tiny_release)) == before
    find(notebook, "spread").source += " "
    assert fingerprint(runnable(notebook, tiny_release)) != before


def test_ipython_syntax_becomes_python():
    """What cannot be transformed is left for the runner to report."""
    assert "run_line_magic" in plain_python("%matplotlib inline\nx = 1")
    assert plain_python("def f(:") == "def f(:\n"
