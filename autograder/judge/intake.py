"""Take a submission in: is it a notebook, whose is it, and what must be mended before it can be graded.

Nothing here executes or trusts what it reads. A file that cannot be graded raises `Refused`, with one text for the
student and one for staff; what an honest student or editor does to a file (an old format, a byte order mark, Windows
line ends, a part that is damaged, a graded cell copied or deleted) is mended and said.
"""

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

from autograder.judge.cells import Release
from autograder.judge.repair import MISSING, Note, repair

__all__ = ["MISSING", "Note", "Refused", "Submission", "load_release", "parse", "read_bytes", "repair", "take_in"]

MAX_BYTES = 30 << 20
MAX_DEPTH = 60
MAX_CONTAINERS = 200_000  # objects and lists: a few bytes of text each, a few hundred in memory
MAX_ITEMS = 3_000_000  # commas
MAX_CELLS = 1_000
STUDENT = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_.@-]{0,63}")
_ALWAYS = (0,)  # a collecting service may run as root
# One pass: an unclosed string runs to the end of the text, so that no byte is looked at twice.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_SURROGATE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


class Refused(Exception):
    """The submission cannot be graded as it is. `student` says what to do about it; str() is what staff read."""

    def __init__(self, student: str, staff: str = "") -> None:
        super().__init__(staff or student)
        self.student = student


@dataclass(frozen=True)
class Submission:
    """A notebook that was read, checked and repaired; the file itself is untouched."""

    notebook: NotebookNode
    notes: tuple[Note, ...] = ()


def take_in(path: Path, release: Release, student: str = "") -> Submission:
    """Read and repair one submitted notebook."""
    notebook, tidied = read_notebook(read_bytes(path, student))
    repaired, notes = repair(notebook, release)
    return Submission(repaired, (*tidied, *notes))


# --- the file -----------------------------------------------------------------------------------------


def read_bytes(path: Path, student: str = "", *, root: Path | None = None) -> bytes:
    """The file's bytes, if it is a plain file of a plausible size that belongs to the student or to the grader.

    With `root`, a folder above it that staff named, nothing between the two may be a link, and the file has one name
    only: a hard link may be another student's file. Every question is asked of the open file, so that nobody can put
    another in its place between the look and the reading.
    """
    handle = _open(path, root)
    try:
        before = os.fstat(handle)
        _refuse_odd_file(path, before, student, strict=root is not None)
        content = _read(handle)
        after = os.fstat(handle)
    finally:
        os.close(handle)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(content) != after.st_size:
        raise Refused(
            "your notebook was being saved while we read it: hand it in again",
            f"{path.name} changed while it was read; collect again",
        )
    return content


def _open(path: Path, root: Path | None) -> int:
    """A handle on the file, reached from `root` without following a link."""
    plain = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    root = root or path.parent.parent
    *folders, name = path.relative_to(root).parts
    where = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            try:
                inner = os.open(folder, plain | os.O_DIRECTORY, dir_fd=where)
            except OSError:
                raise _no_plain_file(path, f"the folder {folder!r} on its path is a link or cannot be opened") from None
            os.close(where)
            where = inner
        return os.open(name, plain, dir_fd=where)
    except FileNotFoundError:
        raise Refused(f"{path.name} is missing: hand in the notebook under its own name") from None
    except OSError:
        raise _no_plain_file(path, "it is a link or cannot be read") from None
    finally:
        os.close(where)


def _no_plain_file(path: Path, why: str) -> Refused:
    return Refused(
        f"{path.name} is no plain file: hand in the notebook itself, no link and no folder",
        f"{path} is no plain file: {why}. A link can name another student's notebook, or a file of yours: look at it",
    )


def _refuse_odd_file(path: Path, status: os.stat_result, student: str, *, strict: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _no_plain_file(path, "it is a folder, a pipe, a socket or a device")
    if strict and status.st_nlink > 1:
        raise _no_plain_file(path, f"it has {status.st_nlink} names (hard links)")
    if status.st_size > MAX_BYTES:
        size = f"{status.st_size / 2**20:.0f} MiB, the limit is {MAX_BYTES >> 20} MiB"
        raise Refused(f"{path.name} has {size}: clear its outputs, save it, and hand it in again")
    if not _owner_is_plausible(status.st_uid, student):
        raise Refused(
            f"{path.name} belongs to another account than {student}'s: hand in a file of your own",
            f"{path} belongs to another account than {student}'s (uid {status.st_uid}): ask how it came there",
        )


def _owner_is_plausible(uid: int, student: str) -> bool:
    """The grader's own files always (collected ones are); others only if the student's account, if any, owns them."""
    if not student or uid in (os.getuid(), *_ALWAYS):
        return True
    try:
        return pwd.getpwnam(student).pw_uid == uid
    except KeyError:
        return True  # no account of that name here: names come from elsewhere and say nothing about owners


def _read(handle: int) -> bytes:
    with os.fdopen(handle, "rb", closefd=False) as file:
        return file.read(MAX_BYTES + 1)


# --- the notebook -------------------------------------------------------------------------------------


def parse(content: bytes) -> NotebookNode:
    """A valid version-4 notebook, or Refused."""
    return read_notebook(content)[0]


def read_notebook(content: bytes) -> tuple[NotebookNode, tuple[Note, ...]]:
    """A valid version-4 notebook and what had to be mended to get one; the same bytes give the same notebook."""
    text, notes = _decode(content)
    _refuse_bombs(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old notebooks lack cell ids; they get some below
            saved = nbformat.reader.reads(text)
            if not isinstance(saved, dict) or not {"cells", "worksheets"} & saved.keys():
                raise ValueError("it has no cells")
            version = nbformat.reader.get_version(saved)
            notebook = nbformat.convert(saved, 4)
            notes += _mend_parts(notebook)
            _, notebook = normalize(notebook)
            if version < (4, 5):
                _name_cells(notebook)
            nbformat.validate(notebook)
    except Refused:
        raise
    except Exception as problem:  # nbformat raises what its code happens to meet, AssertionError included
        reason = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise Refused(f"not a valid notebook ({reason}): open it in Jupyter, save it, and hand it in again") from None
    if len(notebook.cells) > MAX_CELLS:
        raise Refused(f"not a notebook of this course: it has {len(notebook.cells)} cells, the limit is {MAX_CELLS}")
    if version[0] < 4:
        notes.append(
            Note("Your notebook was in an old format; we converted it.", f"converted from nbformat {version[0]}")
        )
    return notebook, tuple(notes)


def _decode(content: bytes) -> tuple[str, list[Note]]:
    """The text: UTF-8, or what Windows editors make of it."""
    notes = []
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise Refused(
            "not a notebook: its text is not UTF-8. Open it in Jupyter, save it, and hand it in again"
        ) from None
    if encoding != "utf-8":
        notes.append(
            Note("Your file was saved by another editor; we converted it.", f"converted from {encoding} with a mark")
        )
    mended = _SURROGATE.sub(lambda found: r"\ufffd" if found["lone"] else found[0], text) if "\\u" in text else text
    if mended != text:
        notes.append(Note("", "half characters (lone surrogates) replaced"))
    return mended, notes


def _refuse_bombs(text: str) -> None:
    """JSON that is small as text and large, or endless, to whoever builds it."""
    depth = containers = items = 0
    for token in _TOKEN.finditer(text):
        mark = token[0][0]
        if mark in "[{":
            depth, containers = depth + 1, containers + 1
        elif mark in "]}":
            depth -= 1
        elif mark == ",":
            items += 1
        if depth > MAX_DEPTH:
            raise Refused(f"not a notebook: its JSON is nested deeper than {MAX_DEPTH} levels")
        if containers > MAX_CONTAINERS or items > MAX_ITEMS:
            raise Refused("not a notebook of this course: it has too many parts. Clear its outputs and save it again")


def _mend_parts(notebook: NotebookNode) -> list[Note]:
    """Line ends as everywhere; a cell whose outputs or labels are damaged keeps its text, which is what counts."""
    notes = []
    if any("\r" in cell.source for cell in notebook.cells):
        notes.append(Note("", "Windows line ends replaced"))
    for cell in notebook.cells:
        cell.source = cell.source.replace("\r\n", "\n").replace("\r", "\n")
    if not nbformat.validator.isvalid(notebook):
        notebook.metadata = nbformat.from_dict({})
        notebook.cells = [_bare(cell) for cell in notebook.cells]
        notes.append(
            Note("Parts of your notebook were damaged; we kept every cell's text.", "invalid: outputs dropped")
        )
    return notes


def _bare(cell: NotebookNode) -> NotebookNode:
    """The cell without its outputs, attachments and odd keys."""
    metadata = cell.metadata if isinstance(cell.get("metadata"), dict) else {}
    keep: dict[str, Any] = {"cell_type": cell.cell_type, "source": str(cell.source), "metadata": metadata}
    if isinstance(cell.get("id"), str) and re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"]):
        keep["id"] = cell["id"]
    if cell.cell_type == "code":
        keep |= {"outputs": [], "execution_count": None}
    return nbformat.from_dict(keep)


def _name_cells(notebook: NotebookNode) -> None:
    """Ids for cells of a format that has none; nbformat would draw them at random, another at each reading."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"unnamed-{number}"
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)


def load_release(folder: Path) -> Release:
    """The lab's committed student notebook."""
    path = folder / "lab.ipynb"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; build it with `python -m course notebooks {folder}`")
    return Release(nbformat.read(path, as_version=4))
