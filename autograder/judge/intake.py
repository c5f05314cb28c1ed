"""Take a submission in: is it a notebook, whose is it, and what must be mended before it can be graded.

Nothing here executes or trusts what it reads. A file that cannot be graded raises `Refused` with a reason to send
to the student; a slip that an honest student makes (a graded cell copied, deleted or edited) is repaired and said.
"""

import copy
import os
import pwd
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat.notebooknode import NotebookNode
from nbformat.validator import normalize

from autograder.judge.cells import CHECK, SOLUTION, Release, grade_id, kind

MAX_BYTES = 30 << 20
MAX_DEPTH = 60
STUDENT = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_.@-]{0,63}")
MISSING = "# This cell was missing from the submission."
_ALWAYS = (0,)  # a collecting service may run as root
# Possessive, and content with a string that never ends: a hostile text costs one pass, not one pass per quote.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class Refused(Exception):
    """The submission cannot be graded as it is; the message says why and what the student can do."""


@dataclass(frozen=True)
class Note:
    """One repair: what the student reads, and what staff read."""

    student: str
    staff: str


@dataclass(frozen=True)
class Submission:
    """A notebook that was read, checked and repaired; the file itself is untouched."""

    notebook: NotebookNode
    notes: tuple[Note, ...] = ()


def take_in(path: Path, release: Release, student: str = "") -> Submission:
    """Read and repair one submitted notebook."""
    notebook = parse(read_bytes(path, student))
    return Submission(*repair(notebook, release))


def read_bytes(path: Path, student: str = "") -> bytes:
    """The file's bytes, if it is a plain file of a plausible size that belongs to the student or to the grader."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(f"{path.name} is missing: hand in the notebook under its own name") from None
    except OSError:
        raise Refused(f"{path.name} is a link or cannot be read: hand in the notebook itself") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or path.parent.is_symlink():
            raise Refused(f"{path.name} is no plain file: hand in the notebook itself, no link and no folder")
        if status.st_size > MAX_BYTES:
            size = f"{status.st_size / 2**20:.0f} MiB, the limit is {MAX_BYTES >> 20} MiB"
            raise Refused(f"{path.name} has {size}: clear its outputs, save it, and hand it in again")
        if not _owner_is_plausible(status.st_uid, student):
            raise Refused(f"{path.name} belongs to another account than {student}'s: hand in a file of your own")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(handle)


def _owner_is_plausible(uid: int, student: str) -> bool:
    """The grader's own files always (collected ones are); others only if the student's account, if any, owns them."""
    if not student or uid in (os.getuid(), *_ALWAYS):
        return True
    try:
        return pwd.getpwnam(student).pw_uid == uid
    except KeyError:
        return True  # no account of that name here: names come from elsewhere and say nothing about owners


def parse(text: bytes) -> NotebookNode:
    """A valid version-4 notebook, or Refused."""
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", text)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise Refused(f"not a notebook: its JSON is nested deeper than {MAX_DEPTH} levels")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old notebooks lack cell ids; normalize adds them
            notebook = nbformat.reads(text.decode("utf-8"), as_version=4)
            _, notebook = normalize(notebook)
            nbformat.validate(notebook)
    except (ValueError, RecursionError, nbformat.ValidationError, AttributeError, KeyError, TypeError) as problem:
        reason = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise Refused(f"not a valid notebook ({reason}): open it in Jupyter, save it, and hand it in again") from None
    return notebook


# --- repair -------------------------------------------------------------------------------------------


def repair(notebook: NotebookNode, release: Release) -> tuple[NotebookNode, tuple[Note, ...]]:
    """A copy whose graded cells are exactly the release's, each once, and notes on what was mended. Idempotent."""
    notebook = copy.deepcopy(notebook)
    notes = [*_adopt(notebook, release), *_strip_copies(notebook, release)]
    notes += [*_restore_checks(notebook, release), *_insert_missing(notebook, release)]
    return notebook, tuple(notes)


def _adopt(notebook: NotebookNode, release: Release) -> list[Note]:
    """Give a graded cell that lost its metadata (some editors drop it) its metadata back."""
    present = {grade_id(cell) for cell in notebook.cells}
    notes = []
    for name, released in release.graded.items():
        if name in present:
            continue
        for cell in notebook.cells:
            same = cell.get("id") == released.get("id") or (kind(released) == CHECK and cell.source == released.source)
            if same and not grade_id(cell):
                cell.metadata["nbgrader"] = copy.deepcopy(released.metadata["nbgrader"])
                notes.append(
                    Note(f"The cell `{name}` had lost its label; we put it back.", f"`{name}`: metadata restored")
                )
                break
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


def load_release(folder: Path) -> Release:
    """The lab's committed student notebook."""
    path = folder / "lab.ipynb"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; build it with `python -m course notebooks {folder}`")
    return Release(nbformat.read(path, as_version=4))
