"""The student's version of a lab: nbgrader's own release steps, run in memory.

`labs/<slug>/lab.ipynb` holds the bytes that `nbgrader generate_assignment` would release from the same source, because
both read the list of steps and their options from `course/nbgrader_config.py`. Only the step that writes to the
gradebook is left out here. A test runs the real command and compares.
"""

import functools
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.exporters import NotebookExporter
from nbformat.notebooknode import NotebookNode
from nbgrader.preprocessors import ClearSolutions
from nbgrader.utils import compute_checksum
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from course.notebooks.build import build, to_text
from course.notebooks.sources import REPOSITORY, NotebookError, Source, open_source, shown

PLACEHOLDER = "{question}"
NEEDS_DATABASE = "nbgrader.preprocessors.SaveCells"


class NameStubs(ClearSolutions):  # type: ignore[misc]  # nbgrader has no types
    """nbgrader's ClearSolutions, with the question's name in the stub: NotImplementedError("merge")."""

    code_stub: dict[str, str]

    def preprocess_cell(self, cell: NotebookNode, resources: Any, cell_index: int) -> tuple[NotebookNode, Any]:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        template = self.code_stub
        self.code_stub = {language: stub.replace(PLACEHOLDER, name) for language, stub in template.items()}
        try:
            return super().preprocess_cell(cell, resources, cell_index)  # type: ignore[no-any-return]
        finally:
            self.code_stub = template


@functools.cache
def nbgrader_config() -> Config:
    """The course's nbgrader options, read as nbgrader reads them."""
    return Config(PyFileConfigLoader("nbgrader_config.py", path=str(REPOSITORY / "course")).load_config())


def student_text(source: Source) -> str:
    """The bytes that a student gets: solutions replaced by stubs, cells locked, checksums computed."""
    config: Any = nbgrader_config().copy()
    config.Exporter.default_preprocessors = []
    exporter = NotebookExporter(config=config)
    for step in config.GenerateAssignment.preprocessors:
        if step != NEEDS_DATABASE:
            exporter.register_preprocessor(step)
    try:
        text, _ = exporter.from_notebook_node(build(source), resources={"unique_key": "lab"})
    except RuntimeError as error:  # nbgrader's word for a region that is not closed, nested, or in a wrong cell
        raise NotebookError(
            f"{source.shown}: nbgrader says: {error}. Each BEGIN line needs its END line in the same cell, "
            "and the cell a question, a check or a written mark."
        ) from None
    return str(text)


def source_notebook(lab: Path) -> NotebookNode:
    """The lab in folder `lab` with its solutions: what nbgrader calls the source version."""
    return build(open_source(lab))


def student_notebook(lab: Path) -> NotebookNode:
    """The lab in folder `lab` as students get it."""
    return nbformat.reads(student_text(open_source(lab)), as_version=4)


def holds_answers(notebook: NotebookNode | None) -> bool:
    """True when somebody worked in this student's version: a cell was run, or differs from its checksum."""
    cells = notebook.cells if notebook else []
    return any(
        cell.get("outputs")
        or cell.get("execution_count")
        or cell.metadata.get("nbgrader", {}).get("checksum", "") not in ("", _checksum(cell))
        for cell in cells
    )


def _checksum(cell: NotebookNode) -> str:
    return str(compute_checksum(cell)) if cell.metadata.get("nbgrader") else ""


def write_source(lab: Path, target: Path) -> Path:
    """Write the source version to `target`, for nbgrader's `source/<slug>/lab.ipynb`; return `target`."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(to_text(source_notebook(lab)), encoding="utf-8")
    return target


def release_files(source: Source) -> list[str]:
    """What may leave the lab's folder: the notebook and the data files that lab.toml declares."""
    for name in source.data:
        if Path(name).suffix in {".py", ".md", ".toml"} or not (source.folder / name).is_file():
            raise NotebookError(
                f'{shown(source.folder)}/lab.toml: data = "{name}" is no data file of this folder. '
                "Sources, notes and settings never travel; name files such as weights.safetensors."
            )
    return ["lab.ipynb", *source.data]
