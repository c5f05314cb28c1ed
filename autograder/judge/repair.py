"""Mend what honest students do to graded cells: copied, deleted, edited, split, merged, or with their label lost.

`repair` returns a copy of the notebook in which each graded cell of the release is there exactly once, and one note
for each thing that was mended. Nothing is executed, nothing of a student's text is thrown away, no point is given.
"""

import copy
from dataclasses import dataclass
from typing import Any

from nbformat.notebooknode import NotebookNode

from autograder.judge.cells import CHECK, SOLUTION, WRITTEN, Release, grade_id, kind

MISSING = "# This cell was missing from the submission."


@dataclass(frozen=True)
class Note:
    """One repair: what the student reads, and what staff read."""

    student: str
    staff: str


def repair(notebook: NotebookNode, release: Release) -> tuple[NotebookNode, tuple[Note, ...]]:
    """A copy whose graded cells are exactly the release's, each once, and notes on what was mended. Idempotent."""
    notebook = copy.deepcopy(notebook)
    notes = [*_adopt(notebook, release), *_join_split_answers(notebook, release), *_strip_copies(notebook, release)]
    notes += [*_restore_checks(notebook, release), *_insert_missing(notebook, release)]
    return notebook, tuple(notes)


def _adopt(notebook: NotebookNode, release: Release) -> list[Note]:
    """Give a graded cell that lost its metadata (some editors drop it) its metadata back."""
    present = {grade_id(cell) for cell in notebook.cells}
    notes = []
    for name, released in release.graded.items():
        if name in present:
            continue
        cell = next((cell for cell in notebook.cells if not grade_id(cell) and _is_it(cell, released)), None)
        if cell is not None:
            cell.metadata["nbgrader"] = copy.deepcopy(released.metadata["nbgrader"])
            notes.append(Note(f"The cell `{name}` had lost its label; we put it back.", f"`{name}`: metadata restored"))
    return notes


def _is_it(cell: NotebookNode, released: NotebookNode) -> bool:
    """Whether an unlabelled cell is the released one: by id; a check by its text; an answer in prose by its heading."""
    if cell.get("id") == released.get("id"):
        return True
    if kind(released) == CHECK:
        return bool(cell.source.strip() == released.source.strip())
    heading = released.source.strip().partition("\n")[0]
    prose = kind(released) == WRITTEN and cell.cell_type == released.cell_type
    return prose and heading.startswith("#") and heading in cell.source.splitlines()


def _join_split_answers(notebook: NotebookNode, release: Release) -> list[Note]:
    """A written answer that was split (Jupyter labels both halves) becomes one again: a person must read all of it."""
    notes = []
    for name, released in release.graded.items():
        first = _position(notebook, name) if kind(released) == WRITTEN else None
        if first is None:
            continue
        halves = [notebook.cells[first]]
        for cell in notebook.cells[first + 1 :]:
            if grade_id(cell) != name or cell.cell_type != released.cell_type:
                break
            halves.append(cell)
        texts = list(dict.fromkeys(cell.source.strip() for cell in halves))
        if len(texts) > 1 and not any(a != b and a in b for a in texts for b in texts):
            halves[0].source = "\n\n".join(texts)
            notebook.cells[first + 1 : first + len(halves)] = []
            says = f"Your answer `{name}` stood in {len(halves)} cells; we joined them."
            notes.append(Note(says, f"`{name}`: {len(halves)} parts joined"))
    return notes


def _strip_copies(notebook: NotebookNode, release: Release) -> list[Note]:
    """Keep one cell per name as the graded one; a copy stays as plain code, an unknown name as nothing."""
    kept: dict[str, Any] = {name: _original(notebook, release, name) for name in release.graded}
    notes = []
    for cell in notebook.cells:
        if "nbgrader" not in cell.metadata:
            continue
        name = grade_id(cell)
        if name in kept and cell is kept[name]:
            if _fields(cell) != _fields(release.graded[name]):
                notes.append(Note(f"The label of `{name}` was changed; ours counts.", f"`{name}`: metadata edited"))
            cell.metadata["nbgrader"] = copy.deepcopy(release.graded[name].metadata["nbgrader"])
            continue
        del cell.metadata["nbgrader"]
        if name in release.graded:
            says = f"`{name}` was there twice; the copy counts as a cell of your own."
            notes.append(Note(says, f"`{name}`: duplicate stripped"))
        elif name:
            notes.append(Note("", f"unknown graded cell {name[:80]!r}: metadata dropped"))
    return notes


def _original(notebook: NotebookNode, release: Release, name: str) -> NotebookNode | None:
    """The cell that keeps the name: the one with the released id, else the first."""
    found = [cell for cell in notebook.cells if grade_id(cell) == name]
    originals = [cell for cell in found if cell.get("id") == release.graded[name].get("id")]
    return next(iter(originals or found), None)


def _fields(cell: Any) -> dict:
    """nbgrader's metadata without the checksum, which nbgrader rewrites itself."""
    metadata = cell.metadata["nbgrader"]
    return {key: value for key, value in metadata.items() if key not in ("checksum", "cell_type")}


def _restore_checks(notebook: NotebookNode, release: Release) -> list[Note]:
    """A check cell that was edited gets its released text back: it is not where points come from."""
    notes = []
    for index, cell in enumerate(notebook.cells):
        name = grade_id(cell)
        released = release.graded.get(name)
        if released is None:
            continue
        intact = cell.source == released.source or kind(released) != CHECK
        if intact and cell.cell_type == released.cell_type:
            continue
        notes.append(Note(f"You changed the cell `{name}`; the original counts.", f"`{name}`: edited, restored"))
        restored = copy.deepcopy(released)
        if kind(released) != CHECK:
            restored.source = cell.source
        notebook.cells[index] = restored
    return notes


def _insert_missing(notebook: NotebookNode, release: Release) -> list[Note]:
    """Put back deleted graded cells, each after the graded cell that comes before it in the release."""
    notes, previous = [], None
    for name, released in release.graded.items():
        index = _position(notebook, name)
        if index is None:
            index = 0 if previous is None else (_position(notebook, previous) or 0) + 1
            notebook.cells.insert(index, _placeholder(released))
            notes.append(Note(f"The cell `{name}` was missing; we put it back.", f"`{name}`: missing, restored"))
        previous = name
    return notes


def _placeholder(released: NotebookNode) -> NotebookNode:
    cell = copy.deepcopy(released)
    # Not the stub: the student may have defined the answer elsewhere, and a stub behind it would undo that.
    if kind(released) == SOLUTION:
        cell.source = MISSING
    return cell


def _position(notebook: NotebookNode, name: str) -> int | None:
    return next((index for index, cell in enumerate(notebook.cells) if grade_id(cell) == name), None)
