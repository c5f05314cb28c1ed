"""Collect: bring what students handed in into `submitted/`, from a folder of files or from nbgrader's exchange.

A student's file is found under whatever name browsers and editors gave it, read without following a link, mended where
an editor damaged it, and written down in a receipt: what was mended, or why the file was refused. The file that came
in stays where it was; where it had to be mended, the original is also kept in the judge's folder.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbgrader.utils import parse_utc

from autograder.judge.course import Course, Progress, succeed
from autograder.judge.intake import STUDENT, Note, Refused, read_bytes, read_notebook
from autograder.judge.receipt import refused, save_receipt, taken
from autograder.judge.trouble import refuse_if_full, space_in
from autograder.judge.vault import write_atomically
from autograder.judge.verdict import CycleError
from autograder.labs import Lab

NOTEBOOK, STAMP = "lab.ipynb", "timestamp.txt"
# `lab(1)`, `lab (2)`, `lab-Copy1`, `lab - Copy`: what browsers, Jupyter and Windows call a second file of one name
SECOND = re.compile(r"(?P<name>.+?)(?:\s*\(\d+\)|-Copy\d+|\s-\s[Cc]opy(?:\s*\(\d+\))?)")
NOBODY = ("lab", "notebook", "untitled", "submission")


@dataclass
class Found:
    """The files of one student: the one under the right name, and others that may be meant."""

    right: Path | None = None
    others: list[Path] = field(default_factory=list)


def collect(course: Course, lab: Lab, folder: Path | None = None) -> Progress:
    """Bring submissions into `submitted/`: from nbgrader's exchange, or from a folder of notebooks."""
    if folder is None:
        return collect_from_exchange(course, lab)
    if not folder.is_dir():
        raise CycleError(f"{folder} is no folder; --from names one with <student>.ipynb or <student>/lab.ipynb")
    progress = Progress()
    for student, found in sorted(find(folder, lab.slug).items()):
        with space_in(course.root):
            receive(course, lab, student, found, folder, progress)
    return progress


# --- finding ------------------------------------------------------------------------------------------


def find(folder: Path, slug: str) -> dict[str, Found]:
    """Student -> files, from `<student>.ipynb`, `<student>/lab.ipynb` or `<student>/<slug>/lab.ipynb`."""
    found: dict[str, Found] = {}
    for path in notebooks(folder.glob("*.ipynb")):
        second = SECOND.fullmatch(path.stem)
        entry = found.setdefault(second["name"] if second else path.stem, Found())
        if second:
            entry.others.append(path)
        else:
            entry.right = path
    for pattern, depth in (("*/*.ipynb", 0), (f"*/{slug}/*.ipynb", 1)):
        for path in notebooks(folder.glob(pattern)):
            student = path.parents[depth].name
            entry = found.setdefault(student, Found())
            if path.name == NOTEBOOK:
                entry.right = path  # the deepest counts: it is nbgrader's own layout
            else:
                entry.others.append(path)
    return found


def found_in(folder: Path, slug: str) -> dict[str, Path]:
    """Student -> the one file that would be graded."""
    return {student: found.right or found.others[0] for student, found in find(folder, slug).items()}


def notebooks(paths: Iterable[Path]) -> list[Path]:
    """Without checkpoints and what archives of a Mac leave behind."""
    return sorted(
        path
        for path in paths
        if not path.stem.endswith("-checkpoint")
        and not path.name.startswith("._")
        and not {".ipynb_checkpoints", "__MACOSX"} & set(path.parts)
    )


def choose(student: str, found: Found) -> tuple[Path, list[Note]]:
    """The one file to grade, and what to say about its name."""
    if found.right is not None:
        others = ", ".join(path.name for path in found.others)
        says = f"Beside {found.right.name} you handed in {others}; we graded {found.right.name}."
        return found.right, [Note(says, f"not graded: {others}")] if others else []
    if len(found.others) == 1:
        (path,) = found.others
        says = f"Your file was called {path.name!r}; we took it. Hand in {NOTEBOOK} next time."
        return path, [Note(says, f"{path.name!r} taken as {NOTEBOOK}")]
    names = ", ".join(path.name for path in found.others)
    raise Refused(
        f"you handed in {len(found.others)} notebooks ({names}) and none is called {NOTEBOOK}: hand in one",
        f"{student} has {len(found.others)} notebooks ({names}), none under the right name: ask which one counts",
    )


# --- taking over ----------------------------------------------------------------------------------------


def receive(course: Course, lab: Lab, student: str, found: Found, root: Path, progress: Progress) -> None:
    """Take one student's file over, or say why not; never an exception about one student."""
    if not STUDENT.fullmatch(student) or student.lower() in NOBODY:
        names = ", ".join(str(path) for path in (found.right, *found.others) if path)
        progress.problems[student] = (
            f"{names}: whose is it? {student!r} is no student id (letters, digits and _ . @ - only). "
            "Call the file <student>.ipynb, or put it into a folder <student>/"
        )
        return
    path = found.right or found.others[0]
    try:
        path, notes = choose(student, found)
        fresh, mended = take_over(course, lab, student, path, root)
    except Refused as why:
        progress.problems[student] = str(why)
        receipt = refused(path.name, why)
    except OSError as problem:
        refuse_if_full(problem, course.root)
        progress.problems[student] = f"{path} could not be read or copied: {problem.strerror}; collect again"
        return
    else:
        (progress.done if fresh else progress.kept).append(student)
        receipt = taken(path.name, (*notes, *mended))
    if save_receipt(course.vault.folder, lab.slug, student, receipt):
        course.vault.page_path(lab.slug, student).unlink(missing_ok=True)  # the feedback page must be made anew


def take_over(course: Course, lab: Lab, student: str, path: Path, root: Path) -> tuple[bool, list[Note]]:
    """Copy one notebook, if it can be one; whether it is new, and what was mended."""
    content = read_bytes(path, student, root=root)
    notebook, mended = read_notebook(content)
    notes = list(mended)
    stamp = read_stamp(path, root, notes)
    text = nbformat.writes(notebook) + "\n" if mended else content.decode("utf-8")
    target = course.root / "submitted" / student / lab.slug / NOTEBOOK
    if mended:
        keep_original(course, lab, student, content)
    if target.is_file() and target.read_bytes() == text.encode() and unchanged(target.with_name(STAMP), stamp):
        return False, notes
    if stamp:  # goes first: once the notebook is there, this student is done
        write_atomically(target.with_name(STAMP), stamp, mode=0o644)
    write_atomically(target, text, mode=0o644)
    return True, notes


def unchanged(path: Path, stamp: str) -> bool:
    return not stamp or (path.is_file() and path.read_text(encoding="utf-8") == stamp)


def read_stamp(path: Path, root: Path, notes: list[Note]) -> str:
    """The time of submission beside the notebook, if it is one."""
    beside = path.with_name(STAMP)
    if path.parent == root or not beside.exists():
        return ""
    try:
        text = read_bytes(beside, root=root).decode("utf-8").strip()[:100]
        parse_utc(text)
    except (Refused, ValueError, OverflowError) as problem:
        notes.append(Note("", f"{STAMP} is no time and was left out, so nothing is late: {problem}"))
        return ""
    return text


def keep_original(course: Course, lab: Lab, student: str, content: bytes) -> None:
    """What came in, as it came in, beside the judge's other papers."""
    path = course.vault.folder / "originals" / lab.slug / f"{student}.ipynb"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(content)


# --- nbgrader's exchange --------------------------------------------------------------------------------


def collect_from_exchange(course: Course, lab: Lab) -> Progress:
    """Let nbgrader collect, then go over every file: its copy follows links, and takes along whatever lies beside."""
    before = contents(course, lab)
    succeed(course.api.collect(lab.slug), f"collecting {lab.slug} (or name a folder with --from)")
    progress, brought = Progress(), contents(course, lab)
    for home in sorted((course.root / "submitted").glob(f"*/{lab.slug}")):
        with space_in(course.root):
            student, source = home.parent.name, source_of(course, lab, home)
            receive(course, lab, student, find_one(source), source.parent, progress)
            tidy(course, lab, home, is_refused=student in progress.problems)
    fresh = [student for student in progress.kept if before.get(student) != brought.get(student)]
    progress.done += fresh
    progress.kept = [student for student in progress.kept if student not in fresh]
    return progress


def contents(course: Course, lab: Lab) -> dict[str, str]:
    """Student -> hash of the notebook in `submitted/`."""
    found = (course.root / "submitted").glob(f"*/{lab.slug}/{NOTEBOOK}")
    return {path.parents[1].name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.is_file()}


def find_one(home: Path) -> Found:
    files = notebooks(home.glob("*.ipynb"))
    right = next((path for path in files if path.name == NOTEBOOK), None)
    if not files:
        right = home / NOTEBOOK  # the reading will say that it is missing
    return Found(right, [path for path in files if path.name != NOTEBOOK])


def source_of(course: Course, lab: Lab, home: Path) -> Path:
    """Where the collected copy came from, if that is a folder of nbgrader's own exchange: there a link is still one."""
    exchange = Path(course.config.Exchange.get("root", "")) / course.api.course_id / "inbound"
    stamp = home / STAMP
    when = stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else ""
    matches = sorted(exchange.glob(f"{glob_safe(home.parent.name)}+{lab.slug}+{glob_safe(when)}*")) if when else []
    return matches[-1] if matches else home


def glob_safe(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def tidy(course: Course, lab: Lab, home: Path, *, is_refused: bool) -> None:
    """Leave the notebook, its time and nothing else; what was refused goes aside, so that no later step takes it."""
    if is_refused:
        aside = course.vault.folder / "refused" / lab.slug / home.parent.name
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.move(home, aside)
        return
    for path in home.iterdir():
        if path.name not in (NOTEBOOK, STAMP):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
