"""What a student must not receive: solutions, hidden tests, prepared mistakes, staff notes, other files.

The scan reads the student's notebook against everything in the lab's folder that stays behind. It does not trust the
steps that removed the solutions; it looks for their lines.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from nbformat.notebooknode import NotebookNode

from course.notebooks.build import REGION, build, role
from course.notebooks.release import release_files
from course.notebooks.sources import Problem, Source

MARKERS = ("BEGIN SOLUTION", "END SOLUTION", "BEGIN HIDDEN TESTS", "END HIDDEN TESTS", "MARK SCHEME")
SHORTEST_LINE = 12  # characters; a shorter line says nothing about the solution
RUN = 12  # equal words in a row; fewer may be a definition that both places need
# Lines that any program has: they carry no idea.
COMMON_LINE = re.compile(
    r"(import|from)\s.*|return [\w, ]+|[\w, ]+ = [-\w., ]+|for \w+ in range\([^()]*\):|with torch\.no_grad\(\):"
)
GIVEN = "given"  # the tag of a cell that shows a line of a solution on purpose


def leaks(source: Source, student: NotebookNode) -> list[Problem]:
    """Everything in the student's notebook that belongs to staff."""
    found = [*_markers(student), *_solution_lines(source, student), *_staff_text(source, student)]
    return [Problem(str(source.shown), *finding) for finding in found]


def folder_leaks(source: Source, folder: Path) -> list[Problem]:
    """Every file in a release folder that is neither the notebook nor a declared data file."""
    allowed = set(release_files(source))
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    fix = "Remove it. A data file that students need is named in `data` of lab.toml."
    return [Problem(str(folder), None, f"a release holds {name}", fix) for name in found if name not in allowed]


def solution_lines(source: Source) -> dict[str, set[str]]:
    """Question name -> the lines inside its solution regions that do not also stand in its stub."""
    lines: dict[str, set[str]] = {}
    for cell in build(source).cells:
        kind, name = role(cell)
        if kind in ("question", "written"):
            inside = {line for region in REGION.findall(cell.source) for line in _code_lines(region)}
            lines[name] = inside - set(_code_lines(REGION.sub("", cell.source)))
    return lines


def _code_lines(text: str) -> Iterator[str]:
    """Lines without indentation and without a trailing comment, long enough to mean something."""
    for line in text.splitlines():
        code = line.strip().partition("  #")[0].rstrip()
        if len(code) >= SHORTEST_LINE and not COMMON_LINE.fullmatch(code):
            yield code


def _markers(student: NotebookNode) -> Iterator[tuple[int, str, str]]:
    for number, cell in enumerate(student.cells, start=1):
        for marker in MARKERS:
            if marker in cell.source:
                yield number, f"{marker} is still there", "Mark the cell as question, written or check, or remove it."
        if cell.get("outputs"):
            yield number, "outputs in a student's notebook", "Build it again; a release has none."


def _solution_lines(source: Source, student: NotebookNode) -> Iterator[tuple[int, str, str]]:
    secrets = solution_lines(source)
    fix = f'Reword it. A cell that gives the line away on purpose has tags=["{GIVEN}"].'
    for number, cell in enumerate(student.cells, start=1):
        if GIVEN in cell.metadata.get("tags", []):
            continue
        for name, lines in secrets.items():
            for line in sorted(line for line in lines if line in cell.source):
                yield number, f"a line of the solution of `{name}`: {line}", fix


def _staff_text(source: Source, student: NotebookNode) -> Iterator[tuple[int, str, str]]:
    fix = "It stays with staff; say it another way."
    secrets = {path.name: _secrets(path) for path in _staff_files(source)}
    for number, cell in enumerate(student.cells, start=1):
        runs = _runs(cell.source)
        for file, (names, phrases) in secrets.items():
            if shared := sorted(phrases & runs):
                yield number, f'words of {file}: "{shared[0]} …"', fix
            for name in sorted(name for name in names if name in cell.source):
                yield number, f"a name of {file}: {name}", fix


def _staff_files(source: Source) -> list[Path]:
    return [path for path in (source.folder / "mistakes.py", source.folder / "staff.md") if path.is_file()]


def _secrets(path: Path) -> tuple[set[str], set[str]]:
    """(names, runs of words): what mistakes.py calls and says; what staff.md says outside headings and quotations."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return set(), _runs(
            "\n".join(line for line in text.splitlines() if not line.lstrip().startswith((">", "#", "|")))
        )
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.decorator_list]
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    names = {function.name for function in functions if len(function.name) >= SHORTEST_LINE}
    return names, set().union(*map(_runs, strings))


def _runs(text: str) -> set[str]:
    """Every run of RUN consecutive words: punctuation, case and line breaks do not hide a quotation."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}
