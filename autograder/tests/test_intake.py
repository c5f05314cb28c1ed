"""Submissions come in as plain notebooks or not at all, and an honest slip costs nothing."""

import copy
import json
import os
import pwd
import socket
import time

import nbformat
import pytest

from autograder.judge import intake
from autograder.judge.cells import Release, fingerprint, grade_id, kind, plain_python, runnable
from autograder.judge.intake import Refused, load_release, parse, read_bytes, read_notebook, repair, take_in


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


def test_no_folder_on_the_way_may_be_a_link(tmp_path, notebook):
    """Below the folder that staff named: a link there reads another student's notebook as this one's."""
    home = tmp_path / "inbox" / "ben" / "03"
    home.mkdir(parents=True)
    (home / "lab.ipynb").write_text(nbformat.writes(notebook))
    (tmp_path / "inbox" / "ann").symlink_to(tmp_path / "inbox" / "ben")
    assert read_bytes(home / "lab.ipynb", root=tmp_path / "inbox")
    with pytest.raises(Refused, match="the folder 'ann' on its path is a link") as refusal:
        read_bytes(tmp_path / "inbox" / "ann" / "03" / "lab.ipynb", root=tmp_path / "inbox")
    assert "ann" not in refusal.value.student and "hand in the notebook itself" in refusal.value.student
    (tmp_path / "named").symlink_to(tmp_path / "inbox")  # the instructor's own link is the instructor's business
    assert read_bytes(tmp_path / "named" / "ben" / "03" / "lab.ipynb", root=tmp_path / "named")


def test_a_second_name_of_somebody_elses_file_is_refused(tmp_path, handed_in, notebook):
    """A hard link reads like a file of one's own; a backup of the course's own copies by hard links is no harm."""
    path = handed_in(notebook)
    os.link(path, tmp_path / "ann.ipynb")
    with pytest.raises(Refused, match="2 names"):
        read_bytes(tmp_path / "ann.ipynb", root=tmp_path)
    assert read_bytes(tmp_path / "ann.ipynb")


def test_a_socket_is_refused(tmp_path, monkeypatch):
    """Opening one fails, and says so."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("lab.ipynb")
        with pytest.raises(Refused, match="link or cannot be read"):
            read_bytes(tmp_path / "lab.ipynb")


def test_a_file_that_changes_while_it_is_read_is_refused(monkeypatch, handed_in, notebook):
    """What was looked at must be what was read."""
    path = handed_in(notebook)
    honest = intake._read

    def slow(handle):
        content = honest(handle)
        path.write_text("{}" * 5000)
        return content

    monkeypatch.setattr(intake, "_read", slow)
    with pytest.raises(Refused, match="changed while it was read") as refusal:
        read_bytes(path)
    assert "hand it in again" in refusal.value.student


def test_a_file_put_in_anothers_place_is_not_read(monkeypatch, tmp_path, handed_in, notebook):
    """Every question is asked of the open file: a swap after the look reads what was looked at."""
    path = handed_in(notebook)
    secret = tmp_path / "secret"
    secret.write_text("the gradebook")
    honest = intake._refuse_odd_file

    def swap(*arguments, **options):
        honest(*arguments, **options)
        path.unlink()
        path.symlink_to(secret)

    monkeypatch.setattr(intake, "_refuse_odd_file", swap)
    assert b"gradebook" not in read_bytes(path, root=tmp_path)


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
    with pytest.raises(Refused, match=r"another account.*ask how it came there") as refusal:
        read_bytes(path, somebody.pw_name)
    assert str(path.parent) not in refusal.value.student and "a file of your own" in refusal.value.student
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


PROSE = {"cell_type": "markdown", "metadata": {}, "source": ""}
BOMBS = {
    "many lists": b'{"a": [' + b"[]," * 300_000 + b"[]]}",
    "many numbers": b'{"a": [' + b"1," * 3_100_000 + b"1]}",
    "a string without an end": b'"' + b'\\"' * 2_000_000,
    "strings without an end": b'{"' * 1_000_000,
    "a number without an end": b'{"nbformat": ' + b"9" * 1_000_000 + b"}",
    "many cells": json.dumps(
        {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [PROSE] * 2000}
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_in_the_time_of_one_look(text):
    """Small as text, large or endless to build. The string without an end once took time quadratic in its length."""
    start = time.process_time()
    with pytest.raises(Refused, match="not a"):
        parse(text)
    assert time.process_time() - start < 5


# --- what editors do ------------------------------------------------------------------------------------


def as_dict(notebook):
    return json.loads(nbformat.writes(notebook))


def without_ids(notebook, minor=4):
    """Some editors write format 4.4."""
    data = as_dict(notebook)
    data["nbformat_minor"] = minor
    for cell in data["cells"]:
        del cell["id"]
    return json.dumps(data).encode()


def colab(notebook):
    """Format 4.0, ids and outputs' ids in the metadata, a section about itself."""
    data = json.loads(without_ids(notebook, minor=0))
    data["metadata"] |= {"colab": {"provenance": [], "toc_visible": True}, "accelerator": "GPU"}
    for number, cell in enumerate(data["cells"]):
        cell["metadata"] |= {"id": f"aB{number}", "colab": {"base_uri": "https://localhost"}, "outputId": "x"}
    return json.dumps(data).encode()


def vs_code(notebook):
    """Its language's name in the cells; and it once wrote ids into a format that has none."""
    data = as_dict(notebook)
    data["nbformat_minor"] = 2
    for cell in data["cells"]:
        cell["metadata"]["vscode"] = {"languageId": "python"}
    return json.dumps(data).encode()


def windows_line_ends(notebook):
    """In the file, and inside every cell."""
    data = as_dict(notebook)
    for cell in data["cells"]:
        cell["source"] = "".join(cell["source"]).replace("\n", "\r\n")
    return json.dumps(data, indent=1).replace("\n", "\r\n").encode()


def damaged_outputs(notebook):
    """An output that is none."""
    data = as_dict(notebook)
    next(cell for cell in data["cells"] if cell["cell_type"] == "code")["outputs"] = [{"output_type": "lost"}]
    return json.dumps(data).encode()


def half_a_character(notebook):
    """A lone surrogate cannot be written as UTF-8: nbgrader would stop at it."""
    notebook.cells[0].source += "@half@"
    return nbformat.writes(notebook).replace("@half@", "\\ud83d").encode()


EDITORS = {
    "a byte order mark": lambda n: b"\xef\xbb\xbf" + nbformat.writes(n).encode(),
    "UTF-16": lambda n: nbformat.writes(n).encode("utf-16"),
    "format 3": lambda n: nbformat.writes(nbformat.convert(n, 3), version=3).encode(),
    "format 4.4": without_ids,
    "Colab": colab,
    "VS Code": vs_code,
    "Windows line ends": windows_line_ends,
    "damaged outputs": damaged_outputs,
    "half a character": half_a_character,
}


@pytest.mark.parametrize("edit", EDITORS.values(), ids=EDITORS)
def test_what_an_editor_made_of_the_file_is_mended(tiny_release, notebook, edit):
    """The same cells run as if it had not happened, and reading twice gives the same notebook."""
    find(notebook, "spread").source = "def spread(x):\n    return x.max() - x.min()\n"
    wanted = fingerprint(runnable(notebook, tiny_release))
    content = edit(notebook)
    read, notes = read_notebook(content)
    repaired_, more = repair(read, tiny_release)
    assert fingerprint(runnable(repaired_, tiny_release)) == wanted
    assert nbformat.writes(read) == nbformat.writes(read_notebook(content)[0])
    nbformat.writes(repaired_).encode("utf-8")
    assert not any("missing" in note.student for note in more), more
    assert all(note.staff for note in notes)


def test_ordinary_escapes_are_no_half_characters():
    """A pair is one character; an escaped backslash before u is text."""
    assert intake._decode(rb'"\ud83d\ude00 \\ud83d \u00e9"') == (r'"\ud83d\ude00 \\ud83d \u00e9"', [])
    assert intake._decode(rb'"\ude00"')[0] == r'"\ufffd"'


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


def test_a_split_solution_counts_as_a_whole(tiny_release, notebook):
    """Jupyter copies the label to both halves: one keeps it, both run, in order."""
    index = notebook.cells.index(find(notebook, "spread"))
    second = copy.deepcopy(notebook.cells[index])
    second["id"] = "second"
    notebook.cells[index].source, second.source = "def half(x):\n    return x", "def spread(x):\n    return half(x)"
    notebook.cells.insert(index + 1, second)
    result, _ = repaired(notebook, tiny_release)
    sources = [cell.source for cell in runnable(result, tiny_release)]
    assert sources.index("def half(x):\n    return x\n") + 1 == sources.index("def spread(x):\n    return half(x)\n")


def test_a_split_answer_in_prose_is_joined(tiny_release, notebook):
    """A person reads the graded cell: all of the answer must stand in it."""
    index = notebook.cells.index(find(notebook, "why"))
    second = copy.deepcopy(notebook.cells[index])
    second["id"], second.source = "second", "and the second half"
    notebook.cells[index].source += " the first half"
    notebook.cells.insert(index + 1, second)
    result, told = repaired(notebook, tiny_release)
    assert "we joined them" in told
    assert find(result, "why").source.endswith("the first half\n\nand the second half")


def test_a_copied_answer_in_prose_is_not_doubled(tiny_release, notebook):
    """The same text twice is a copy, and so is a first draft that the answer contains."""
    index = notebook.cells.index(find(notebook, "why"))
    second = copy.deepcopy(notebook.cells[index])
    second["id"] = "second"
    second.source += " and more"
    notebook.cells.insert(index + 1, second)
    _, told = repaired(notebook, tiny_release)
    assert "was there twice" in told and "joined" not in told


def test_a_solution_merged_with_its_check_still_runs(tiny_release, notebook):
    """The check is put back; its call inside the answer does nothing while grading."""
    solution, check = find(notebook, "spread"), find(notebook, "check-spread")
    solution.source = "def spread(x):\n    return 1\n\n" + check.source
    notebook.cells.remove(check)
    result, told = repaired(notebook, tiny_release)
    assert "`check-spread` was missing" in told and "def spread" in find(result, "spread").source


def test_an_answer_merged_into_another_cell_is_found_by_its_heading(notebook):
    """Merging keeps the first cell's label, which may be none."""
    release = Release(copy.deepcopy(notebook))
    release.graded["why"].source = "## Question 3. Why\n\nYOUR ANSWER HERE"
    index = notebook.cells.index(find(notebook, "why"))
    merged = nbformat.v4.new_markdown_cell("my notes\n\n## Question 3. Why\n\nbecause", id="notes")
    notebook.cells[index] = merged
    result, told = repaired(notebook, release)
    assert "`why` had lost its label" in told and find(result, "why").source.endswith("because")


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
