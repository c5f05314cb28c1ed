"""Which cells of a submission are run, and which only sit there.

The release (`labs/<slug>/lab.ipynb`) says what each graded cell is. Setup cells, solution cells and everything a
student added or changed are run in notebook order; check cells never run here, and explore cells that are as
released are skipped, so grading a two-minute notebook costs milliseconds.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from IPython.core.inputtransformer2 import TransformerManager
from nbformat.notebooknode import NotebookNode

from autograder.judge.session import Cell
from autograder.judge.vault import canonical

CHECK, SOLUTION, WRITTEN = "check", "solution", "written"


@dataclass(frozen=True)
class Release:
    """The notebook that students received."""

    notebook: NotebookNode

    @cached_property
    def graded(self) -> dict[str, NotebookNode]:
        """grade_id -> released cell, in order: solution cells, check cells and written answers."""
        return {grade_id(cell): cell for cell in self.notebook.cells if grade_id(cell)}

    @cached_property
    def quiet(self) -> frozenset[str]:
        """Sources of released cells that need not run: explore cells and check cells."""
        return frozenset(
            cell.source
            for cell in self.notebook.cells
            if cell.cell_type == "code" and (kind(cell) == CHECK or "explore" in cell.metadata.get("tags", []))
        )


def grade_id(cell: NotebookNode) -> str:
    """The cell's name in nbgrader's metadata, or ""."""
    metadata = cell.metadata.get("nbgrader")
    found = metadata.get("grade_id") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else ""


def kind(cell: NotebookNode) -> str:
    """check, solution, written, or "" for a cell that is not graded."""
    metadata = cell.metadata.get("nbgrader") or {}
    if not grade_id(cell):
        return ""
    if metadata.get("grade"):
        return WRITTEN if metadata.get("solution") else CHECK
    return SOLUTION if metadata.get("solution") else ""


def runnable(notebook: NotebookNode, release: Release) -> list[Cell]:
    """The cells to run, with IPython's syntax turned into plain Python. `notebook` is repaired (see intake)."""
    cells = []
    for number, cell in enumerate(notebook.cells, start=1):
        released = release.graded.get(grade_id(cell))
        is_check = released is not None and kind(released) == CHECK
        if cell.cell_type != "code" or is_check or cell.source in release.quiet or not cell.source.strip():
            continue
        cells.append(Cell(grade_id(cell) or f"cell {number}", plain_python(cell.source)))
    return cells


def plain_python(source: str) -> str:
    """`%magic`, `!command` and `?` become calls of get_ipython(); anything else stays as it is."""
    try:
        return TransformerManager().transform_cell(source)
    except SyntaxError:
        return source  # the runner will report it with its line


def fingerprint(cells: list[Cell]) -> str:
    """The hash of everything that is run: two submissions with the same one get the same verdict."""
    return hashlib.sha256(canonical([cell.source for cell in cells])).hexdigest()
